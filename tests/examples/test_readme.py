"""The commands of README.md, typed as they stand; only the ports are others, if taken. `test_minimal` runs the rest."""

import re
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.support.terminals import checkout, on_free_ports, run, typed

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = (ROOT / "README.md").read_text()
PORTS = ("8080", "8082")


def block(first_words: str, language: str = "sh") -> str:
    """The one block in which a line begins like that."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    found = [text for text in blocks if f"\n{first_words}" in f"\n{text}"]
    assert len(found) == 1, first_words
    return found[0]


def test_the_first_block_has_two_commands_and_the_second_starts_a_registry() -> None:
    first, second, *_ = re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL)
    assert [line.split("  ")[0] for line in first.splitlines()] == ["make demo", "make test"]
    assert second.endswith("peerseal-registry serve --dev\n")


def test_a_service_under_gunicorn_answers_a_caller_at_the_registry_of_the_second_block(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    dev, app, gunicorn, caller, calls = on_free_ports(
        [
            block("REGISTRY_HOME=./registry-dev"),
            block("app = Flask(__name__)\nidentity", "python"),
            block(". .venv/bin/activate\nexport PEERSEAL_SERVICE=resource-service"),
            block("import peerseal\n\nidentity", "python"),
            block(". .venv/bin/activate\nexport PEERSEAL_SERVICE=client-service"),
        ],
        PORTS,
    )
    (folder / "profiles.py").write_text(app)
    (folder / "caller.py").write_text(caller)
    with typed("registry", dev, folder) as registry:
        registry.wait_until_prints("Listening at")
        with typed("profiles", gunicorn, folder) as service:
            service.wait_until_prints("Booting worker")
            ended = run(calls, folder)
    assert ended.returncode == 0, ended.stderr
    (promised,) = re.findall(r"# (\{.*\}), twice", calls)
    assert ended.stdout.splitlines() == [promised, promised]


def test_a_registry_is_made_and_served_and_lets_services_in(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    serve, commands = on_free_ports(
        [
            block("peerseal-registry serve  "),
            block("peerseal-registry services"),
        ],
        ("8080",),
    )
    with typed("registry", serve, folder) as registry:
        registry.wait_until_prints("Listening at")
        ended = run(f"set -e\n{commands}", folder)
    assert ended.returncode == 0, ended.stderr
    assert '"psj1.' in ended.stdout.replace(" ", "")
