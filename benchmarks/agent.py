"""What the agent adds to signing and verifying a request: both over its Unix socket, and both in one process."""

import json
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.figures import Figure, Goal
from benchmarks.timing import Contender, each, interleaved
from demo.processes import Process
from demo.stack import Stack
from peerseal import FileReplayGuard, Identity, TrustLimits, Verifier

ROUNDS = 25
BATCH = 40
LIMIT = 300
"""Microseconds that both calls together may add."""

_SERVICE = "agents-host"
_OVER_THE_SOCKET = "signing and verifying over the agent's Unix socket"
_HERE = "the same in one process"


def measure(stack: Stack, folder: Path) -> Iterator[Figure]:
    """The figure. The service calls itself with RS256, and the guard is the host's in both cases."""
    folder.mkdir(mode=0o700)
    settings = {
        "PEERSEAL_SERVICE": _SERVICE,
        "PEERSEAL_REGISTRY_URL": stack.registry_url,
        "PEERSEAL_KEY_DIR": str(folder / "keys"),
        "PEERSEAL_JOIN_TOKEN": stack.join_token(_SERVICE),
        "PEERSEAL_AUDIT": "0",
    }
    path = folder / "run" / "agent.sock"
    command = [sys.executable, "-m", "peerseal", "agent", "--socket", str(path), "--allow", f"{_SERVICE}=read"]
    with Process("agent", command, log=folder / "log", settings=settings) as agent:
        agent.wait_until_prints("listens on")
        identity = Identity(
            _SERVICE,
            registry=stack.registry_url,
            key_dir=folder / "keys",
            limits=TrustLimits(poll_interval=3600),
        ).start()
        with _Asked(path) as asked:
            contenders = {_HERE: _here(identity, folder), _OVER_THE_SOCKET: each(asked.sign_and_verify)}
            timings = interleaved(contenders, (range(BATCH) for _ in range(ROUNDS)))
        identity.stop()
    adds = timings.micros(_OVER_THE_SOCKET) - timings.micros(_HERE)
    against = f"{_HERE}: {timings.micros(_HERE):.0f} µs"
    yield Figure(f"{_OVER_THE_SOCKET}, adds", adds, "µs", against, None, Goal("≤", LIMIT, "µs"))


def _here(identity: Identity, folder: Path) -> Contender[int]:
    guard = FileReplayGuard(folder / "guard")
    verifier = Verifier(identity.trust, audience=_SERVICE, allow={_SERVICE: {"read"}}, replay=guard)

    def sign_and_verify(number: int) -> None:
        target = f"/orders/{number}"
        token = identity.sign_request(_SERVICE, method="GET", target=target)
        verifier.verify(token, method="GET", target=target, scope="read")

    return each(sign_and_verify)


class _Asked:
    """The agent, asked over one connection by a program that does no more than it must."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))

    def __enter__(self) -> "_Asked":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def sign_and_verify(self, number: int) -> None:
        """One token is signed and verified."""
        request = {"method": "GET", "target": f"/orders/{number}"}
        signed = self._ask("/sign", request | {"audience": _SERVICE})
        self._ask("/verify", request | {"headers": {"authorization": signed["authorization"]}, "scope": "read"})

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
