"""docs/reference/errors.md has one row for each error code, and no other row."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from http import HTTPStatus
from importlib import import_module

import pytest
import yaml

from peerseal.errors import CodedError, KeyRefused, PeersealError
from registry.domain.key_quality import RSA_CHECKS
from tests.test_docs import ROOT
from tools.error_codes import MADE, sections

PAGE = (ROOT / "docs/reference/errors.md").read_text()
CODE = re.compile(r"[a-z]+(?:_[a-z0-9]+)+|configuration|behind|expired|replayed")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    for line in PAGE.splitlines()
    if line.startswith("| `")
]
WITHOUT_A_STATUS = HTTPStatus.INTERNAL_SERVER_ERROR
"""The status of an error class that is never answered over HTTP."""


@cache
def modules() -> Mapping[str, ast.Module]:
    """The parsed modules of the SDK and the registry, by dotted name, without `peerseal.testing`."""
    paths = [path for package in ("peerseal", "registry") for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in paths
        if "testing" not in path.parts
    }


@cache
def errors() -> Mapping[str, type[PeersealError]]:
    """Every error class, by name. Only modules that define one are imported: `registry.wsgi` starts a server."""
    found: dict[str, type[PeersealError]] = {"PeersealError": PeersealError}
    classes = [
        (module, node)
        for module, tree in modules().items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.bases
    ]
    size = 0
    while len(found) > size:
        size = len(found)
        for module, node in classes:
            if node.name not in found and any(isinstance(base, ast.Name) and base.id in found for base in node.bases):
                found[node.name] = getattr(import_module(module), node.name)
    return found


@cache
def all_texts() -> set[str]:
    """What looks like a code, in both packages."""
    return {text for tree in modules().values() for text in texts(tree)}


def texts(node: ast.AST) -> set[str]:
    """The codes among the string literals of an expression."""
    found = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return {text for text in found if CODE.fullmatch(text)}


def raised(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(code, status) of each error that is made with a code as its first argument, and of each table of HTTP codes."""
    coded = {name: cls for name, cls in errors().items() if issubclass(cls, CodedError)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in coded and node.args:
            yield from ((code, coded[node.func.id].status) for code in texts(node.args[0]))
        elif isinstance(node, ast.ClassDef) and node.name in coded:
            calls = (one for one in ast.walk(node) if isinstance(one, ast.Call) and one.args)
            found = (one for one in calls if ast.unparse(one.func) == "super().__init__")
            yield from ((code, coded[node.name].status) for one in found for code in texts(one.args[0]))
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            known = ((key.value, texts(value)) for key, value in pairs if isinstance(key, ast.Constant))
            statuses = {int(status) for status in HTTPStatus}
            yield from ((code, key) for key, found in known if type(key) is int and key in statuses for code in found)


@cache
def codes() -> Mapping[str, set[int]]:
    """Every code, with the statuses that it is answered with."""
    found: dict[str, set[int]] = defaultdict(set)
    found["bad_request"].add(HTTPStatus.BAD_REQUEST)
    found["internal_error"].add(HTTPStatus.INTERNAL_SERVER_ERROR)
    for code, _ in RSA_CHECKS:
        found[code].add(KeyRefused.status)
    for cls in errors().values():
        if cls.code != PeersealError.code:
            found[cls.code].add(cls.status)
    for tree in modules().values():
        for code, status in raised(tree):
            found[code].add(status)
    return found


def test_the_registry_serves_what_the_page_says() -> None:
    assert yaml.safe_load(MADE.read_text()) == sections(PAGE), "run python -m tools.error_codes"


def test_the_scan_finds_the_codes_of_both_trees() -> None:
    assert {"replayed", "key_roca", "document_stale", "event_unmintable", "configuration"} <= codes().keys()
    assert {"join_refused", "too_many_keys", "key_retired", "tile_not_found", "body_too_large"} <= codes().keys()
    assert len(codes()) > 100


@pytest.mark.parametrize("code", sorted(codes()))
def test_every_code_has_one_row(code: str) -> None:
    assert Counter(row[0].strip("`") for row in ROWS)[code] == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_every_row_is_a_code_with_its_status_causes_and_remedy(row: list[str]) -> None:
    code, status, happened, causes, remedy = row
    code = code.strip("`")
    assert code in all_texts(), "no such code"
    statuses = codes().get(code, set())
    answered = {str(int(status)) for status in statuses - {WITHOUT_A_STATUS}} or {"–"}
    assert status in ({"500"} if code == "internal_error" else answered)
    assert all(text.endswith(".") for text in (happened, causes, remedy)), "a cell is empty or no sentence"
