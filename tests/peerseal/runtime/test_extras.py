"""A module whose library is missing names the extra that installs it. tests/test_distributions.py tries wheels."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = {
    "peerseal.agent.serving": ("uvicorn", "agent"),
    "peerseal.flask": ("flask", "flask"),
    "peerseal.kafka": ("confluent_kafka", "kafka"),
    "peerseal.inbox": ("sqlalchemy", "kafka"),
    "peerseal.outbox": ("sqlalchemy", "kafka"),
    "peerseal.otel": ("opentelemetry", "otel"),
    "peerseal.prometheus": ("prometheus_client", "prometheus"),
    "peerseal.rabbitmq": ("kombu", "rabbitmq"),
    "registry.wsgi": ("flask", "registry"),
}


def run(python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *arguments], capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.parametrize(("module", "library", "extra"), [(name, *rest) for name, rest in MODULES.items()])
def test_the_import_error_of_an_adapter_names_its_extra(module: str, library: str, extra: str) -> None:
    without = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules[{library!r}] = None; import {module}"
    ended = run(sys.executable, "-c", without)
    assert ended.returncode == 1
    assert ended.stderr.endswith(f"{library} is not installed: pip install 'peerseal[{extra}]'\n")


def test_the_command_of_the_agent_names_its_extra_and_shows_no_traceback() -> None:
    without = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['httptools'] = None"
    main = "from peerseal.__main__ import main; sys.exit(main(['agent', '--socket', 'a.sock']))"
    ended = run(sys.executable, "-c", f"{without}; {main}")
    assert ended.returncode == 2
    assert ended.stderr == "Error: httptools is not installed: pip install 'peerseal[agent]'\n"


def test_the_command_of_a_registry_names_its_extra_and_shows_no_traceback() -> None:
    without = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['click'] = None"
    ended = run(sys.executable, "-c", f"{without}; from registry.__main__ import main; main()")
    assert ended.returncode == 1
    assert ended.stderr == "Error: click is not installed: pip install 'peerseal[registry]'\n"
