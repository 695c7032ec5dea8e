"""A real ``peerseal agent``, and curl as the program that asks it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.processes import Process
from tests.support.waiting import until

SERVICE, CALLER = "web", "shop"
"""The service of the agents, and the one that may call it."""
ALLOW = ("--allow", f"{CALLER}=orders:read,orders:write", "--allow", f"{SERVICE}=")
"""The agents' arguments."""


@dataclass(frozen=True, slots=True)
class Said:
    """The agent's answer. ``headers`` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcome(self) -> tuple[int, str]:
        """The status and the code of a refusal."""
        return self.status, self.json["code"]


class AgentProcess(Process):
    """An agent that listens on ``path``, with these arguments besides, for the service of ``settings``."""

    def __init__(self, path: Path, *arguments: str, settings: Mapping[str, str]) -> None:
        self.path = path
        command = [sys.executable, "-m", "peerseal", "agent", "--socket", str(path), *arguments]
        super().__init__("agent", command, log=path.parent / f"{path.name}.log", settings=settings)

    def ready(self) -> Self:
        """Wait until it has a key and knows the registry."""
        until(lambda: not self.running or self.answers(), what=f"an agent at {self.path}")
        assert self.running, self.output()
        return self

    def answers(self) -> bool:
        """Whether it says that it is ready."""
        return self.path.exists() and self.ask("GET", "/healthz", may_fail=True).status == 200

    def ask(self, method: str, path: str, question: Any = None, *headers: str, may_fail: bool = False) -> Said:
        """The answer to a JSON question, or to bytes."""
        data = question if isinstance(question, bytes) or question is None else json.dumps(question).encode()
        return curl(self.path, method, path, data, *headers, may_fail=may_fail)

    def sign(self, audience: str, **request: Any) -> str:
        """The value of the header Authorization."""
        answer = self.ask("POST", "/sign", {"audience": audience, "method": "GET", "target": "/a"} | request)
        assert answer.status == 200, answer
        return str(answer.json["authorization"])

    def verify(self, authorization: str | None, **request: Any) -> Said:
        """What it says of a request with that header."""
        headers = request.pop("headers", {}) | ({} if authorization is None else {"Authorization": authorization})
        return self.ask("POST", "/verify", {"method": "GET", "target": "/a", "headers": headers} | request)


def curl(
    socket: Path,
    method: str,
    path: str,
    data: bytes | None = None,
    *headers: str,
    may_fail: bool = False,
    **options: Any,
) -> Said:
    """What curl gets. ``options`` are those of `subprocess.run`. Status 0 where it ``may_fail`` and does."""
    command = [
        curl_program(),
        "--silent",
        "--include",
        "--path-as-is",
        "--header",
        "Expect:",
        "--request",
        method,
        "--unix-socket",
        str(socket),
    ]
    for header in headers:
        command += ["--header", header]
    if data is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run(
        [*command, f"http://agent{path}"], input=data, capture_output=True, check=False, timeout=60, **options
    )
    if done.returncode != 0:
        assert may_fail, f"curl ended with {done.returncode}: {done.stderr!r}"
        return Said(0, {}, b"")
    return parsed(done.stdout)


def parsed(answer: bytes) -> Said:
    """An HTTP answer that is whole."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return Said(int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields}, body)


def curl_program() -> str:
    """Skips the test where there is no curl. In CI its absence is a failure."""
    program = shutil.which("curl")
    if program is None:
        missing = "the program curl is not installed"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return program
