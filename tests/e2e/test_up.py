"""``make up``: what it prints is typed in another terminal, as it stands."""

import json
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.processes import ROOT, environment
from tests.support.brokers import eventually
from tests.support.httpie import http
from tests.support.processes import Process

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LEFT_OUT = ("demo.console_client", "# refused")
"""A line that opens a browser, and one that is printed as an example of a refusal."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The lines to try, while everything runs."""
    log = tmp_path_factory.mktemp("up") / "up.log"
    with Process("up", [sys.executable, "-m", "demo.up"], log=log) as up:
        up.wait_until_prints("The broker is at")
        yield [line.strip() for line in up.output().splitlines() if re.match(r"  [^# ]", line)]


def typed(lines: list[str], folder: Path) -> str:
    """What the lines print in a terminal. An answer that is an error, and any other failure, ends them."""
    (folder / "config.json").write_text('{"default_options": ["--check-status"]}')
    _, terminal = pty.openpty()
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", "\n".join(lines)],
        cwd=ROOT,
        env=environment({"HTTPIE_CONFIG_DIR": str(folder)}),
        stdin=terminal,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_line_works_as_it_is_printed(printed: list[str], tmp_path: Path) -> None:
    lines = [line for line in printed if not any(mark in line for mark in LEFT_OUT)]
    assert len(lines) > 20
    typed(lines, tmp_path)


def test_the_order_of_the_program_without_the_sdk_is_invoiced(printed: list[str], tmp_path: Path) -> None:
    exports = [line for line in printed if line.startswith("export ")]
    (login,) = (line for line in printed if line.startswith("TOKEN="))
    first = next(index for index, line in enumerate(printed) if line.startswith("ORDER="))
    order = typed([*exports, login, *printed[first : first + 4], "echo t-$ORDER"], tmp_path).split()[-1]

    (invoices,) = {line for line in printed if "/invoices" in line}
    token = typed([*exports, login, "echo $TOKEN"], tmp_path).strip()
    url = invoices.split()[1]

    def amounts() -> dict[str, int]:
        found = http(url, f"Authorization:Bearer {token}").json["invoices"]
        return {invoice["transactionID"]: invoice["amount"] for invoice in found}

    eventually(lambda: amounts().get(order) == 500, "an invoice for the order that legacy-shop published")


def test_the_index_has_no_character_that_json_escapes(printed: list[str]) -> None:
    (line,) = {line for line in printed if "/my-public-credentials" in line}
    answer = http(line.split()[1].removesuffix("my-public-credentials"))
    shown = json.loads(answer.text)
    for text in [shown["login"], *shown["exchange"], *(route["try"] for route in shown["routes"])]:
        assert json.dumps(text) == f'"{text}"'
