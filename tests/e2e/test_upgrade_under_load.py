"""A populated database of the last release is migrated under load, its nodes are replaced, and all of it is taken back:
no call fails."""

from pathlib import Path

import pytest

from demo.processes import ROOT
from peerseal.protocol.join import JoinToken
from registry.storage.schema import RELEASED_REVISION, SCHEMA_REVISION
from tests.support.balancer import Balancer
from tests.support.processes import Server, free_port, gunicorn, status_of
from tests.support.released import DOMAIN, Release, populate, released_code
from tests.support.stack import Stack
from tests.support.traffic import Traffic
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SERVICE = "service-1"
NEW = "python:registry.gunicorn_conf"


@pytest.fixture
def release(stack: Stack) -> Release:
    """The last release, in use."""
    populate(stack.registry_settings["REGISTRY_DATABASE_URL"], Path(stack.registry_settings["REGISTRY_HOME"]))
    release = Release(stack)
    release.operate("init")  # which has the root sign its document again, where that has ended since
    return release


def node(stack: Stack, port: int, config: str, **settings: str) -> Server:
    """Over TCP, with the drain that a balancer needs."""
    started = gunicorn(
        "registry",
        "registry.wsgi:app",
        port=port,
        log=stack.log(f"registry-{port}"),
        settings=stack.registry_settings | {"REGISTRY_DRAIN_SECONDS": "1"} | settings,
        workers=1,
        config=config,
    )
    return stack.keep(started).wait_until_answers(f"{started.url}/readyz?for=write")


class Nodes:
    """Two nodes, which are replaced one after the other."""

    def __init__(self, stack: Stack, config: str) -> None:
        self._stack = stack
        self._nodes = [node(stack, free_port(), config) for _ in range(2)]
        self.urls = [each.url for each in self._nodes]

    def replace(self, config: str) -> None:
        for place, old in enumerate(self._nodes):
            old.stop(grace=60)
            assert old.exit_code == 0
            self._nodes[place] = node(self._stack, int(old.url.rpartition(":")[2]), config)


def test_no_call_fails_on_the_way_to_this_version_and_back(stack: Stack, release: Release) -> None:
    token = JoinToken.parse(release.operate("join-token", "create", SERVICE, "--uses", "1000"))
    nodes = Nodes(stack, release.config())
    with Balancer(nodes.urls) as balancer:
        until(lambda: balancer.ready == 2)
        with Traffic(balancer.url, DOMAIN, SERVICE, token) as traffic:
            assert stack.operate_json("migrate")["revision"] == SCHEMA_REVISION
            traffic.goes_on()
            assert balancer.ready == 2  # nodes of the last release
            nodes.replace(NEW)
            traffic.goes_on()
            assert stack.operate_json("verify")["differences"] == []
            nodes.replace(release.config())
            assert stack.operate_json("migrate", "--down")["revision"] == RELEASED_REVISION
            traffic.goes_on()
            assert balancer.ready == 2
    assert traffic.failed == {}
    assert release.operate("verify").startswith("whole: ")


def test_the_last_release_s_own_code_serves_on_the_migrated_schema(
    stack: Stack, release: Release, tmp_path: Path
) -> None:
    """It does not know that it may, so it says that it is not ready: balancers go on with it where no node is."""
    token = JoinToken.parse(release.operate("join-token", "create", SERVICE, "--uses", "1000"))
    code = released_code(tmp_path / "released")
    old = node(stack, free_port(), NEW, PYTHONPATH=f"{code}:{ROOT}")  # gunicorn would put the second one first
    with Traffic(old.url, DOMAIN, SERVICE, token) as traffic:
        stack.operate("migrate")
        traffic.goes_on()
        assert status_of(f"{old.url}/readyz") == 503
        assert stack.operate_json("verify")["differences"] == []
        stack.operate("migrate", "--down")
        traffic.goes_on()
        assert status_of(f"{old.url}/readyz") == 200
    assert traffic.failed == {}
    assert "REGISTRY_DRAIN_SECONDS is no setting" in old.output()  # so that is the old code
