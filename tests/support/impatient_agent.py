"""``python -m tests.support.impatient_agent PLACE SECONDS``: an agent with few connections, and so much time for each.

PLACE is the path of a Unix socket, or HOST:PORT.
"""

import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from peerseal.agent.application import Agent
from peerseal.agent.listening import loopback_socket, unix_socket, users_of
from peerseal.agent.serving import Limits, serve
from peerseal.commands.own_identity import own_identity
from tests.support.processes import LOOPBACK, Process

LIMITS = Limits(connections=20, transfer=1)
SECRET = "0123456789abcdef" * 2
"""The secret on loopback."""
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: agent\r\n\r\n"
LAST = WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
PATIENCE = 60
"""Seconds: fewer than the agent keeps an idle connection."""


class ImpatientAgent(Process):
    """An agent that listens at a path, or on a port of loopback."""

    def __init__(
        self, place: Path | int, *, log: Path, settings: Mapping[str, str], transfer: float = LIMITS.transfer
    ) -> None:
        self.place = place
        named = str(place) if isinstance(place, Path) else f"{LOOPBACK}:{place}"
        command = [sys.executable, "-m", "tests.support.impatient_agent", named, str(transfer)]
        super().__init__("agent", command, log=log, settings=settings)

    def connection(self, sent: bytes) -> socket.socket:
        """A connection on which this was sent."""
        if isinstance(self.place, Path):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            client.connect(str(self.place))
        else:
            client = socket.create_connection((LOOPBACK, self.place), timeout=PATIENCE)
        client.sendall(sent)
        return client

    def answers(self) -> bool:
        """Whether a caller that sends a whole request is answered with 200."""
        try:
            with self.connection(LAST) as client:
                return until_closed(client).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False


def answer_on(client: socket.socket) -> bytes:
    """One answer to `WHOLE`."""
    received = b""
    while not received.endswith(b'{"ready":true}'):
        data = client.recv(65536)
        assert data, received
        received += data
    return received


def until_closed(client: socket.socket) -> bytes:
    """What the client receives until the agent closes the connection. Raises TimeoutError."""
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionError:  # the agent had not read everything
        pass
    return received


def main(place: str, transfer: str) -> None:
    on_loopback = ":" in place
    users = users_of(())
    listening = loopback_socket(place) if on_loopback else unix_socket(Path(place), users)
    with listening as listener, own_identity() as identity:
        agent = Agent(identity, allow={}, secret=SECRET if on_loopback else None)
        serve(agent, listener, None if on_loopback else users, limits=LIMITS._replace(transfer=float(transfer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
