"""Code and commands on all pages: they can be read, and name modules, attributes, commands and options that there are.

Most pages have tests that run them, too; `tests/docs`, `tests/examples` and `tests/judges` have most of those.
"""

import ast
import json
import re
import subprocess
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pytest
import yaml

from peerseal.__main__ import main as peerseal_command
from registry.__main__ import main as registry_command
from tests.docs.pages import ROOT

PAGES = sorted([ROOT / "README.md", *(page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "adr")])
FENCE = re.compile(r"^ *```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^ *```", re.M | re.S)
COMMAND = re.compile(r"(?:^|(?<=[`$(/ ]))(?<!from )(peerseal|peerseal-registry)((?: +[^\s`|;&)#>\\]+)+)", re.M)


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    line: int
    text: str


def blocks(*languages: str) -> list[Any]:
    """The blocks of all pages in these languages, as parameters of a test. A … stands for code that is left out."""
    chosen = []
    for page in PAGES:
        whole = page.read_text()
        for fence in FENCE.finditer(whole):
            if fence["language"] in languages:
                line, text = whole[: fence.start()].count("\n") + 1, textwrap.dedent(fence["text"])
                chosen.append(pytest.param(Block(page, line, text), id=f"{page.stem}-{line}"))
    assert chosen
    return chosen


@pytest.mark.parametrize("block", blocks("python"))
def test_python_names_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text.replace("…", "..."))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "peerseal":
            for name in node.names:
                found(f"{node.module}.{name.name}")
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"peerseal(\.\w+)+", ast.unparse(node)):
            found(ast.unparse(node))


def found(dotted: str) -> object:
    """The module, class or value of that name; of a value's attributes nothing is known. Raises AttributeError."""
    name, *rest = dotted.split(".")
    value: object = import_module(name)
    for part in rest:
        if not isinstance(value, ModuleType | type):
            break
        name = f"{name}.{part}"
        value = getattr(value, part) if hasattr(value, part) else import_module(name)
    return value


@pytest.mark.parametrize("block", blocks("sh", "bash"))
def test_shell_can_be_read(block: Block) -> None:
    read = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert read.returncode == 0, read.stderr


@pytest.mark.parametrize("block", blocks("json"))
def test_json_can_be_read(block: Block) -> None:
    try:
        json.loads(block.text)
    except json.JSONDecodeError:  # lines of a log
        assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_can_be_read(block: Block) -> None:
    assert list(yaml.safe_load_all(block.text))


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of ours that a page names in code, with their words. docs/reference/mission.md also names missing
    ones."""
    text = page.read_text()
    lines = [line for fence in FENCE.finditer(text) for line in fence["text"].splitlines()]
    for code in [*re.findall(r"`([^`\n]+)`", text), *lines]:
        for program, words in COMMAND.findall(code):
            yield program, words.split()


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "mission"], ids=lambda page: page.stem)
def test_a_page_names_commands_and_options_that_there_are(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for program, words in commands(page):
        known = (
            options_of_registry(words)
            if program == "peerseal-registry"
            else options_of_sdk(words[0].rstrip(".,:"), capsys)
        )
        assert known is not None, (program, words)
        named = {word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2}
        assert named - known == set(), (program, words)


def options_of_registry(words: list[str]) -> set[str] | None:
    """The options of a command of peerseal-registry, or of all its commands; None where there is no such command."""
    command: click.Command = registry_command
    for word in words:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        below = command.commands.get(word.rstrip(".,:"))
        if below is None:
            return None
        command = below
    return {"--help", "--version", *options_of(command)}


def options_of(command: click.Command) -> set[str]:
    """The options of a command and of those below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*(options_of(one) for one in below))


def options_of_sdk(word: str, capsys: pytest.CaptureFixture[str]) -> set[str] | None:
    """The options of a command of peerseal, from its help."""
    arguments = ["--help"] if word.startswith("-") else [word, "--help"]
    try:
        peerseal_command(arguments)
    except SystemExit as ended:
        if ended.code:
            return None
    return {"--version", *re.findall(r"--[a-z-]+", capsys.readouterr().out)}
