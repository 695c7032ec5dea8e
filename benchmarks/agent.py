"""What the agent adds to signing a request, and to verifying one: over its Unix socket, and in one process."""

import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, Goal
from benchmarks.timing import Contender, each, interleaved
from demo.processes import Process
from demo.stack import Stack
from peerseal import FileReplayGuard, Identity, TrustLimits, Verifier

ROUNDS = 25
BATCH = 40
LIMIT = 300
"""Microseconds that a call may add."""

_SERVICE = "agents-host"
_OF_AGENT = "over the agent's Unix socket"
_HERE = "in one process"


def measure(stack: Stack, folder: Path) -> Iterator[Figure]:
    """The figures. The service calls itself with RS256, and a host's guard on a tmpfs in both cases."""
    folder.mkdir(mode=0o700)
    with TemporaryDirectory(dir="/dev/shm") as guards:
        yield from _measure(stack, folder, Path(guards))


def _measure(stack: Stack, folder: Path, guards: Path) -> Iterator[Figure]:
    settings = {
        "PEERSEAL_SERVICE": _SERVICE,
        "PEERSEAL_REGISTRY_URL": stack.registry_url,
        "PEERSEAL_KEY_DIR": str(folder / "keys"),
        "PEERSEAL_JOIN_TOKEN": stack.join_token(_SERVICE),
        "PEERSEAL_AUDIT": "0",
        "PEERSEAL_REPLAY_DIR": str(guards / "agent"),
    }
    path = folder / "run" / "agent.sock"
    command = [sys.executable, "-m", "peerseal", "agent", "--socket", str(path), "--allow", f"{_SERVICE}=read"]
    with Process("agent", command, log=folder / "log", settings=settings) as agent:
        agent.wait_until_prints("listens on")
        quiet = TrustLimits(poll_interval=3600)
        identity = Identity(_SERVICE, registry=stack.registry_url, key_dir=folder / "keys", limits=quiet).start()
        with _Asked(path) as asked:
            contenders = _contenders(identity, FileReplayGuard(guards / "here"), asked)
            timings = interleaved(contenders, (range(BATCH) for _ in range(ROUNDS)))
        identity.stop()
    for call in ("signing", "verifying"):
        here, there = timings.micros(f"{call} {_HERE}"), timings.micros(f"{call} {_OF_AGENT}")
        against = f"{call} {_HERE}: {here:.0f} µs"
        yield Figure(f"{call} {_OF_AGENT}, adds", there - here, "µs", against, there / here, Goal("≤", LIMIT, "µs"))


def _contenders(identity: Identity, guard: FileReplayGuard, asked: "_Asked") -> dict[str, Contender[int]]:
    verifier = Verifier(identity.trust, audience=_SERVICE, allow={_SERVICE: {"read"}}, replay=guard)

    def sign(number: int) -> str:
        return identity.sign_request(_SERVICE, method="GET", target=f"/orders/{number}")

    def verify(number: int, token: str) -> None:
        verifier.verify(token, method="GET", target=f"/orders/{number}", scope="read")

    def of_signed(call: Callable[[int, str], None]) -> Contender[int]:
        def prepare(batch: Sequence[int]) -> Callable[[], None]:
            signed = [(number, sign(number)) for number in batch]

            def run() -> None:
                for number, token in signed:
                    call(number, token)

            return run

        return prepare

    return {
        f"signing {_HERE}": each(sign),
        f"signing {_OF_AGENT}": each(asked.sign),
        f"verifying {_HERE}": of_signed(verify),
        f"verifying {_OF_AGENT}": of_signed(asked.verify),
    }


class _Asked:
    """The agent, asked over one connection by a program that does no more than it must."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))

    def __enter__(self) -> "_Asked":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def sign(self, number: int) -> None:
        """A token for one request."""
        self._ask("/sign", {"audience": _SERVICE, "method": "GET", "target": f"/orders/{number}"})

    def verify(self, number: int, token: str) -> None:
        """The caller of one request."""
        self._ask("/verify", {"token": token, "method": "GET", "target": f"/orders/{number}", "scope": "read"})

    def _ask(self, path: str, question: Mapping[str, object]) -> dict[str, str]:
        body = json.dumps(question).encode()
        self._connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        answer = self._connection.recv(65536)
        head, _, content = answer.partition(b"\r\n\r\n")
        while not content.endswith(b"}"):
            content += self._connection.recv(65536)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the agent answered {answer!r}")
        answered: dict[str, str] = json.loads(content)
        return answered
