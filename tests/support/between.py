"""A fetcher for tests that hold up, count or change calls to a registry in memory."""

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
