"""`peerseal.protocol` is pure: it opens nothing, asks nothing of the network, logs nothing and reads no clock."""

import ast
from pathlib import Path

import pytest

import peerseal.protocol

MODULES = sorted(Path(peerseal.protocol.__file__).parent.rglob("*.py"))
IMPURE = {"asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "requests", "shutil", "subprocess"}
IMPURE |= {"tempfile", "threading", "time", "urllib3", "sqlalchemy"}
BUILT_IN = {"open", "print", "input", "breakpoint"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_protocol_does_no_input_or_output_and_reads_no_clock(module: Path) -> None:
    tree = ast.parse(module.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
            assert not (node.module or "").startswith("peerseal") or (node.module or "").startswith(
                ("peerseal.errors", "peerseal.protocol")
            ), node.module
        else:
            names = set()
        assert names & IMPURE == set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in BUILT_IN
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket":
            assert node.attr == "inet_aton"  # reads a text, without the network


def test_all_modules_are_looked_at() -> None:
    assert len(MODULES) > 25
