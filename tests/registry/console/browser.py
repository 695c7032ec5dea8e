"""A browser without scripts: follows links, fills in forms, and keeps cookies, as an operator does."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

from werkzeug.test import TestResponse

from tests.registry.driver import Driver

_HIDDEN = re.compile(r'name="(csrf_token|form)" value="([^"]+)"')


class Browser:
    """The browser of one person at that registry. ``page`` is what it shows."""

    def __init__(self, registry: Driver) -> None:
        self.client = registry.app.test_client()
        self.page = ""

    def open(self, path: str, **query: Any) -> TestResponse:
        """Shows a page, after redirects."""
        return self._shown(self.client.get(path, query_string=query or None, follow_redirects=True))

    def send(self, path: str, *, follow: bool = True, **fields: str) -> TestResponse:
        """Sends a form of the page that is shown, with the hidden fields in it, and may follow the redirect after
        it."""
        hidden = {name: unescape(value) for name, value in _HIDDEN.findall(self.page)}
        data = {"csrf_token": "", **hidden, **fields}
        return self._shown(self.client.post(path, data=data, follow_redirects=follow))

    def sign_in(self, token: str, *, follow: bool = True) -> TestResponse:
        """Signs in, as an operator with that token."""
        self.open("/console/sign-in")
        return self.send("/console/sign-in", follow=follow, token=token)

    def text(self) -> str:
        """The words of the page, with single blanks."""
        reader = _Words()
        reader.feed(self.page)
        return " ".join(" ".join(reader.words).split())

    def _shown(self, answer: TestResponse) -> TestResponse:
        self.page = answer.get_data(as_text=True)
        return answer


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)
