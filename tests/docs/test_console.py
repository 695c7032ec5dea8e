"""Pages show what commands print: each console block is typed on a terminal, and each command is shown somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from peerseal.__main__ import main as peerseal_command
from registry.__main__ import main as registry_command
from tests.docs.console import COLUMNS, PAGES, names_in, steps_of, typed
from tests.docs.pages import ROOT

OUTPUT = re.compile(r"^```console[^\n]*\n(.*?)^```$", re.M | re.S)


@pytest.mark.e2e
@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_its_commands_print(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for step, printed, agrees in typed(page, folder):
        assert agrees, f"$ {step.command}\n{step.shown}--- printed ---\n{printed}"


def test_each_page_with_a_console_block_is_typed() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    with_blocks = {str(page.relative_to(ROOT)) for page in pages if "```console" in page.read_text()}
    assert with_blocks == {*PAGES, "docs/how-to/runbooks.md"}  # the latter by tests/docs/test_runbooks.py


def commands_of(group: click.Group, name: str) -> Iterator[str]:
    """The commands below a group, with its name."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{name} {word}")
        else:
            yield f"{name} {word}"


def test_each_command_is_shown_with_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        peerseal_command(["--help"])
    own = re.findall(r"^    ([a-z-]+)\b", capsys.readouterr().out, re.M)
    assert len(own) > 10
    there = {*(f"peerseal {name}" for name in own), *commands_of(registry_command, "peerseal-registry")}
    typed_in_order = [step.command for page in PAGES for step in steps_of(page) if step.shown.strip()]
    shown = {name for name in there for command in typed_in_order if re.search(rf"(^| ){name}( |$)", command)}
    assert there - shown == set()


@pytest.mark.parametrize("page", PAGES)
def test_what_is_shown_fits_80_columns(page: str) -> None:
    lines = [line for block in OUTPUT.findall((ROOT / page).read_text()) for line in block.splitlines()]
    assert len(lines) > 10
    assert [line for line in lines if len(line) > COLUMNS] == []


KID = "acme.internal/shop/" + "hR_wUncDXA2Nb3LGsaAJOyTBx-gYSmfWh_X4K_GEe4s"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (f"revoked: {KID}", f"revoked: {KID.replace('Nb', 'Mc')}"),
        ("ends  2026-12-06 14:59:45Z, in 6 days", "ends  2026-12-07 01:00:00Z, in 5 days"),
        ("2026-11-29 12:02:32Z, 3 seconds ago", "2026-11-29 12:03:32Z, now"),
        ("psj1.…", "psj1.a.b.c"),
        ("one\n…\nfour", "one\ntwo\nthree\nfour"),
        ("one\n…", "one"),
    ],
)
def test_what_differs_from_run_to_run_agrees(shown: str, printed: str) -> None:
    assert names_in(shown, printed, {}) is not None


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (f"revoked: {KID}", f"retired: {KID}"),
        (f"revoked: {KID}", f"revoked: {KID[:-1]}"),
        (f"revoked: {KID}", f"revoked: {KID.replace('shop', 'stock')}"),
        ("one\n…\nfour", "one\ntwo\nthree"),
        ("state  active", "state   active"),
        ("", "a warning"),
        ("done", ""),
    ],
)
def test_what_a_command_does_not_print_does_not_agree(shown: str, printed: str) -> None:
    assert names_in(shown, printed, {}) is None


def test_a_page_shows_one_key_by_one_name() -> None:
    other = KID.replace("Nb", "Mc")
    known = names_in(f"key  {KID}", f"key  {other}", {})
    assert known == {KID[-43:]: other[-43:]}
    assert names_in(f"revoked: {KID}", f"revoked: {other}", known) == known
    assert names_in(f"revoked: {KID}", f"revoked: {KID}", known) is None
    assert names_in(f"revoked: {other}", f"revoked: {other}", known) is None
