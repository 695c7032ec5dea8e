"""A part of the distribution whose library is missing names the extra that installs it."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = {
    "peerseal.flask": ("flask", "flask"),
    "peerseal.kafka": ("confluent_kafka", "kafka"),
    "peerseal.inbox": ("sqlalchemy", "kafka"),
    "peerseal.outbox": ("sqlalchemy", "kafka"),
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


def test_the_command_of_a_registry_names_its_extra_and_shows_no_traceback() -> None:
    without = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['click'] = None"
    ended = run(sys.executable, "-c", f"{without}; from registry.__main__ import main; main()")
    assert ended.returncode == 1
    assert ended.stderr == "Error: click is not installed: pip install 'peerseal[registry]'\n"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel of this checkout, without extras."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("peerseal-*.whl")
    subprocess.run([*pip, "install", wheel], check=True)
    return folder / "venv/bin"


@pytest.mark.thorough
@pytest.mark.timeout(600)
class TestABareWheel:
    def test_the_sdk_and_its_command_work(self, bare: Path) -> None:
        assert run(bare / "python", "-c", "import peerseal, peerseal.requests, peerseal.asgi").returncode == 0
        assert run(bare / "peerseal", "--help").returncode == 0

    def test_the_command_of_a_registry_names_its_extra(self, bare: Path) -> None:
        ended = run(bare / "peerseal-registry", "--help")
        assert ended.returncode == 1
        assert ended.stderr.endswith("is not installed: pip install 'peerseal[registry]'\n")
        assert "Traceback" not in ended.stderr

    @pytest.mark.parametrize("module", MODULES)
    def test_adapters_name_their_extras(self, bare: Path, module: str) -> None:
        ended = run(bare / "python", "-c", f"import {module}")
        assert ended.stderr.endswith(f"pip install 'peerseal[{MODULES[module][1]}]'\n"), ended.stderr
