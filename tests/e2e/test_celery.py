"""The recipe of docs/how-to/celery.md, with a real prefork worker."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerseal.testing import MemoryRegistry
from tests.peerseal.served import served
from tests.support.waiting import until
from tests.support.wire import RawServer, claims_of

PAGE = Path(__file__).parents[2] / "docs/how-to/celery.md"
SLOW = 60.0  # seconds for the start of a worker on a busy machine

CONFIG = """
broker_url = "filesystem://"
broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
task_ignore_result = True
"""

PUBLISHER = """
import sys

from celery import chain
from celery.signals import before_task_publish

from peerseal import User, carrying
from peer_tasks import identity
from tasks import send_invoice

def alter(body, **_):
    body[0][0]["id"] = 8

def take_token(headers, **_):
    del headers["authorization"]

def sent_with(change):
    before_task_publish.connect(change)
    send_invoice.delay({"id": 7})
    before_task_publish.disconnect(change)

identity.start()
user = User("ada", "https://login.example.com", frozenset(("invoices:send",)), "u", 2**40, {})
with carrying(identity.mint_transaction(user, scope=["invoices:send"])):
    sent_with(alter)
    sent_with(take_token)
    chain(send_invoice.si({"id": 7}), send_invoice.si({"id": 8})).delay()
    send_invoice.delay({"id": 1})
    send_invoice.delay({"id": 2})
"""

WITNESS = """
@app.task(scope="invoices:send")
def refund(*given):
    open("refunds", "a").write(f"{given}\\n")
"""

INTRUDER = """
from celery import Celery
from kombu.utils.uuid import uuid

app = Celery("intruder")
app.config_from_object("celeryconfig")
refund = app.signature("tasks.refund", args=[7, 1000000])
one = app.signature("tasks.send_invoice", args=[{"id": 666}])
v1, v2 = app.amqp.as_task_v1, app.amqp.as_task_v2

def send(task="tasks.send_invoice", args=[{"id": 9}], kwargs=None, headers={}, form=v2, body=None, **options):
    with app.producer_pool.acquire() as producer:
        message = form(uuid(), task, args, kwargs, **options)
        message.headers.update(headers)
        if body is not None:
            message = message._replace(body=body(uuid(), task, args, kwargs, **options).body)
        app.amqp.send_task_message(producer, task, message)

send(errbacks=[refund])                                  # called after the refusal
send(errbacks=[one])                                     # published after it
send(errbacks=[refund], kwargs={"self": 1})              # called after an error of the call
send(args=["x" * 6_000_000], errbacks=[refund], time_limit=0.05)
send(callbacks=[refund])
send(chord=refund)
send(chain=[refund])
send(headers={"errbacks": [refund]})
send(errbacks=[refund], form=v1)
send(errbacks=[refund], body=v1)
send(kwargs={"self": 1})
send("celery.map", args=[refund, [[7, 1000000]]])        # calls the task directly
"""
LINKED = 10
"""Messages of the intruder with links."""


@pytest.fixture
def project(tmp_path: Path, server: RawServer) -> Path:
    """A folder with the modules of the page; the callee is ``server``."""
    peer_tasks, tasks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "peer_tasks.py").write_text(peer_tasks)
    (tmp_path / "tasks.py").write_text(tasks.replace("http://resource-service:8080", server.url) + WITNESS)
    (tmp_path / "celeryconfig.py").write_text(CONFIG)
    (tmp_path / "publisher.py").write_text(PUBLISHER)
    (tmp_path / "intruder.py").write_text(INTRUDER)
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["shop", "worker"])
        yield registry


def environment(registry: MemoryRegistry, url: str, service: str, folder: Path) -> Mapping[str, str]:
    own = {
        "PEERSEAL_SERVICE": service,
        "PEERSEAL_REGISTRY_URL": url,
        "PEERSEAL_REGISTRY_PIN": registry.pin,
        "PEERSEAL_JOIN_TOKEN": registry.join_token(service),
        "PEERSEAL_KEY_DIR": str(folder / service),
    }
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PAGE.parents[2])]), **own}


def refusals(project: Path) -> list[str]:
    """Why the worker has refused messages, and tasks."""
    reasons = r"(?: reject requeue=False: |Received invalid task message: )(.+)$"
    return re.findall(reasons, (project / "log").read_text(), re.MULTILINE)


@contextmanager
def worker(project: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """A prefork worker, which writes ``log``."""
    command = "celery -A tasks worker --pool prefork --concurrency 2 --max-tasks-per-child 1 --loglevel INFO"
    with (project / "log").open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=project,
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(SLOW / 3)
        except subprocess.TimeoutExpired:  # a child that ended after its last task in that moment holds Celery up
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def run(project: Path, program: str, environ: Mapping[str, str]) -> None:
    subprocess.run([sys.executable, program], cwd=project, env=environ, check=True, timeout=SLOW)


def test_prefork_workers_run_the_tasks_that_were_signed_and_for_their_user(
    registry: MemoryRegistry, project: Path, server: RawServer
) -> None:
    with served(registry) as url:
        run(project, "publisher.py", environment(registry, url, "shop", project))
        with worker(project, environment(registry, url, "worker", project)):
            until(lambda: len(server.seen) == 2, SLOW, what="two calls")
            until(lambda: len(refusals(project)) == 3, SLOW, what="three refusals")
    assert sorted(seen.body for seen in server.seen) == [b'{"order": {"id": 1}}', b'{"order": {"id": 2}}']
    for seen in server.seen:
        assert seen.claims["iss"] == "test.internal/worker"
        assert claims_of(seen.headers["txn-token"][0])["sub"] == "ada"
    assert sorted(refusals(project)) == ["links of a task are not signed", "missing_token", "wrong_payload"]


def test_an_intruder_at_the_broker_makes_a_worker_neither_run_nor_publish_a_task(
    registry: MemoryRegistry, project: Path, server: RawServer
) -> None:
    with served(registry) as url:
        run(project, "intruder.py", {**os.environ, "PYTHONPATH": str(project)})
        with worker(project, environment(registry, url, "worker", project)):
            until(lambda: len(refusals(project)) == LINKED + 2, SLOW, what="all refusals")
    assert sorted(refusals(project)) == ["links of a task are not signed"] * LINKED + ["missing_token"] * 2
    assert not (project / "refunds").exists()
    assert not list((project / "queue").iterdir())
