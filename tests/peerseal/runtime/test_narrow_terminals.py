"""Sentences and tables on a terminal of 40 columns, and elsewhere."""

import pytest

from peerseal.runtime.terminal import folded, say_folded
from registry.commands.common import show_rows

SENTENCE = "denied because rule acme.internal/shop: [invoices:read] of entry 9 has no invoices:write"
ROWS = [
    {"kid": f"acme.internal/shop-{name}/thumbprint", "state": "active", "seq": seq} for seq, name in enumerate("ab")
]
NAMES = ("kid", "state", "seq")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output goes to such a terminal."""
    monkeypatch.setenv("COLUMNS", "40")
    for module in ("peerseal.runtime.terminal", "registry.commands.common"):
        monkeypatch.setattr(f"{module}.on_terminal", lambda: True)


@pytest.mark.usefixtures("narrow")
def test_a_sentence_is_folded_between_words() -> None:
    lines = folded(f"{SENTENCE}\nshort").split("\n")
    assert [line[:2] for line in lines] == ["de", "  ", "  ", "sh"]
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines[:-1]) == SENTENCE


@pytest.mark.usefixtures("narrow")
def test_a_long_word_is_not_broken() -> None:
    assert "a" * 60 in folded(f"revoked: {'a' * 60}").split("\n")[1]


@pytest.mark.usefixtures("narrow")
def test_a_line_break_in_a_sentence_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_folded(f"ALERT unknown_key: {SENTENCE}\n2026-01-01T00:00:00Z INFO nothing, all is well")
    assert all(line.startswith("  ") for line in capsys.readouterr().out.splitlines()[1:])


def test_a_program_gets_one_line() -> None:
    assert folded(SENTENCE) == SENTENCE


@pytest.mark.usefixtures("narrow")
def test_a_table_that_is_too_wide_has_a_line_for_each_cell(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(ROWS, as_json=False, names=NAMES)
    assert capsys.readouterr().out == (
        "kid    acme.internal/shop-a/thumbprint\nstate  active\nseq    0\n\n"
        "kid    acme.internal/shop-b/thumbprint\nstate  active\nseq    1\n"
    )


@pytest.mark.usefixtures("narrow")
def test_a_table_that_fits_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(ROWS, as_json=False, names=("state", "seq"))
    assert capsys.readouterr().out == "STATE   SEQ\nactive  0\nactive  1\n"


def test_a_program_gets_a_table_whatever_its_width(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(ROWS, as_json=False, names=NAMES)
    assert len(capsys.readouterr().out.splitlines()) == 3
