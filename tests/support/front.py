"""A proxy in front of a Flask application: what a client reaches under the external URL of a service."""

from collections.abc import Mapping

from flask import Flask

from peerseal.testing import Answer
from peerseal.transport.fetch import Fetcher


class Front(Fetcher):
    """Sends each call on to ``app``, without the path ``strip`` at its beginning, and without the headers ``drop``."""

    def __init__(self, app: Flask, *, strip: str = "", drop: frozenset[str] = frozenset()) -> None:
        self._client = app.test_client()
        self._strip = strip
        self._drop = drop

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See Fetcher."""
        passed = {name: value for name, value in (headers or {}).items() if name not in self._drop}
        answer = self._client.open(path.removeprefix(self._strip) or "/", method=method, data=body, headers=passed)
        return Answer(answer.status_code, answer.data, {name.lower(): value for name, value in answer.headers})

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path
