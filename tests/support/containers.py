"""A container engine, and what it says of a project of docker-compose.yml."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.processes import ROOT

UP = ("up", "--build", "--wait")
"""The arguments of ``docker compose`` that README.md has people type."""
Compose = Callable[..., str]
"""Runs ``docker compose ARGUMENTS`` for one project, and gives what that prints."""


def need_engine() -> None:
    """Skips a test where no engine can be reached."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "version"], capture_output=True).returncode != 0:
        pytest.skip("no container engine can be reached")


def need_compose() -> None:
    """Skips a test where there is no ``docker compose``. The older program ``docker-compose`` knows no ``--wait``."""
    need_engine()
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("no docker compose")


def run(*command: str, environ: Mapping[str, str] = os.environ, ends_with: int = 0, cwd: Path = ROOT) -> str:
    """What the command prints. Fails where it ends with another exit code."""
    done = subprocess.run(
        command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=900
    )
    assert done.returncode == ends_with, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def inspected(*containers: str) -> list[Any]:
    """What the engine says of the containers."""
    found: list[Any] = json.loads(run("docker", "inspect", *containers))
    return found


def described(compose: Compose) -> dict[str, Any]:
    """What the engine says of each service's container."""
    found = inspected(*compose("ps", "--all", "--quiet").split())
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}


def serves(container: Any) -> bool:
    """Whether it runs and, where it has a health check, passes it."""
    state = container["State"]
    return bool(state["Running"]) and state.get("Health", {}).get("Status", "healthy") == "healthy"


def ends(container: Any) -> bool:
    """Whether it is one that runs once."""
    return bool(container["HostConfig"]["RestartPolicy"]["Name"] == "on-failure")


def crash(container: Any) -> None:
    """Kills its first process as the kernel does when memory is short. ``docker kill`` counts as a person's stop, after
    which the engine does not start it again."""
    kill = ("--entrypoint", "sh", container["Image"], "-c", f"kill -9 {container['State']['Pid']}")
    run("docker", "run", "--rm", "--pid", "host", "--user", "0:0", *kill)
