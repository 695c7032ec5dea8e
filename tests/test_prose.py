"""`make prose` refuses prose that needs a second reading, and reads prose alone."""

from pathlib import Path

import pytest

from tools.prose import LONGEST, PLAIN, check, main

ORDINARY = "A caller signs each request with its current key."


def found_in(folder: Path, text: str, name: str = "page.md") -> list[str]:
    """The findings in a file of that text, each without the file's name."""
    path = folder / name
    path.write_text(text)
    return [line.removeprefix(f"{path}:") for line in check(path)]


@pytest.mark.parametrize("word", PLAIN)
def test_a_refused_word_comes_with_a_plain_one(tmp_path: Path, word: str) -> None:
    assert found_in(tmp_path, f"{ORDINARY}\nThe key {word} it.\n") == [f'1: "{word}": write {PLAIN[word]}']
    assert found_in(tmp_path, f"{word.capitalize()} may.\n") == [f'1: "{word.capitalize()}": write {PLAIN[word]}']


@pytest.mark.parametrize("noun", ["what is waited for", "What was seen", "who was known", "what is being kept"])
def test_a_noun_made_of_pronouns_is_refused(tmp_path: Path, noun: str) -> None:
    assert found_in(tmp_path, f"In short, {noun} must be remembered.\n") == [f'1: "{noun}": write the noun']


@pytest.mark.parametrize(
    "plain",
    [
        "It says what went wrong and what to do.",
        "What is a pin?",
        "The registry runs behind a proxy, behind nginx or behind two load balancers.",
        "A standby lags behind.",
        "A key is older than the one before.",
        'The setting `behind`, ``nobody`` and a link to [the page](anew.md), and "whoever" in quotes.',
    ],
)
def test_plain_sentences_pass(tmp_path: Path, plain: str) -> None:
    assert found_in(tmp_path, plain) == []


def test_the_text_of_a_link_is_read(tmp_path: Path) -> None:
    assert found_in(tmp_path, "See [the key of nobody](page.md).") == ['1: "nobody": write no service, no caller']


def test_a_sentence_has_a_greatest_length(tmp_path: Path) -> None:
    assert found_in(tmp_path, "word " * LONGEST + ".\n") == []
    assert found_in(tmp_path, "\n" + "word\n" * (LONGEST + 1)) == [
        f"2: a sentence of {LONGEST + 1} words, {LONGEST} at most: word word word word word word …"
    ]


@pytest.mark.parametrize(
    "end", [". ", "? ", "; ", ".) ", "\n\n", "\n- ", "\n1. ", "\n| ", "\n    code(\n\n", "\n```\ncode\n```\n"]
)
def test_where_a_sentence_ends(tmp_path: Path, end: str) -> None:
    half = "word " * (LONGEST - 1) + "word"
    assert found_in(tmp_path, f"{half}{end}{half}") == []


def test_a_number_at_the_end_of_a_sentence_begins_no_list(tmp_path: Path) -> None:
    half = "word " * (LONGEST - 1)
    assert found_in(tmp_path, f"{half}8. {half}") == []


def test_docstrings_and_comments_are_read_and_code_is_not(tmp_path: Path) -> None:
    source = '''"""Signed anew."""
anew = "anew"
"""Nobody's."""


def behind(somebody: str) -> None:  # beside
    """Ends.

    | anybody | code |

        whoever()
    """
    # A comment of two lines, for
    # everybody.
'''
    assert [line.split('"')[:2] for line in found_in(tmp_path, source, "module.py")] == [
        ["1: ", "anew"],
        ["3: ", "Nobody"],
        ["9: ", "anybody"],
        ["6: ", "beside"],
        ["13: ", "everybody"],
    ]


def test_a_folder_is_read_with_all_below_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    assert found_in(tmp_path / "docs", "Nobody.") == ['1: "Nobody": write no service, no caller']
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f'{tmp_path}/docs/page.md:1: "Nobody": write no service, no caller\n'
    (tmp_path / "docs/page.md").write_text(ORDINARY)
    assert main([str(tmp_path)]) == 0
