"""docs/reference/settings.md has every variable that the code reads, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from peerseal.identity.environment import KNOWN
from registry.settings import KNOWN as KNOWN_TO_THE_REGISTRY
from tests.test_docs import ROOT

PAGE, LIMITS, README = (
    (ROOT / name).read_text() for name in ("docs/reference/settings.md", "docs/reference/limits.md", "README.md")
)


def listed(page: str, prefix: str) -> set[str]:
    """The variables in the first cells of a page's tables. ``…_FILE`` is that of the variable before it."""
    found = set[str]()
    for cell in re.findall(r"^\| (`[A-Z].*?) \|", page, re.MULTILINE):
        last = ""
        for name in re.findall(r"`([^`]+)`", cell):
            last = f"{last}_FILE" if name == "…_FILE" else name
            found.add(last)
    return {name for name in found if name.startswith(prefix)}


def texts_in(file: Path) -> Iterator[str]:
    """The texts in the code of a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named_in_code(prefix: str) -> set[str]:
    """The texts in the code that are the name of a variable, and nothing else."""
    files = [file for folder in ("peerseal", "registry") for file in (ROOT / folder).rglob("*.py")]
    name = re.compile(rf"{prefix}[A-Z0-9_]*[A-Z0-9]")  # a prefix of several names ends with _
    return {text for file in files for text in texts_in(file) if name.fullmatch(text)}


def test_each_variable_of_a_service_is_on_the_page_and_no_other() -> None:
    assert listed(PAGE, "PEERSEAL_") == set(KNOWN)


def test_each_variable_of_the_registry_is_on_one_of_the_pages_and_no_other() -> None:
    assert listed(PAGE, "REGISTRY_") | listed(LIMITS, "REGISTRY_") == set(KNOWN_TO_THE_REGISTRY)


def test_the_code_reads_no_variable_that_is_unknown() -> None:
    assert named_in_code("PEERSEAL_") - set(KNOWN) == set()
    assert named_in_code("REGISTRY_") - set(KNOWN_TO_THE_REGISTRY) == set()


def test_the_readme_repeats_rows_of_the_page() -> None:
    rows = [
        row.replace("](docs/how-to/", "](../how-to/") for row in README.splitlines() if row.startswith("| `PEERSEAL_")
    ]
    of_settings = [row for row in rows if row.count("|") == 3]
    assert of_settings
    assert set(of_settings) <= set(PAGE.splitlines())
