"""A small TCP balancer: it asks each node's /readyz, and gives a new connection to the next node that is ready."""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support.processes import LOOPBACK, status_of

LOOK_EVERY = 0.1
"""Seconds between two looks at a node's readiness."""


class Balancer:
    """Balances between the nodes at ``urls``. It makes no second attempt, and looks into no byte: a call that a node
    fails is a call that fails."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._nodes = [(urlsplit(url).hostname or LOOPBACK, urlsplit(url).port or 0) for url in urls]
        self._ready: set[int] = set()
        self._turn = count()
        self._done = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=256)
        self.url = f"http://{LOOPBACK}:{self._listener.getsockname()[1]}"
        looks = [threading.Thread(target=self._look, args=[node]) for node in range(len(urls))]
        self._threads = [*looks, threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    @property
    def ready(self) -> int:
        """How many nodes are ready."""
        return len(self._ready)

    def _look(self, node: int) -> None:
        host, port = self._nodes[node]
        while not self._done.wait(LOOK_EVERY):
            if status_of(f"http://{host}:{port}/readyz", timeout=2) == 200:
                self._ready.add(node)
            else:
                self._ready.discard(node)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            ready = sorted(self._ready)
            if not ready:
                return
            with suppress(OSError), socket.create_connection(self._nodes[ready[next(self._turn) % len(ready)]]) as node:
                back = threading.Thread(target=_pump, args=[node, client], daemon=True)
                back.start()
                _pump(client, node)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes bytes on until the source ends, and then its end."""
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
