"""The registry as the SDK sees it, without a socket between."""

from collections.abc import Mapping

from peerseal.errors import FetchError
from peerseal.transport.fetch import Answer, Fetcher
from tests.registry.driver import Driver


class InProcess(Fetcher):
    """A Fetcher that calls the registry without a socket between."""

    def __init__(self, registry: Driver) -> None:
        self._registry = registry
        self.calls = 0

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        self.calls += 1
        answer = self._registry.client.open(path, method=method, data=body, headers=dict(headers or {}))
        if answer.status_code in (502, 504):
            raise FetchError("a broken gateway", answer.status_code)
        return Answer(answer.status_code, answer.data, {name.lower(): value for name, value in answer.headers.items()})
