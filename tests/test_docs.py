"""The docs name tests, files and links that are there."""

import re
from pathlib import Path
from urllib.parse import urlsplit

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
            r"\b((?:attacks|brokers|chart|contracts|e2e|examples|faults|fuzz|ha|judges|messaging|peerseal|registry)"
            r"(?:/[a-z_]+)*/test_\w+)",
            text,
        )
    )
    assert named - defined == set()
    assert files - TESTS.keys() == set()
    assert len(named) >= least


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
HOSTS = frozenset(
    {
        *("bitbucket.org", "c2sp.org", "curity.io", "datatracker.ietf.org", "github.com", "go.dev", "httpie.io"),
        *(
            "keepachangelog.com",
            "openid.net",
            "opentelemetry.io",
            "pyjwt.readthedocs.io",
            "s2sauth.bitbucket.io",
            "semver.org",
        ),
        *("spiffe.io", "www.rfc-editor.org", "www.sigsum.org", "www.w3.org"),
    }
)
"""The hosts that pages link to: a new one is added here, and a mistyped one is none of them."""


def links(page: Path) -> list[str]:
    """The targets of a page's links."""
    text = re.sub(r"^ *```.*?^ *```|(?<!`)`[^`\n]+`(?!`)", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "://" not in re.sub(r"\]\([^)\s]+\)|<[^>\s]+>|^    .*$", "", text, flags=re.MULTILINE), (
        "a URL that is no link"
    )
    return [found for pair in re.findall(r"\]\(([^)\s]+)|<(https?:[^>\s]+)>", text) for found in pair if found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target = urlsplit(link)
        if target.netloc:
            assert (target.scheme, target.netloc in HOSTS, link.isascii()) == ("https", True, True), link
        elif target.path:
            file = (page.parent / target.path).resolve()
            assert file.exists(), link
            assert file.is_relative_to(ROOT), link


def test_each_host_of_the_list_is_linked() -> None:
    assert {urlsplit(link).netloc for page in PAGES for link in links(page)} - {""} == HOSTS


@pytest.mark.parametrize(
    ("host", "form"),
    [
        ("www.rfc-editor.org", r"/rfc/rfc[1-9]\d{2,4}(#[\w.-]+)?"),
        ("datatracker.ietf.org", r"/doc/(html/)?draft-[a-z0-9-]+(/)?(#[\w.-]+)?"),
        ("github.com", r"/[\w.-]+/[\w.-]+(/\S+)?"),
    ],
)
def test_a_link_to_a_well_known_host_has_its_form(host: str, form: str) -> None:
    found = [link for page in PAGES for link in links(page) if urlsplit(link).netloc == host]
    assert [link for link in found if not re.fullmatch(f"https://{host}{form}", link)] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_a_heading(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / link if link else page), f"{link}#{anchor}"


def test_the_pages_that_code_names_exist() -> None:
    folders = (
        "peerseal",
        "registry",
        "client_service",
        "resource_service",
        "demo",
        "benchmarks",
        "deploy",
        "tests/support",
    )
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in {".py", ".yml", ".go"}
    ]
    files += [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    named = {(path.name, page) for path in files for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())}
    assert len(named) > 30
    assert [(file, page) for file, page in named if not (ROOT / page).is_file()] == []


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


GLOSSARY = (ROOT / "docs/glossary.md").read_text()
WORDS = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", GLOSSARY, re.MULTILINE)
OTHER_PAGES = "\n".join(
    page.read_text() for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if page.name != "glossary.md"
)


def test_the_glossary_has_each_word_once() -> None:
    words = [word for word, _ in WORDS]
    assert len(words) > 80
    assert sorted(set(words)) == sorted(words)


@pytest.mark.parametrize(("word", "meaning"), WORDS)
def test_a_word_of_the_glossary_has_one_sentence_and_is_used(word: str, meaning: str) -> None:
    assert meaning.endswith(".")
    assert ". " not in meaning
    assert re.search(rf"\b{word.removesuffix('y')}(y|ies|s|es|ed|d)?\b", OTHER_PAGES, re.IGNORECASE)


@pytest.mark.parametrize("page", ["protocol", "reference/threat-model"])
def test_the_glossary_has_each_word_that_a_page_defines(page: str) -> None:
    defined = re.findall(r"\b[Aa]n?\s\*\*([a-z' ]+)\*\*", (ROOT / f"docs/{page}.md").read_text())
    assert set(defined) - {word for word, _ in WORDS} == set()


def test_the_glossary_has_each_state_of_a_key() -> None:
    from registry.domain.keys import KeyState

    assert {state.value for state in KeyState} <= {word for word, _ in WORDS}


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)", index.read_text())}
    pages = {page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "adr" and page != index}
    assert pages - linked == set()
