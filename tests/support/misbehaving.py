"""Servers that misbehave, on real sockets."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

Behaviour = Callable[[socket.socket], None]

FAR_TOO_LONG = 60.0
"""Seconds for which a server goes on that is never given up."""
IN_TIME = 15.0
"""Seconds in which a server is given up by limits of a second and less. Far more than that, for a busy machine, and far
less than the server goes on for where the limits do not hold."""


@dataclass
class Misbehaving:
    """A server at ``url``, and how many requests it got."""

    url: str
    asked: int = 0


@contextmanager
def misbehaving(behave: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[Misbehaving]:
    """A server that does that to every connection once the request is there, to many at once."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    scheme = "http" if tls is None else "https"
    server = Misbehaving(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")

    def answer(accepted: socket.socket) -> None:
        accepted.settimeout(FAR_TOO_LONG)
        with suppress(OSError), accepted if tls is None else tls.wrap_socket(accepted, server_side=True) as connection:
            connection.recv(65536)
            server.asked += 1
            behave(connection)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def hangs(connection: socket.socket) -> None:
    """Says nothing until it is given up."""
    connection.recv(1)


def refused() -> str:
    """The URL of a port on which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def unreachable() -> Iterator[str]:
    """The URL of a port whose queue is full: connections hang."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
