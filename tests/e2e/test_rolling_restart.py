"""Two nodes of a balancer that asks /readyz are restarted one after the other under load: no call fails."""

import os
import signal
import time

import pytest

from peerseal.protocol.join import JoinToken
from tests.support.balancer import Balancer
from tests.support.processes import Server, free_port, gunicorn
from tests.support.stack import Stack
from tests.support.traffic import Traffic
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DRAIN = 1
"""Seconds: ten looks of the balancer."""


def node(stack: Stack, port: int) -> Server:
    started = gunicorn(
        "registry",
        "registry.wsgi:app",
        port=port,
        log=stack.log(f"registry-{port}"),
        settings=stack.registry_settings | {"REGISTRY_DRAIN_SECONDS": str(DRAIN)},
        workers=2,
        config="python:registry.gunicorn_conf",
    )
    return stack.keep(started).wait_until_answers(f"{started.url}/readyz?for=write")


def test_no_call_fails_while_each_node_is_restarted(stack: Stack) -> None:
    stack.operate("init", "--trust-domain", stack.domain)
    token = JoinToken.parse(stack.join_token("billing", uses=1000))
    nodes = [node(stack, free_port()) for _ in range(2)]
    with Balancer([each.url for each in nodes]) as balancer:
        until(lambda: balancer.ready == 2)
        with Traffic(balancer.url, stack.domain, "billing", token) as traffic:
            for each in nodes:
                began = time.monotonic()
                os.kill(each.pid, signal.SIGTERM)
                until(lambda stopping=each: not stopping.running)
                assert time.monotonic() - began >= DRAIN
                assert each.exit_code == 0
                node(stack, int(each.url.rpartition(":")[2]))
                until(lambda: balancer.ready == 2)
                traffic.goes_on()
    assert traffic.failed == {}
    assert stack.operate_json("verify")["differences"] == []
