"""What `make dist` has built: each wheel works alone, in an environment that knows no checkout."""

import subprocess
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from demo.processes import LOOPBACK, ROOT, Process, environment, free_port

pytestmark = [pytest.mark.dist, pytest.mark.thorough, pytest.mark.timeout(900)]

VERSION = (ROOT / "VERSION").read_text().strip()
SDK = f"peerseal-{VERSION}"
REGISTRY = f"peerseal_registry-{VERSION}"
EXTRAS = {
    "peerseal.agent.serving": "agent",
    "peerseal.flask": "flask",
    "peerseal.httpie": "httpie",
    "peerseal.httpx": "httpx",
    "peerseal.inbox": "kafka",
    "peerseal.kafka": "kafka",
    "peerseal.outbox": "kafka",
    "peerseal.otel": "otel",
    "peerseal.prometheus": "prometheus",
    "peerseal.rabbitmq": "rabbitmq",
}
REGISTER = """
import os, peerseal, requests
identity = peerseal.Identity.from_env().start()
print(requests.get(os.environ["PEERSEAL_REGISTRY_URL"] + "/v1/services/shop/jwks.json", timeout=10).text)
identity.stop()
"""


@pytest.fixture(scope="module")
def dist() -> Path:
    """The folder with the sdist and the wheel of both distributions."""
    folder = ROOT / "dist"
    built = {path.name for path in folder.glob("*")}
    expected = {f"{name}{end}" for name in (SDK, REGISTRY) for end in ("-py3-none-any.whl", ".tar.gz")}
    assert built == expected, "run: make dist"
    return folder


def new_environment(folder: Path, *arguments: str | Path) -> Path:
    """The programs of a fresh environment into which ``pip install arguments`` was done."""
    venv.create(folder, with_pip=True)
    install(folder / "bin", *arguments)
    return folder / "bin"


def install(programs: Path, *arguments: str | Path) -> None:
    pip = [programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *arguments], check=True, cwd="/", env=environment({}))


@pytest.fixture(scope="module")
def sdk(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the SDK's wheel and no extra."""
    return new_environment(tmp_path_factory.mktemp("sdk") / "venv", dist / f"{SDK}-py3-none-any.whl")


@pytest.fixture(scope="module")
def registry(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the registry's wheel, and what it requires."""
    wheel = dist / f"{REGISTRY}-py3-none-any.whl"
    return new_environment(tmp_path_factory.mktemp("registry") / "venv", "--find-links", dist, wheel)


def run(program: Path, *arguments: str, cwd: str | Path = "/", **settings: str) -> subprocess.CompletedProcess[str]:
    command = [program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(settings), check=False)


def done(program: Path, *arguments: str, cwd: str | Path = "/", **settings: str) -> str:
    """What the program printed. Fails where it did not end with 0."""
    ended = run(program, *arguments, cwd=cwd, **settings)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def top_level_names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name.partition("/")[0] for name in archive.namelist()}


class TestTheSdk:
    def test_its_wheel_has_one_top_level_name(self, dist: Path) -> None:
        assert top_level_names(dist / f"{SDK}-py3-none-any.whl") == {"peerseal", f"{SDK}.dist-info"}

    def test_it_works_without_extras(self, sdk: Path) -> None:
        done(sdk / "python", "-c", "import peerseal, peerseal.requests, peerseal.asgi, peerseal.testing")
        done(sdk / "peerseal", "--help")
        assert done(sdk / "peerseal", "--version") == f"peerseal {VERSION}\n"

    @pytest.mark.parametrize("name", ["registry", "migrations", "tests", "demo", "client_service"])
    def test_it_installs_nothing_else(self, sdk: Path, name: str) -> None:
        assert run(sdk / "python", "-c", f"import {name}").stderr.endswith(f"No module named '{name}'\n")
        assert not (sdk / "peerseal-registry").exists()

    @pytest.mark.parametrize("module", EXTRAS)
    def test_adapters_name_their_extras(self, sdk: Path, module: str) -> None:
        ended = run(sdk / "python", "-c", f"import {module}")
        assert ended.stderr.endswith(f"pip install 'peerseal[{EXTRAS[module]}]'\n"), ended.stderr


class TestTheRegistry:
    def test_its_wheel_has_two_top_level_names(self, dist: Path) -> None:
        names = top_level_names(dist / f"{REGISTRY}-py3-none-any.whl")
        assert names == {"registry", "migrations", f"{REGISTRY}.dist-info"}

    def test_its_wheel_has_all_files_of_its_packages(self, dist: Path) -> None:
        """Templates, SQL and OpenAPI's YAML, not the Python files alone."""
        paths = [path for name in ("registry", "migrations") for path in (ROOT / name).rglob("*")]
        files = {path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and path.suffix != ".pyc"}
        with ZipFile(dist / f"{REGISTRY}-py3-none-any.whl") as archive:
            assert files - set(archive.namelist()) == set()

    def test_it_requires_the_sdk_of_its_own_version(self, dist: Path) -> None:
        with ZipFile(dist / f"{REGISTRY}-py3-none-any.whl") as archive:
            metadata = archive.read(f"{REGISTRY}.dist-info/METADATA").decode()
        assert f"\nRequires-Dist: peerseal=={VERSION}\n" in metadata

    def test_without_its_libraries_it_says_what_to_install(
        self, dist: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        programs = new_environment(tmp_path_factory.mktemp("bare") / "venv", dist / f"{SDK}-py3-none-any.whl")
        install(programs, "--no-deps", dist / f"{REGISTRY}-py3-none-any.whl")
        ended = run(programs / "peerseal-registry", "--help")
        assert ended.returncode == 1
        assert ended.stderr.endswith("is not installed: pip install 'peerseal[registry]'\n")
        assert "Traceback" not in ended.stderr
        ended = run(programs / "python", "-c", "import registry.wsgi")
        assert ended.stderr.endswith("is not installed: pip install 'peerseal[registry]'\n")

    def test_it_serves_a_service_that_has_the_sdk_alone(self, sdk: Path, registry: Path, tmp_path: Path) -> None:
        """In a folder with packages of the same names, which `peerseal-registry` must not import."""
        for name in ("registry", "migrations"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('another package')")
        program, settings = registry / "peerseal-registry", {"REGISTRY_HOME": str(tmp_path / "home")}
        assert done(program, "--version", cwd=tmp_path) == f"peerseal-registry, version {VERSION}\n"
        assert "CREATE ROLE peerseal_app" in done(program, "roles", cwd=tmp_path)
        done(program, "init", "--trust-domain", "acme.internal", cwd=tmp_path, **settings)
        assert "schema revision" in done(program, "migrate", cwd=tmp_path, **settings)
        token = done(program, "join-token", "create", "shop", cwd=tmp_path, **settings).strip()
        port = free_port()
        serve = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path), str(program), "serve", "--port", str(port)]
        with Process("registry", serve, log=tmp_path / "registry.log", settings=settings) as served:
            served.wait_until_answers(f"http://{LOOPBACK}:{port}/healthz", timeout=120)
            service = {
                "PEERSEAL_SERVICE": "shop",
                "PEERSEAL_REGISTRY_URL": f"http://{LOOPBACK}:{port}",
                "PEERSEAL_JOIN_TOKEN": token,
                "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
            }
            assert '"kid":"acme.internal/shop/' in done(sdk / "python", "-c", REGISTER, **service).replace(" ", "")
        assert "shop" in done(program, "services", cwd=tmp_path, **settings)


@pytest.mark.parametrize(("name", "packages"), [(SDK, {"peerseal"}), (REGISTRY, {"registry", "migrations"})])
def test_an_sdist_holds_files_in_place_of_links_and_its_packages_alone(
    dist: Path, name: str, packages: set[str]
) -> None:
    with tarfile.open(dist / f"{name}.tar.gz") as archive:
        assert all(member.isfile() or member.isdir() for member in archive)
        folders = {path.split("/")[1] for path in archive.getnames() if path.count("/") > 1}
        assert {folder for folder in folders if not folder.endswith(".egg-info")} == packages
        assert {f"{name}/LICENSE", f"{name}/VERSION"} <= set(archive.getnames())
