"""A TCP port that leads to one of two servers, by the client's address."""

import socket
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress


@contextmanager
def two_faced(port: int, other: int, addresses: Set[str]) -> Iterator[str]:
    """The URL at which clients of these addresses reach the port ``other``, and all others ``port``."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, (address, _) = listener.accept()
                threading.Thread(target=_passed_on, args=(client, other if address in addresses else port)).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _passed_on(client: socket.socket, port: int) -> None:
    with client, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        back = threading.Thread(target=_copied, args=(server, client))
        back.start()
        _copied(client, server)
        back.join()


def _copied(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
