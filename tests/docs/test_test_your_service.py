"""docs/how-to/test-your-service.md: its tests pass in a process of their own, with the plugin that pytest finds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import named_blocks

pytestmark = pytest.mark.slow

BLOCKS = named_blocks("docs/how-to/test-your-service.md")
TESTS = sum(text.count("def test_") for text in BLOCKS.values())


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert TESTS == 8
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"\n{TESTS} passed" in ended.stdout
