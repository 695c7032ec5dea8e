"""One service in many processes, as pre-forking servers run it: real forks, real kills, a registry on a real socket."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from peerseal import Identity, Peer, RotationSchedule, TrustLimits, Verifier
from peerseal.errors import PeersealError, Replayed
from peerseal.protocol.documents.key_set import ACTIVE, RETIRED
from peerseal.runtime.forks import BackgroundWork
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import Child, in_children, served
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("quiet_collector")

WORKERS = 4
REGISTRATION = "POST /v1/services/client/keys"
FAST = RotationSchedule(every=0.3, lead=0.1, overlap=0.1)
FOLLOWING = TrustLimits(poll_interval=0.02)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def url(registry: MemoryRegistry) -> Iterator[str]:
    with served(registry) as url:
        yield url


Make = Callable[..., Identity]


@pytest.fixture
def make(registry: MemoryRegistry, url: str, tmp_path: Path) -> Iterator[Make]:
    """An identity of the service ``client``, not started, over HTTP; what this process started it stops."""
    made: list[Identity] = []
    token = registry.join_token("client", uses=1)

    def make(**options: object) -> Identity:
        folders = {"key_dir": tmp_path / "keys", "cache_dir": tmp_path / "cache"}
        shared = {"join_token": token, **folders, "alg": "ES256", "retire_at_exit": True}
        made.append(Identity("client", registry=url, **shared | options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for identity in made:
        identity.stop()


def states(registry: MemoryRegistry) -> list[str]:
    """The states of the client's keys, oldest first."""
    return [key.state for key in registry.jwk_set("client").keys]


def verifier(identity: Identity) -> Verifier:
    """One that lets the service call itself, with what the workers of a host share."""
    return Verifier(identity.trust, audience="client", allow={"client": ()}, replay=identity.replay_guard())


def call(identity: Identity, callee: Verifier) -> Peer:
    token = identity.sign_request("client", method="GET", target="/")
    return callee.verify(token, method="GET", target="/")


class Pipe:
    """Lets one process wait for another."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def tell(self) -> None:
        os.write(self._writer, b".")

    def wait(self) -> None:
        os.read(self._reader, 1)


@pytest.mark.parametrize("folder", ["shared", "none"])
def test_workers_forked_after_the_start_share_its_key_and_end_without_retiring_it(
    registry: MemoryRegistry, make: Make, folder: str
) -> None:
    master = (make() if folder == "shared" else make(key_dir=None)).start()
    callee = verifier(master)

    def work(_: int) -> str:
        kid = call(master, callee).kid
        master.stop()  # as atexit does in a worker that is recycled
        return kid

    for _ in range(3):
        assert in_children(WORKERS, work) == [master.credentials.key_id] * WORKERS
    assert (states(registry), registry.calls[REGISTRATION]) == ([ACTIVE], 1)
    call(master, callee)
    master.stop()
    assert states(registry) == [RETIRED]


def test_workers_forked_before_the_start_register_one_key_among_them(registry: MemoryRegistry, make: Make) -> None:
    identity = make()
    go = [Pipe() for _ in range(WORKERS)]

    def work(number: int) -> str:
        identity.start()
        go[number].wait()
        kid = call(identity, verifier(identity)).kid
        identity.stop()
        return kid

    children = [Child(lambda number=number: work(number)) for number in range(WORKERS)]
    for pipe in go:
        pipe.tell()
    assert len({child.result() for child in children}) == 1
    assert (states(registry), registry.calls[REGISTRATION]) == ([RETIRED], 1)


def test_the_same_token_sent_to_all_workers_at_once_is_accepted_once(registry: MemoryRegistry, make: Make) -> None:
    master = make().start()
    callee = verifier(master)
    call(master, callee)  # so that the workers inherit an opened guard and a filled cache
    tokens = [master.sign_request("client", method="GET", target="/") for _ in range(50)]

    def work(_: int) -> list[bool]:
        accepted = []
        for token in tokens:
            try:
                callee.verify(token, method="GET", target="/")
                accepted.append(True)
            except Replayed:
                accepted.append(False)
        return accepted

    for answers in zip(*in_children(WORKERS, work), strict=True):
        assert sorted(answers) == [False] * (WORKERS - 1) + [True]


def test_workers_come_and_go_while_keys_rotate_and_no_call_is_refused(registry: MemoryRegistry, make: Make) -> None:
    master = make(rotation=FAST, limits=FOLLOWING).start()
    callee = verifier(master)
    deadline = time.monotonic() + 2.5

    def work() -> int:
        calls = 0
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            call(master, callee)
            calls += 1
        master.stop()
        return calls

    calls = 0
    while calls <= 100 or time.monotonic() < deadline:  # on a busy machine it takes longer
        calls += sum(child.result() for child in [Child(work) for _ in range(2)])
    assert calls > 100
    assert len(states(registry)) >= 4
    assert states(registry)[-1] == ACTIVE


def test_a_worker_forked_while_a_rotation_is_under_way_holds_up_no_later_one(
    registry: MemoryRegistry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork waited long enough for it. The child inherits the descriptor that is locked, and lives on."""
    monkeypatch.setattr(BackgroundWork, "PATIENCE", 0.1)
    make(rotation=RotationSchedule(every=0.2, lead=0.1, overlap=0.1)).start()
    under_way, go_on = threading.Event(), threading.Event()
    answer = registry.endpoints.right

    def slow(*arguments: object) -> object:
        under_way.set()
        go_on.wait(10)
        return answer(*arguments)  # type: ignore[arg-type]

    registry.endpoints.right = slow  # type: ignore[assignment,method-assign]
    assert under_way.wait(10)
    worker = Child(lambda: time.sleep(60))
    registry.endpoints.right = answer  # type: ignore[method-assign]
    go_on.set()
    try:
        registered = registry.calls[REGISTRATION]
        until(lambda: registry.calls[REGISTRATION] > registered + 1)
    finally:
        worker.kill()


def test_a_killed_worker_takes_nothing_with_it(registry: MemoryRegistry, make: Make) -> None:
    master = make().start()
    ready = Pipe()

    def work() -> None:
        call(master, verifier(master))
        ready.tell()
        time.sleep(60)

    worker = Child(work)
    ready.wait()
    worker.kill()
    assert states(registry) == [ACTIVE]
    call(master, verifier(master))
    master.stop()
    assert states(registry) == [RETIRED]


def test_workers_outlive_a_killed_master_and_go_on_rotating(
    registry: MemoryRegistry, make: Make, tmp_path: Path
) -> None:
    identity = make(rotation=FAST)
    ready, leave = Pipe(), Pipe()
    pids = tmp_path / "worker"

    def be_the_master() -> None:
        identity.start()
        worker = os.fork()
        if worker == 0:
            pids.write_text(str(os.getpid()))
            ready.tell()
            leave.wait()
            identity.stop()
            os._exit(0)
        time.sleep(60)

    master = Child(be_the_master)
    ready.wait()
    master.kill()
    worker = int(pids.read_text())
    try:
        registered = registry.calls[REGISTRATION]
        until(lambda: registry.calls[REGISTRATION] >= registered + 2)
        leave.tell()
        until(lambda: ACTIVE not in states(registry))
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_a_worker_follows_changes_with_a_thread_of_its_own(registry: MemoryRegistry, make: Make) -> None:
    master = make(limits=FOLLOWING).start()
    callee = verifier(master)
    kid = call(master, callee).kid
    ready = Pipe()

    def work() -> bool:
        call(master, callee)
        ready.tell()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                call(master, callee)
            except PeersealError as error:
                return error.code == "revoked_key"
        return False

    workers = [Child(work) for _ in range(WORKERS)]
    for _ in workers:
        ready.wait()
    registry.revoke(kid)
    assert [worker.result() for worker in workers] == [True] * WORKERS


SERVER = """
import os, sys, time
import peerseal

identity = peerseal.Identity.from_env().start()
kids = {identity.credentials.key_id}
for generation in range(2):
    workers = []
    for _ in range(3):
        worker = os.fork()
        if worker == 0:
            token = identity.sign_request("client", method="GET", target="/")
            sys.exit(0 if identity.credentials.key_id in kids and token else 1)  # atexit runs here too
        workers.append(worker)
    assert all(os.waitpid(worker, 0)[1] == 0 for worker in workers)
print(*kids, flush=True)
sys.stdin.read()
"""


def test_a_real_server_whose_workers_end_by_sys_exit(registry: MemoryRegistry, url: str, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(tmp_path),
        "PEERSEAL_SERVICE": "client",
        "PEERSEAL_REGISTRY_URL": url,
        "PEERSEAL_JOIN_TOKEN": registry.join_token("client"),
    }
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        kid = server.stdout.readline().strip()
        assert [(key.kid, key.state) for key in registry.jwk_set("client").keys] == [(kid, ACTIVE)]
        server.stdin.close()
        assert server.wait(30) == 0
    assert states(registry) == [RETIRED]
    assert list(tmp_path.iterdir()) == []
