"""The documentation site that `make docs` builds: its navigation, its API reference, and docstrings as Markdown."""

import re
from pathlib import Path
from typing import Any

import pytest
from mkdocs.config.base import load_config

import peerseal
from tests.docs.pages import ROOT
from tools.docs_site import as_markdown, on_config, with_wide_items

API = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/reference/api.md").read_text(), re.M)


def pages(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages(part)]


def test_the_navigation_has_the_four_kinds_and_every_page_once() -> None:
    nav = on_config(load_config(str(ROOT / "mkdocs.yml"))).nav
    assert nav is not None
    assert [title for part in nav for title in part] == ["Home", "Tutorial", "How-to", "Reference", "Explanation"]
    docs = ROOT / "docs"
    assert sorted(pages(nav)) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))


def test_the_site_loads_nothing_from_elsewhere() -> None:
    theme = load_config(str(ROOT / "mkdocs.yml")).theme
    assert (theme.name, theme["font"]) == ("material", False)


def test_the_reference_has_every_public_name_and_module() -> None:
    documented = {name.removeprefix("peerseal.") for name in API}
    assert documented >= set(peerseal.__all__) - {"PeersealError"}
    modules = {path.stem for path in Path(peerseal.__file__).parent.glob("[a-z]*.py")}
    no_interfaces = {"amqp", "asgi_routes", "checked_call", "httpie", "httpx_auth", "path_needs", "peers", "refusals"}
    no_interfaces |= {"signed_responses", "tables", "wsgi_environ"}
    assert documented >= modules - no_interfaces


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("A sentence::\n\n    code()", "A sentence:\n\n    code()"),
        ("A module.\n\n::\n\n    code()", "A module.\n\n\n\n    code()"),
        (
            "=== =====\n`a` one|\n    more\nb   two\n=== =====",
            "\n|  |  |\n|---|---|\n| `a` | one\\| more |\n| b | two |\n",
        ),
        ("a == b === c", "a == b === c"),
    ],
)
def test_docstrings_become_markdown(docstring: str, markdown: str) -> None:
    assert as_markdown(docstring) == markdown


def test_blocks_in_list_items_are_indented_by_four() -> None:
    page = "1. one\n   - two\n\n   ```sh\n   if a\n     b\n   ```\n\n```py\n  as it is\n```\n  more"
    wide = "1. one\n    - two\n\n    ```sh\n    if a\n      b\n    ```\n\n```py\n  as it is\n```\n    more"
    assert with_wide_items(page) == wide
