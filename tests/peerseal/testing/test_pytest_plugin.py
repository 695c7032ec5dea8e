"""The pytest plugin: found by itself, and cheap until a test uses a fixture."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import peerseal
from peerseal.testing import pytest_plugin

LOADED = """
import json, sys
import peerseal.testing.pytest_plugin
print(json.dumps(sorted(sys.modules)))
"""


def test_pytest_finds_it() -> None:
    (plugin,) = [plugin for plugin in entry_points(group="pytest11") if plugin.name == "peerseal"]
    assert plugin.load() is pytest_plugin


def test_it_loads_nothing_heavy() -> None:
    ended = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=120)
    loaded = json.loads(ended.stdout)
    own = [name for name in loaded if name.partition(".")[0] == "peerseal"]
    assert own == ["peerseal", "peerseal.errors", "peerseal.testing", "peerseal.testing.pytest_plugin"]
    heavy = {"cryptography", "flask", "httpx", "jose", "requests", "urllib3", "werkzeug"}
    assert heavy & {name.partition(".")[0] for name in loaded} == set()


def test_peerseal_testing_needs_no_pytest(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError")
    program = "import peerseal.testing; peerseal.testing.MemoryRegistry(); peerseal.testing.sign_calls"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env={"PYTHONPATH": str(tmp_path)})


def test_all_names_of_peerseal_testing_can_be_had() -> None:
    for name in peerseal.testing.__all__:
        assert getattr(peerseal.testing, name) is not None
