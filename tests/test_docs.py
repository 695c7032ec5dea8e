"""The docs name tests, files and links that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = {
    path.relative_to(ROOT / "tests").with_suffix("").as_posix(): path.read_text() for path in ROOT.glob("tests/**/*.py")
}


@pytest.mark.parametrize(("page", "least"), [("threat-model", 100), ("faults", 0)])
def test_every_test_that_a_page_names_exists(page: str, least: int) -> None:
    text = (ROOT / f"docs/reference/{page}.md").read_text()
    defined = set(re.findall(r"def (test_\w+)", "\n".join(TESTS.values())))
    named = set(re.findall(r"`(test_\w+)`", text))
    files = set(
        re.findall(
            r"\b((?:attacks|brokers|contracts|e2e|examples|faults|fuzz|ha|judges|messaging|peerseal|registry)"
            r"(?:/[a-z_]+)*/test_\w+)",
            text,
        )
    )
    assert named - defined == set()
    assert files - TESTS.keys() == set()
    assert len(named) >= least


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(("module", "steps"), [("request", 11), ("event", 9)])
def test_the_table_of_steps_names_functions_that_are_there(module: str, steps: int) -> None:
    from importlib import import_module

    from peerseal.protocol import encoding, jose, keys
    from peerseal.trust.beliefs import KeySource

    read = import_module(f"peerseal.verify.{module}")
    known = {**vars(read), **vars(encoding), "KeySource": KeySource, "PublicKey": keys.PublicKey, "jose": jose}
    rows = re.findall(r"^ +\d+  .{50,56}?  +(\S.*)$", read.__doc__ or "", re.MULTILINE)
    assert len(rows) == steps
    for name in re.split(r", ", ", ".join(rows)):
        owner, _, member = name.partition(".")
        assert owner in known, name
        assert not member or hasattr(known[owner], member) or member in known[owner].__annotations__, name
