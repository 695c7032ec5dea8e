"""The output of the demo and its checks: an unexpected answer ends the demo."""

import json
import re
import sys
import textwrap
import time

from demo.httpie import Answer, http

_LONG = re.compile(r"[A-Za-z0-9_.+/-]{72,}")
_STYLES = {"title": "1", "command": "36", "good": "32", "bad": "31;1", "faint": "2"}


class Unexpected(AssertionError):
    """An answer differs from the expected one."""


class Show:
    """Numbered scenes on standard output, in colour on a terminal."""

    def __init__(self) -> None:
        self._scene = 0
        self._seen = 0
        self._began = time.monotonic()

    def scene(self, title: str, explanation: str = "") -> None:
        """Begin a scene."""
        self._scene += 1
        self._print("title", f"\n{self._scene}. {title}")
        for line in textwrap.wrap(explanation, 110):
            self._print("faint", f"   {line}")

    def call(self, *arguments: str, status: int, code: str | None = None, title: str = "") -> Answer:
        """Run ``http ARGUMENTS``, print command and answer, and check status and problem ``code``.

        Raises Unexpected.
        """
        answer = http(*arguments)
        if title:
            print(f"   {title}")
        self._print("command", textwrap.indent(f"$ {shorten(answer.command)}", "   "))
        reason = f"HTTP {answer.status}"
        print(textwrap.indent(f"{reason}\n{pretty(answer)}", "     "))
        self.expect(
            answer.status == status and answer.code == code, f"{status}{f' {code}' if code else ''}", show=bool(code)
        )
        return answer

    def expect(self, holds: bool, what: str, *, show: bool = True) -> None:
        """Check that ``holds``. Raises Unexpected."""
        if not holds:
            self._print("bad", f"   ✗ expected: {what}")
            raise Unexpected(what)
        self._seen += 1
        if show:
            self._print("good", f"   ✓ {what}")

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"   {text}", flush=True)

    def end(self) -> None:
        """Print the closing line."""
        seconds = time.monotonic() - self._began
        self._print("title", f"\nAll {self._seen} expectations held, in {seconds:.0f} s.")

    def _print(self, style: str, text: str) -> None:
        colour = sys.stdout.isatty()
        print(f"\033[{_STYLES[style]}m{text}\033[0m" if colour else text, flush=True)


def shorten(text: str) -> str:
    """``text`` with long base64 texts (keys and tokens) shortened in the middle."""
    return _LONG.sub(lambda run: f"{run[0][:36]}…{run[0][-8:]}", text)


def pretty(answer: Answer) -> str:
    """The body of an answer, JSON indented."""
    if "json" not in answer.headers.get("content-type", ""):
        return shorten(answer.text)
    return shorten(json.dumps(answer.json, indent=2, ensure_ascii=False))


def bearer(token: str) -> str:
    """The HTTPie argument that sends ``token``."""
    return f"Authorization:Bearer {token}"
