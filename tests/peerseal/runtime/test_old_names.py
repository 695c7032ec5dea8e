"""Modules that have moved import under their old names too, and are the same modules."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

import peerseal
from peerseal import peers


def in_a_fresh_process(program: str) -> str:
    """What the program prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_class_is_the_same_under_its_old_name() -> None:
    assert import_module("peerseal.peers.limits").TrustLimits is peerseal.TrustLimits
    assert import_module("peerseal.peers.trust").TrustStore is peerseal.TrustStore


@pytest.mark.parametrize("old", sorted(peers.MOVED))
def test_every_old_name_gives_the_module_of_the_new_name(old: str) -> None:
    new = import_module(f"peerseal.{peers.MOVED[old]}")
    assert import_module(f"peerseal.peers.{old}") is new
    assert new.__name__ == f"peerseal.{peers.MOVED[old]}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("registry.services.together", "registry.storage.group_commit"),
        ("registry.gunicorn_conf", "registry.serving.gunicorn_conf"),
    ],
)
def test_names_of_the_registry_that_the_docs_gave_go_on_working(old: str, new: str) -> None:
    assert import_module(old) is import_module(new)


@pytest.mark.parametrize(
    "statement",
    [
        "import peerseal.peers.verify; print(peerseal.peers.verify.__name__)",
        "from peerseal.peers import verify; print(verify.__name__)",
        "from peerseal.peers.verify import Verifier; print(Verifier.__module__)",
    ],
)
def test_every_form_of_an_import_finds_an_old_name(statement: str) -> None:
    assert in_a_fresh_process(statement) == "peerseal.verify.request"


def test_old_names_cost_nothing_until_one_is_imported() -> None:
    program = (
        "import sys, peerseal; print([n for n in sys.modules if n.startswith('peerseal.peers')], len(sys.meta_path))"
    )
    plain = "import sys; print([], len(sys.meta_path))"
    assert in_a_fresh_process(program) == in_a_fresh_process(plain)


def test_a_name_that_never_was_is_not_found() -> None:
    assert find_spec("peerseal.peers.nonsense") is None
    with pytest.raises(ModuleNotFoundError, match=r"peerseal\.peers\.nonsense"):
        import_module("peerseal.peers.nonsense")
