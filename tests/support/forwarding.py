"""A TCP port that stands for a server on a socket file, as PostgreSQL's is in the tests, or on another port."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def forwarded(path: Path | int, host: str = "127.0.0.1", *, silent: threading.Event | None = None) -> Iterator[int]:
    """The port on ``host`` at which the server on the socket file, or on that port of 127.0.0.1, answers; while
    ``silent`` is set every byte is lost, and connections are neither refused nor ended, as by a host that is gone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)

    def serve() -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = listener.accept()
                server = _connected(path)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=_copy, args=(source, target, silent), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _connected(path: Path | int) -> socket.socket:
    if isinstance(path, int):
        return socket.create_connection(("127.0.0.1", path))
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(path))
    return server


def _copy(source: socket.socket, target: socket.socket, silent: threading.Event | None) -> None:
    with suppress(OSError):
        while received := source.recv(65536):
            if silent is None or not silent.is_set():
                target.sendall(received)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
