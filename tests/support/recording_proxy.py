"""An HTTP proxy on loopback that keeps every byte it is sent, and connects to nobody.

A plain request is answered by the proxy itself; of a ``CONNECT`` it says that the tunnel is there, and reads on.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PROXY_SETTINGS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""Which each have a lower-case form, that goes first."""


@dataclass
class RecordingProxy:
    """At ``url``. ``answer`` is what a plain request gets."""

    url: str
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    connections: list[bytearray] = field(default_factory=list)

    @property
    def seen(self) -> bytes:
        """All that it was ever sent."""
        return b"\n".join(bytes(one) for one in self.connections)

    @property
    def asked(self) -> list[str]:
        """The first line of each connection, without the version."""
        lines = [bytes(one).partition(b"\r\n")[0] for one in self.connections]
        return [line.rpartition(b" ")[0].decode("latin-1") for line in lines]

    def serve(self, connection: socket.socket) -> None:
        """Reads until the other side is done or silent."""
        kept = bytearray()
        self.connections.append(kept)
        connection.settimeout(1)
        answered = False
        with suppress(OSError), connection:
            while piece := connection.recv(1 << 16):
                kept += piece
                if not answered and b"\r\n\r\n" in kept:
                    answered = True
                    tunnel = kept.startswith(b"CONNECT ")
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" if tunnel else self.answer)
                elif answered:
                    return  # the beginning of TLS: there is nobody to speak it with


@contextmanager
def recording_proxy() -> Iterator[RecordingProxy]:
    """One that runs."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    proxy = RecordingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=proxy.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
