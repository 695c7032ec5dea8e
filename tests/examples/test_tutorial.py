"""docs/tutorial/two-services.md, from its first command to its last: each prints what the page shows.

After `make dist` the page's own commands install the wheels, in a folder that knows no checkout.
"""

import ast
import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.support.terminals import Terminal, checkout, on_free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = (ROOT / "docs/tutorial/two-services.md").read_text()
STEPS = re.findall(r"^```(sh|python|output)(?: ([^\n]+))?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
INSTALLS = re.compile(r"^(?:python3 -m venv|pip install) .*\n", re.MULTILINE)
PORTS = ("8080", "8081")
SERVERS = ("Listening at", "Running on http")
"""What the two servers of the page print once they answer."""


def value(text: str) -> object:
    """JSON, or a status and a Python dictionary, whatever the order of members. Raises ValueError for other texts."""
    if found := re.fullmatch(r"(\d{3}) (\{.*\})", text.strip()):
        return found[1], ast.literal_eval(found[2])
    return json.loads(text)


def looks_like(shown: str, printed: str) -> bool:
    """Whether a terminal printed what the page shows, where … stands for any text."""
    try:
        return value(shown) == value(printed)
    except ValueError:
        pattern = re.escape(shown.strip()).replace("…", ".+")
        return re.fullmatch(pattern, printed.strip()) is not None


def test_the_page_has_terminals_programs_and_outputs() -> None:
    kinds = [kind for kind, _, _ in STEPS]
    assert (kinds.count("python"), kinds.count("output")) == (2, 9)
    assert sum("until Ctrl-C" in name for _, name, _ in STEPS) == len(SERVERS)
    assert {name.split()[0] for kind, name, _ in STEPS if kind == "sh"} == {"first", "second", "third"}


def follow(folder: Path, texts: list[str]) -> None:
    """Types, in that folder, the blocks of the page as ``texts`` have them."""
    printed, starting = "", iter(SERVERS)
    with ExitStack() as stack:
        terminals = {name: stack.enter_context(Terminal(name, folder)) for name in ("first", "second", "third")}
        for (kind, name, _), text in zip(STEPS, texts, strict=True):
            if kind == "python":
                (folder / name).write_text(text)
            elif kind == "output":
                assert looks_like(text, printed), f"{text}\n--- printed ---\n{printed}"
            elif name.endswith("until Ctrl-C"):
                terminal = terminals[name.split()[0]]
                terminal.type(text)
                terminal.wait_until_prints(next(starting))
            else:
                printed = terminals[name.split()[0]].run(text)


def test_each_step_does_what_the_page_says(tmp_path: Path) -> None:
    texts = [INSTALLS.sub("", text) for _, _, text in STEPS]
    follow(checkout(tmp_path), on_free_ports(texts, PORTS))


@pytest.mark.dist
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_each_step_does_it_with_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(ROOT / "dist"))
    follow(tmp_path, on_free_ports([text for _, _, text in STEPS], PORTS))
    installed = {path.name for path in tmp_path.glob(".venv/lib/*/site-packages/peerseal*.dist-info")}
    assert len(installed) == 2
