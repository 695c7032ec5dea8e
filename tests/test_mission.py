"""docs/reference/mission.md names promises, places and tests that are there."""

import re
from collections.abc import Callable, Mapping
from functools import cache, reduce
from importlib import import_module

import click
import pytest

from peerseal import __main__ as cli
from registry.__main__ import main as registry_commands
from registry.web.routes.openapi import document
from tests.test_docs import ROOT, TESTS

PAGE = (ROOT / "docs/reference/mission.md").read_text()
KEPT, _, NOT_YET = PAGE.partition("\n## Not yet\n")
EXAMPLES = "\n".join(
    path.read_text() for name in ("client_service", "resource_service") for path in ROOT.glob(f"{name}/**/*.py")
)
SETTINGS = "\n".join(
    (ROOT / name).read_text() for name in ("README.md", "docs/reference/settings.md", "docs/reference/limits.md")
)


def rows(text: str) -> list[list[str]]:
    """The cells of every row that begins with an id."""
    lines = re.findall(r"^\| ([A-Z]+-\d+ \|.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def named_tests(cell: str) -> list[tuple[str, str]]:
    """(file, test) of each test in ``cell``. A file counts for all tests up to the next one."""
    found, file = [], ""
    for place, test in re.findall(r"(?<!\S)([a-z0-9]+(?:/[a-z_]+)*/test_\w+) |`(test_\w+)`", cell):
        file = place or file
        if test:
            found.append((file, test))
    return found


@cache
def defined(file: str) -> set[str]:
    return set(re.findall(r"def (test_\w+)\(", TESTS.get(file, "")))


def is_public_name(place: str) -> bool:
    """``peerseal.Identity.session``, ``peerseal.kafka``: reached as an application reaches it."""
    try:
        reduce(getattr, place.split(".")[1:], import_module("peerseal"))
    except AttributeError:
        return False
    return True


def is_call(place: str) -> bool:
    """``GET /path`` of the registry or of an example service."""
    method, path = place.split(" ")
    rule = re.escape(path.replace("{", "<").replace("}", ">"))
    return method.lower() in document()["paths"].get(path, {}) or bool(
        re.search(rf'@\w+\.{method.lower()}\("{rule}"', EXAMPLES)
    )


def is_command(place: str) -> bool:
    """``peerseal-registry revoke``, ``peerseal monitor``."""
    program, _, name = place.partition(" ")
    if program == "peerseal-registry":
        return registry_commands.get_command(click.Context(registry_commands), name) is not None
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    return ended.value.code == 0


KINDS: Mapping[str, Callable[[str], bool]] = {
    r"peerseal(\.\w+)+": is_public_name,
    r"(GET|POST|PUT|DELETE) /\S*": is_call,
    r"peerseal(-registry)? [a-z-]+": is_command,
    r"make [a-z]+": lambda place: f"\n{place.removeprefix('make ')}:" in (ROOT / "Makefile").read_text(),
    r"(PEERSEAL|REGISTRY)_[A-Z_]+": lambda place: f"`{place}`" in SETTINGS,
    r"[\w/-]+\.(py|yml|conf)": lambda place: (ROOT / place).is_file(),
}


def exists(place: str) -> bool:
    """Whether there is what ``place`` names. A text of no known kind names nothing."""
    return any(re.fullmatch(kind, place) and check(place) for kind, check in KINDS.items())


@pytest.mark.parametrize("row", rows(KEPT), ids=lambda row: row[0])
def test_every_promise_has_a_place_and_a_test(row: list[str]) -> None:
    _, promise, where, tests, differs = row
    places = re.findall(r"`([^`]+)`", where)
    assert promise
    assert [place for place in places if not exists(place)] == []
    assert places or "](" in where, "no place is named"
    named = [*named_tests(tests), *named_tests(differs)]
    assert [(file, test) for file, test in named if test not in defined(file)] == []
    assert len(named) == len(re.findall(r"`test_", tests + differs)), "a test without its file"
    assert named_tests(tests), "no test is named"
    assert not differs or named_tests(differs), "no test of the difference is named"


def test_ids_stand_once_and_missing_promises_name_no_test() -> None:
    kept, missing = rows(KEPT), rows(NOT_YET)
    ids = [row[0] for row in (*kept, *missing)]
    assert sorted(ids) == sorted(set(ids))
    assert len(kept) >= 100
    assert "test_" not in NOT_YET.partition("\n|")[2]
    assert all(len(row) == 3 and row[1] and row[2] for row in missing)


def test_no_row_of_a_table_goes_unread() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\| id \||\|---", line)]
    assert len(lines) == len(rows(PAGE))


NOWHERE = """
    peerseal.Nothing, peerseal.nothing, GET /v1/nothing, DELETE /v1/changes, GET /refresh-my-credentials,
    peerseal nothing, peerseal-registry nothing, make nothing, PEERSEAL_NOTHING, peerseal/nothing.py, it
"""


@pytest.mark.parametrize("place", re.split(r",\s+", NOWHERE.strip()))
def test_a_place_that_is_not_there_is_found_out(place: str) -> None:
    assert not exists(place)
