"""docs/tutorial/two-services.md, from its first command to its last: each prints what the page shows."""

import ast
import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.support.terminals import checkout, on_free_ports, run, typed

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = (ROOT / "docs/tutorial/two-services.md").read_text()
STEPS = re.findall(r"^```(sh|python|output)(?: ([^\n]+))?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
READY = {"registry": "Listening at", "billing": "Running on http"}


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


def test_the_page_has_servers_programs_and_outputs() -> None:
    kinds = [kind for kind, _, _ in STEPS]
    assert (kinds.count("python"), kinds.count("output")) == (2, 9)
    assert [name.split()[1] for kind, name, _ in STEPS if kind == "sh" and name] == list(READY)


def test_each_step_does_what_the_page_says(tmp_path: Path) -> None:
    folder, printed = checkout(tmp_path), ""
    texts = on_free_ports([text for _, _, text in STEPS], ("8080", "8081"))
    with ExitStack() as servers:
        for (kind, name, _), text in zip(STEPS, texts, strict=True):
            if kind == "python":
                (folder / "tutorial" / name).write_text(text)
            elif kind == "output":
                assert looks_like(text, printed), f"{text}\n--- printed ---\n{printed}"
            elif name:
                name = name.removeprefix("server ")
                servers.enter_context(typed(name, text, folder)).wait_until_prints(READY[name])
            else:
                ended = run(f"set -e\n{text}", folder)
                assert ended.returncode == 0, ended.stderr
                printed = ended.stdout
