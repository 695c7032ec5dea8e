"""The registry as the SDK sees it, without a socket between."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from peerseal.errors import FetchError
from peerseal.transport.fetch import Answer
from tests.registry.driver import Driver

T = TypeVar("T")


class InProcess:
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

    def ask(
        self,
        path: str,
        read: Callable[[Answer], T | None],
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> T | None:
        return read(self.call("GET", path, headers=headers))

    def hang_up(self) -> None:
        return

    def reconnect(self) -> None:
        return
