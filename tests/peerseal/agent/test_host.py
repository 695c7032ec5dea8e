"""Agents and the other processes of a host: who may ask, restarts, a registry that is gone, the end."""

import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGTERM

import pytest
import requests

from peerseal import Identity
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import served
from tests.support.agents import ALLOW, SERVICE, AgentProcess, curl, parsed
from tests.support.processes import Process
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

StartAgent = Callable[..., AgentProcess]

STRANGER = 65534
"""A user id that is not the agent's."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def token(caller: Identity) -> str:
    return f"Bearer {caller.sign_request(SERVICE, method='GET', target='/a')}"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


class TestUsers:
    def test_the_socket_is_the_agent_s_alone(self, agent: AgentProcess) -> None:
        assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(agent.path.parent.stat().st_mode) & 0o022 == 0

    @as_root
    def test_another_user_cannot_even_connect(self, start: StartAgent, open_folder: Path) -> None:
        path = start(open_folder / "agent.sock").ready().path
        assert curl(path, "GET", "/healthz", may_fail=True, user=STRANGER, group=0, extra_groups=[]).status == 0

    @as_root
    def test_of_the_agent_s_group_only_the_named_users_may_ask(self, start: StartAgent, open_folder: Path) -> None:
        agent = start(open_folder / "agent.sock", "--allow-user", str(STRANGER)).ready()
        assert stat.S_IMODE(agent.path.stat().st_mode) == 0o660
        for uid, status in ((STRANGER, 200), (STRANGER - 1, 403)):
            answer = curl(agent.path, "GET", "/keys", user=uid, group=0, extra_groups=[])
            assert answer.status == status
        assert answer.outcome == (403, "local_caller_refused")
        assert f"refused a connection of uid {STRANGER - 1}: allowed are 0, {STRANGER}" in agent.output()


class TestSeveralAgents:
    def test_they_have_one_key_and_accept_a_token_once(
        self, agent: AgentProcess, start: StartAgent, caller: Identity
    ) -> None:
        other = start().ready()
        assert other.ask("GET", "/keys").json == agent.ask("GET", "/keys").json
        signed = token(caller)
        assert sorted(one.verify(signed).status for one in (agent, other)) == [200, 401]

    def test_a_socket_in_use_is_not_taken_over(self, agent: AgentProcess, start: StartAgent) -> None:
        ended(start(agent.path), 2, "another agent listens there: stop it, or name another socket")
        assert agent.answers()

    def test_the_socket_of_a_killed_agent_is_replaced_and_its_tokens_stay_used(
        self, start: StartAgent, caller: Identity
    ) -> None:
        first, signed = start().ready(), token(caller)
        assert first.verify(signed).status == 200
        first.kill()
        assert first.path.exists()
        again = start(first.path).ready()
        assert again.verify(signed).outcome == (401, "replayed")


class TestTheEnd:
    def test_a_call_that_has_begun_is_answered(self, start: StartAgent) -> None:
        agent = start().ready()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(agent.path))
            client.sendall(b"POST /sign HTTP/1.1\r\nHost: agent\r\nContent-Length: 2\r\n\r\n{")
            until(lambda: agent.answers(), what="another call")  # the agent has read the first part by then
            os.kill(agent.pid, SIGTERM)
            until(lambda: not connects(agent.path), what="the end of listening")
            client.sendall(b"}")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert parsed(answer).outcome == (400, "malformed_body")
        until(lambda: not agent.running, what="the agent's end")
        assert agent.exit_code == 0
        assert not agent.path.exists()


class TestWithoutTheRegistry:
    def test_it_signs_and_verifies_nothing_until_it_knows_the_registry_s_keys(
        self, registry: MemoryRegistry, caller: Identity, tmp_path: Path
    ) -> None:
        with served(registry) as url:
            settings = {
                "PEERSEAL_SERVICE": SERVICE,
                "PEERSEAL_REGISTRY_URL": url,
                "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
                "PEERSEAL_CACHE_DIR": str(tmp_path / "cache"),
                "PEERSEAL_JOIN_TOKEN": registry.join_token(SERVICE),
            }
            with AgentProcess(tmp_path / "first.sock", *ALLOW, settings=settings) as first:
                first.ready()
        changed = {"PEERSEAL_CACHE_DIR": str(tmp_path / "empty"), "PEERSEAL_JOIN_TOKEN": ""}
        with AgentProcess(tmp_path / "agent.sock", *ALLOW, settings=settings | changed) as agent:
            until(lambda: curl(agent.path, "GET", "/healthz", may_fail=True).status == 503, what="an agent")
            assert agent.ask("GET", "/healthz").outcome == (503, "not_ready")
            assert agent.sign("billing").startswith("Bearer ")
            refused = agent.verify(token(caller))
            assert refused.outcome == (503, "trust_unavailable")
            assert int(refused.headers["retry-after"]) > 0

    def test_without_a_key_it_does_not_start(self, start: StartAgent, tmp_path: Path) -> None:
        agent = start(PEERSEAL_KEY_DIR=str(tmp_path / "none"), PEERSEAL_JOIN_TOKEN="")
        ended(agent, 2, "web has no key that is registered, and no join token")
        assert not agent.path.exists()


class TestLoopback:
    SECRET = "0123456789abcdef" * 2

    @pytest.fixture
    def listening(self, settings: Mapping[str, str], tmp_path: Path) -> Iterator[str]:
        """The URL of an agent on loopback."""
        (tmp_path / "secret").write_text(self.SECRET + "\n")
        arguments = ["--listen", "127.0.0.1:0", "--secret-file", str(tmp_path / "secret"), *ALLOW]
        command = [sys.executable, "-m", "peerseal", "agent", *arguments]
        with Process("agent", command, log=tmp_path / "log", settings=settings) as process:
            line = process.wait_until_prints("listens on http://")
            yield line.rpartition(" ")[2]

    def test_each_call_needs_the_secret(self, listening: str) -> None:
        session = requests.Session()
        session.trust_env = False
        until(lambda: session.get(f"{listening}/healthz").status_code == 200, what="readiness")
        for secret in ("", self.SECRET[:-1], self.SECRET.upper(), "é"):
            answer = session.get(f"{listening}/keys", headers={"Peerseal-Agent-Secret": secret.encode()})
            assert (answer.status_code, answer.json()["code"]) == (403, "local_caller_refused")
        answer = session.get(f"{listening}/keys", headers={"Peerseal-Agent-Secret": self.SECRET})
        assert answer.status_code == 200


def ended(process: Process, code: int, says: str) -> None:
    """Waits for the end of a command that cannot do its work."""
    until(lambda: not process.running, what="its end")
    assert process.exit_code == code, process.output()
    assert says in process.output()
    assert "Traceback" not in process.output()


def connects(path: Path) -> bool:
    """Whether a program listens there."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
