"""Servers that recycle their workers: gunicorn with one worker, and uWSGI, which forks without Python's hooks."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from demo.processes import BIN, ProcessFailed, Server, free_port, gunicorn
from peerseal.protocol.documents.key_set import ACTIVE
from tests.support.load import get
from tests.support.patient import PatientRegistry, served
from tests.support.servers import uwsgi_with
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

APP = "tests.support.callee:create_app()"
CALLS = 40
REQUESTS_OF_A_WORKER = 5
RECYCLED = CALLS // REQUESTS_OF_A_WORKER // 2
"""The worker is replaced more often than this, however many requests it still serves while it ends."""


@pytest.fixture
def registry() -> Iterator[PatientRegistry]:
    with PatientRegistry() as registry:
        yield registry


class Callee:
    """The callee's settings, its server once it was started, and a caller in this process."""

    def __init__(self, registry: PatientRegistry, url: str, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        self.settings = {
            "PEERSEAL_SERVICE": "callee",
            "PEERSEAL_REGISTRY_URL": url,
            "PEERSEAL_JOIN_TOKEN": registry.join_token("callee"),
            "PEERSEAL_KEY_DIR": str(folder / "keys"),
            "PEERSEAL_CACHE_DIR": str(folder / "cache"),
        }
        self.caller = registry.identity("client-service")
        self.stack = ExitStack()

    def serve(self, server: Server) -> Server:
        return self.stack.enter_context(server).wait_until_answers(f"{server.url}/my-public-credentials")

    def call(self, server: Server, number: int) -> tuple[int, str | None]:
        """Status and code. A worker that is being replaced cuts connections that it has not read from."""
        for _ in range(20):
            token = self.caller.sign_request("callee", method="GET", target=f"/x/{number}")
            with suppress(OSError, HTTPException):
                status, body = get(f"{server.url}/x/{number}", {"Authorization": f"Bearer {token}"})
                return status, json.loads(body).get("code")
            time.sleep(0.1)
        raise ProcessFailed(f"no answer:\n{server.output()[-3000:]}")

    def calls(self, server: Server, times: int = CALLS) -> Counter[tuple[int, str | None]]:
        return Counter(self.call(server, number) for number in range(times))

    def states(self) -> list[str]:
        return [key.state for key in self.registry.jwk_set("callee").keys]


@pytest.fixture
def callee(registry: PatientRegistry, tmp_path: Path) -> Iterator[Callee]:
    with served(registry) as url:
        callee = Callee(registry, url, tmp_path)
        with callee.stack:
            yield callee


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_the_only_worker_of_gunicorn_is_recycled_and_its_successors_go_on_with_the_key(
    callee: Callee, preload: bool
) -> None:
    log = callee.folder / "log"
    options = {"workers": 1, "threads": 1, "preload": preload, "max_requests": REQUESTS_OF_A_WORKER}
    server = callee.serve(
        gunicorn("callee", APP, port=free_port(), log=log, settings=callee.settings, **options)  # type: ignore[arg-type]
    )
    assert callee.calls(server) == {(200, None): CALLS}
    assert server.output().count("Booting worker") > RECYCLED, "a worker that ends still serves what it has accepted"
    assert callee.states() == [ACTIVE], "one key for all workers"
    server.stop()
    assert callee.states() == [ACTIVE], "a restart goes on with it"


def need_uwsgi() -> None:
    if not (BIN / "uwsgi").exists():
        why = "needs uWSGI: the package pyuwsgi"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


UWSGI = {
    "prefork": ("--enable-threads",),
    "prefork without threads": (),
    "lazy": ("--lazy-apps", "--enable-threads"),
    "lazy without threads": ("--lazy-apps",),
    "hooks in the child": ("--enable-threads", "--py-call-osafterfork"),
    "hooks": ("--enable-threads", "--py-call-uwsgi-fork-hooks"),
}
QUICK = "prefork"


@pytest.mark.parametrize(
    "options",
    [pytest.param(UWSGI[name], id=name, marks=[] if name == QUICK else [pytest.mark.thorough]) for name in UWSGI],
)
class TestUwsgi:
    @pytest.fixture
    def server(self, callee: Callee, options: tuple[str, ...]) -> Server:
        need_uwsgi()
        (callee.folder / "reload").touch()
        recycling = ["--max-requests", str(REQUESTS_OF_A_WORKER), "--min-worker-lifetime", "1"]
        reloading = ["--touch-workers-reload", str(callee.folder / "reload"), "--worker-reload-mercy", "10"]
        options = (*options, *recycling, *reloading)
        return callee.serve(uwsgi_with(APP, *options, log=callee.folder / "log", settings=callee.settings))

    def test_recycled_workers_verify_and_end_by_themselves(self, callee: Callee, server: Server) -> None:
        ends = time.monotonic() + 30
        while server.output().count("Respawned uWSGI worker") < 4:
            assert callee.calls(server, 8) == {(200, None): 8}
            assert time.monotonic() < ends
        assert "mercy" not in killed(server), "no worker had to be killed"
        assert callee.states() == [ACTIVE]

    @pytest.mark.thorough
    def test_a_reload_of_all_workers_and_the_stop_take_no_worker_by_force(self, callee: Callee, server: Server) -> None:
        assert callee.calls(server, 8) == {(200, None): 8}
        before = server.output().count("spawned uWSGI worker")
        os.utime(callee.folder / "reload", (time.time() + 5, time.time() + 5))
        until(lambda: server.output().count("spawned uWSGI worker") >= before + 2)
        assert callee.calls(server, 8) == {(200, None): 8}
        began = time.monotonic()
        server.stop(grace=30)
        assert server.exit_code is not None
        assert server.exit_code >= 0, "it ended by itself"
        assert time.monotonic() - began < 20
        assert "mercy" not in killed(server)
        assert callee.states() == [ACTIVE]

    @pytest.mark.thorough
    def test_a_revocation_reaches_every_worker(self, callee: Callee, server: Server, options: tuple[str, ...]) -> None:
        assert callee.calls(server, 8) == {(200, None): 8}
        callee.registry.revoke(callee.caller.credentials.key_id)
        until(lambda: set(callee.calls(server, 8)) == {(401, "revoked_key")})

    def test_no_thread_runs_in_the_master_which_forks_without_the_interpreters_lock(
        self, callee: Callee, server: Server, options: tuple[str, ...]
    ) -> None:
        """A worker that is forked while another thread holds the lock waits for it for ever."""
        assert callee.calls(server, 8) == {(200, None): 8}
        assert len(os.listdir(f"/proc/{server.pid}/task")) == 1

    def test_each_worker_starts_its_threads_when_it_is_forked(
        self, callee: Callee, server: Server, options: tuple[str, ...]
    ) -> None:
        """Only one of them has been called."""
        master = f"/proc/{server.pid}/task/{server.pid}/children"
        workers = [Path("/proc") / pid / "task" for pid in Path(master).read_text().split()]
        assert len(workers) == 2
        until(lambda: all(len(list(tasks.iterdir())) > 1 for tasks in workers))

    @pytest.mark.thorough
    def test_without_threads_the_log_names_the_option(
        self, callee: Callee, server: Server, options: tuple[str, ...]
    ) -> None:
        callee.calls(server, 2)
        assert ("uWSGI runs without --enable-threads" in server.output()) == ("--enable-threads" not in options)


def killed(server: Server) -> str:
    """The lines in which uWSGI says that it killed a worker that did not end in time."""
    return "\n".join(re.findall(r".*(?:mercy|SIGKILL|brutal).*", server.output().partition("spawned uWSGI")[2]))
