"""A registry at a real socket, and agents of the service ``web``, whose caller is ``shop``."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from peerseal import Identity
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import served
from tests.support.agents import ALLOW, CALLER, SERVICE, AgentProcess


@pytest.fixture(scope="module")
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry("acme.internal") as registry:
        yield registry


@pytest.fixture(scope="module")
def settings(registry: MemoryRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The settings of the host's service. Every agent with them has the same key folder."""
    folder = tmp_path_factory.mktemp("host")
    with served(registry) as url:
        yield {
            "PEERSEAL_SERVICE": SERVICE,
            "PEERSEAL_REGISTRY_URL": url,
            "PEERSEAL_KEY_DIR": str(folder / "keys"),
            "PEERSEAL_JOIN_TOKEN": registry.join_token(SERVICE),
        }


@pytest.fixture(scope="module")
def caller(registry: MemoryRegistry) -> Identity:
    return registry.identity(CALLER)


@pytest.fixture(scope="module")
def agent(settings: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """The agent that most tests ask."""
    with AgentProcess(tmp_path_factory.mktemp("run") / "agent.sock", *ALLOW, settings=settings) as agent:
        yield agent.ready()


@pytest.fixture
def start(settings: Mapping[str, str], tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Starts a further agent of the same host."""
    with ExitStack() as running:

        def start(path: Path = tmp_path / "agent.sock", *arguments: str, **changed: str) -> AgentProcess:
            return running.enter_context(AgentProcess(path, *ALLOW, *arguments, settings={**settings, **changed}))

        yield start
