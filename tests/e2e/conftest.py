"""The containers of docker-compose.yml, for all tests that call them: they are started once."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.support.containers import UP, Compose, need_compose, run


@pytest.fixture(scope="session")
def secrets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make .env`` makes."""
    folder = tmp_path_factory.mktemp("checkout")
    run("make", "-f", str(ROOT / "Makefile"), ".env", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def compose(secrets_folder: Path) -> Iterator[Compose]:
    """A function that runs ``docker compose ARGUMENTS`` in a project of this run's own, everything in it started that
    has no profile."""
    need_compose()
    for_people = dict(line.split("=", 1) for line in (secrets_folder / ".env").read_text().splitlines())
    project = {"COMPOSE_PROJECT_NAME": f"peerseal-{uuid.uuid4().hex[:8]}", "SECRETS": str(secrets_folder / "secrets")}
    environ = {**os.environ, **for_people, **project}

    def compose(*arguments: str, ends_with: int = 0) -> str:
        return run("docker", "compose", *arguments, environ=environ, ends_with=ends_with)

    try:
        compose(*UP)
        yield compose
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{compose('logs', '--no-color', '--tail=60')}") from failure
    finally:
        compose("--profile", "*", "down", "--volumes", "--timeout", "5")
