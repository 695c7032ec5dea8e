"""Runs HTTPie's real ``http`` command as a person would, and parses its answer."""

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo.processes import BIN, ROOT, environment


class HttpieFailed(RuntimeError):
    """``http`` printed no HTTP response: it could not connect, or its arguments are wrong."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response. ``headers`` has lower-case names; ``command`` is what a person would type for it."""

    command: str
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON. Raises ValueError if it is no JSON."""
        return json.loads(self.text)

    @property
    def code(self) -> str | None:
        """The ``code`` of a problem document (RFC 9457); None if the answer is no problem document."""
        is_problem = self.headers.get("content-type", "").startswith("application/problem+json")
        return self.json["code"] if is_problem else None


def http(*arguments: str, timeout: float = 30) -> Answer:
    """Run ``http ARGUMENTS`` and return the response; any status is an answer. Raises HttpieFailed."""
    run = subprocess.run(
        [BIN / "http", "--ignore-stdin", "--print=hb", "--pretty=none", f"--timeout={timeout}", *arguments],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        encoding="utf-8",
        timeout=timeout + 10,
    )
    head, _, body = run.stdout.replace("\r\n", "\n").partition("\n\n")
    if not head.startswith("HTTP/"):
        raise HttpieFailed(f"http {shlex.join(arguments)}: {run.stderr.strip() or run.stdout[:500]}")
    status_line, *lines = head.split("\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer("http " + shlex.join(arguments), int(status_line.split()[1]), headers, body.strip())
