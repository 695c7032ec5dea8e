"""The documentation site: the navigation of docs/README.md, pages as GitHub shows them, and docstrings as Markdown.

MkDocs calls the functions ``on_…`` (https://www.mkdocs.org/user-guide/plugins/#events), mkdocstrings the class.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
INDEX = ROOT / "docs/README.md"

_ITEM = re.compile(r"^- \[([^\]]+)\]\(([^)#]+\.md)\)", re.MULTILINE)
_FENCE = re.compile(r"^```(\w+) ([^\n{]+)$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+((?:README\.md|examples|deploy|benchmarks|migrations)[^)]*)\)")
_COPIED = "files"  # the folder of the site with files of the repository that pages link to
_RULE = re.compile(r"=+(?: +=+)+")


# ---- pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The four kinds of pages of the index, each page under the title that the index gives it."""
    sections = re.split(r"^## (.+)$", INDEX.read_text(), flags=re.MULTILINE)[1:]
    kinds = dict(zip(sections[::2], sections[1::2], strict=True))
    config.nav = [{"Home": INDEX.name}, *({kind: list(_items(text))} for kind, text in kinds.items())]
    return config


def _items(text: str) -> Iterator[dict[str, Any]]:
    for title, page in _ITEM.findall(text):
        below = sorted((INDEX.parent / page).parent.glob("0*.md")) if page == "adr/README.md" else []
        more = [path.relative_to(INDEX.parent).as_posix() for path in below]
        yield {title: [page, *more] if more else page}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """With the files outside of docs/ that pages link to."""
    pages = "\n".join(path.read_text() for path in INDEX.parent.rglob("*.md"))
    for _, link in set(_OUTSIDE.findall(pages)):
        if not link.endswith(".md") and "#" not in link:
            files.append(File.generated(config, f"{_COPIED}/{link}", abs_src_path=str(ROOT / link)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """The page as GitHub shows it: what follows a fence's language is a title, and links lead to copied files."""
    up = "../" * page.file.src_uri.count("/")

    def copied(link: re.Match[str]) -> str:
        text, target = link.groups()
        return text if ".md" in target else f"[{text}]({up}{_COPIED}/{target})"

    return _OUTSIDE.sub(copied, _FENCE.sub(r'```\1 title="\2"', with_wide_items(markdown)))


def with_wide_items(markdown: str) -> str:
    """The page with blocks in list items indented by four, as MkDocs needs them. GitHub takes two or three."""
    lines, fence = [], None
    for line in markdown.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        shift = 4 - (indent if fence is None else fence)
        if line.lstrip(" ").startswith("```"):
            fence = indent if fence is None else None
        lines.append(" " * shift + line if shift in (1, 2) and line else line)
    return "\n".join(lines)


# ---- docstrings


class PlainDocstrings(griffe.Extension):
    """Turns the reStructuredText of our docstrings into Markdown: ``::`` before code, and simple tables."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """See griffe.Extension."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """The docstring in Markdown."""
    lines, made = iter(docstring.splitlines()), []
    for line in lines:
        if _RULE.fullmatch(line.strip()):
            made += ["", *_table(line, lines), ""]
        else:
            made.append("" if line.strip() == "::" else re.sub(r"::$", ":", line))
    return "\n".join(made)


def _table(rule: str, lines: Iterator[str]) -> Iterator[str]:
    """The rows of a simple table up to its last rule. A row without a first cell continues the one before."""
    spans = [found.span() for found in re.finditer(r"=+", rule)]
    starts = [start for start, _ in spans]
    rows: list[list[str]] = []
    for line in lines:
        if _RULE.fullmatch(line.strip()):
            break
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{before} {cell}".strip() for before, cell in zip(rows[-1], cells, strict=True)]
    yield "| " + " | ".join("" for _ in starts) + " |"
    yield "|" + "---|" * len(starts)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
