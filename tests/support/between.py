"""A fetcher for tests that hold up, count or change calls to a registry in memory."""

import threading
from collections.abc import Callable, Mapping

from peerseal.testing import Answer, MemoryRegistry
from peerseal.transport.fetch import Fetcher


class Between(Fetcher):
    """A fetcher that does something of the test's before each call that it passes on."""

    def __init__(self, registry: MemoryRegistry, before: Callable[[str], None]) -> None:
        self._registry = registry
        self._before = before

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        self._before(path)
        return self._registry.call(method, path, body=body, headers=headers)


class Gate:
    """Holds up each call to ``path`` until `open`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open, self._reached = threading.Event(), threading.Event()

    def hold(self, path: str) -> None:
        """For `Between`, before each call."""
        if path == self._path:
            self._reached.set()
            assert self._open.wait(10)

    def wait_until_reached(self) -> None:
        """Wait for the first call that is held up."""
        assert self._reached.wait(10)

    def open(self) -> None:
        """Let all calls pass from now on."""
        self._open.set()
