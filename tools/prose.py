"""Checks docstrings, comments and docs pages for plain English: ``python -m tools.prose PATH...``.

It refuses the words of `PLAIN`, nouns that are made of pronouns, and sentences of more than `LONGEST` words. A
semicolon ends a sentence, too. Code, quoted text and rows in columns are not read. A finding is ``file:line: what``.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 35
"""Words in a sentence."""

PLAIN = {
    "nobody": "no service, no caller",
    "somebody": "a user, an operator",
    "anybody": "any user, any caller",
    "everybody": "all users, all callers",
    "whoever": "a caller that, the operator who",
    "behind": "after, later than, without the knowledge of",
    "anew": "again",
    "beside": "next to, with, besides",
}
"""Words that name no subject or that a reader may take for another, and what says it plainly."""

_WORDS = re.compile(rf"\b(?:{'|'.join(PLAIN)})\b", re.IGNORECASE)
_PRONOUN_NOUN = re.compile(
    r"\bwh(?:at|o) (?:is|was|are|were) (?:being )?"
    r"(?:\w+(?:ed|[^v]en|ept|aid|ade)|done|known)(?: (?:for|to|by|of|on|at|from|with))?"
    r"(?= (?:is|are|was|were|has|have|must|may|can|will|stays?|goes|go|ends?)\b)",
    re.IGNORECASE,
)
"""A subject such as "what is waited for" in "what is waited for has an end"."""
_PERMITTED = re.compile(
    r"\bbehind (?:(?:a|an|the|its|one|two|several|any|another) )?(?:\w+ )?"
    r"(?:prox(?:y|ies)|balancers?|poolers?|gateways?|nginx|haproxy|PgBouncer)\b"
    r"|\b(?:lag|lags|lagging|fall|falls|fell) behind\b",
    re.IGNORECASE,
)
"""Standard terms: a server is behind a proxy, a standby lags behind."""

_CODE = re.compile(r"``.+?``|`[^`]*`|\[([^\]]*)\]\([^)]*\)|https?://\S+|\"[^\"]*\"", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?;])[)\"*]*\s+")
_BLOCK = re.compile(r"^\s*(?:[-*+] |\d+\. |#+ |> )")


class Paragraph(NamedTuple):
    """Running text, and the line on which it begins."""

    line: int
    text: str


def findings(paragraph: Paragraph) -> Iterator[str]:
    """What is wrong with a paragraph, each with what to write in its place."""
    text = _PERMITTED.sub("", _CODE.sub(lambda found: found[1] or "code", paragraph.text))
    for found in _WORDS.finditer(text):
        yield f'"{found[0]}": write {PLAIN[found[0].lower()]}'
    for found in _PRONOUN_NOUN.finditer(text):
        yield f'"{found[0]}": write the noun'
    for sentence in _SENTENCE_END.split(text):
        words = re.findall(r"[A-Za-z][\w'’-]*", sentence)
        if len(words) > LONGEST:
            yield f"a sentence of {len(words)} words, {LONGEST} at most: {' '.join(words[:6])} …"


def paragraphs(text: str, line: int = 1) -> Iterator[Paragraph]:
    """The paragraphs, list items, headings and table cells of a text, without its blocks of code."""
    held: list[str] = []
    start, indent, fenced = line, 0, False
    for number, row in enumerate(text.expandtabs().splitlines() or [""], line):
        depth = len(row) - len(row.lstrip())
        ends = not row.strip() or _BLOCK.match(row) or row.lstrip().startswith(("|", "```")) or fenced
        if ends or (held and depth > indent + 3):
            if held:
                yield Paragraph(start, " ".join(held))
            held = []
        if row.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or not row.strip():
            continue
        elif row.lstrip().startswith("|"):
            yield from (Paragraph(number, cell) for cell in row.split("|") if cell.strip())
        elif not _is_code(row, depth, indent, bool(held)):
            if not held:
                start, indent = number, depth
            held.append(_BLOCK.sub("", row).strip())
    if held:
        yield Paragraph(start, " ".join(held))


def _is_code(row: str, depth: int, indent: int, continues: bool) -> bool:
    """Whether a row is indented as code is, or laid out in columns."""
    return (depth >= indent + 4 and not continues) or bool(re.search(r"\S {2,}\S", row.strip()))


def texts_of_python(source: str) -> Iterator[Paragraph]:
    """The docstrings, those of attributes too, and the comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, _, rest = node.value.value.partition("\n")
            body = "\n".join(row.removeprefix(" " * node.col_offset) for row in rest.split("\n"))
            yield from paragraphs(f"{first}\n{body}", node.lineno)
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            if block and not (alone and token.start[0] == last + 1):
                yield from paragraphs("\n".join(block), start)
                block = []
            start, last = start if block else token.start[0], token.start[0]
            block.append(re.sub("^#:?!? ?", "", token.string))
    yield from paragraphs("\n".join(block), start)


def check(path: Path) -> list[str]:
    """The findings in a file, or in all Python files and pages below a folder, as ``file:line: what``. Packages that
    npm has installed are left out."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if "node_modules" not in file.parts]
        return [found for file in files if file.suffix in (".py", ".md") for found in check(file)]
    read = texts_of_python if path.suffix == ".py" else paragraphs
    return [f"{path}:{text.line}: {found}" for text in read(path.read_text()) for found in findings(text)]


def main(paths: list[str]) -> int:
    """Prints all findings. Returns 1 where there are any."""
    found = [line for path in paths for line in check(Path(path))]
    print("\n".join(found) if found else "prose: nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
