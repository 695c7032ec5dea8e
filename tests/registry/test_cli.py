"""The commands, as a shell runs them, on this host's database and over HTTP."""

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from registry.app import create_app
from registry.cli import main
from registry.settings import Settings
from tests.registry.driver import DOMAIN, Driver

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, **environ: str) -> Result:
        settings = {"REGISTRY_HOME": str(tmp_path / "home"), **environ}
        return CliRunner().invoke(main, arguments, env=settings)

    return run


@pytest.fixture
def registry(run: Run, tmp_path: Path) -> Iterator[Driver]:
    """The registry that the commands work on."""
    assert run("init", "--trust-domain", DOMAIN).exit_code == 0
    home = tmp_path / "home"
    driver = Driver(f"sqlite:///{home / 'registry.sqlite3'}", home)
    yield driver
    driver.close()


@pytest.fixture
def url(registry: Driver) -> Iterator[str]:
    """The registry served on a socket."""
    server = make_server("127.0.0.1", 0, registry.app, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_init_makes_everything_once(run: Run, tmp_path: Path) -> None:
    first = run("init", "--trust-domain", DOMAIN)
    assert first.exit_code == 0
    home = tmp_path / "home"
    before = {path.name: path.read_bytes() for path in home.iterdir() if path.suffix in (".pem", ".key")}
    assert before.keys() == {"root-key.pem", "signing-key.pem", "ledger-key.pem", "sealing.key"}
    for path in home.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    token = (home / "operator-token").read_text()
    assert token not in first.output
    again = run("init", "--json")
    assert json.loads(again.stdout)["made"] == []
    assert json.loads(again.stdout)["pin"] in first.stdout
    assert before == {name: (home / name).read_bytes() for name in before}


def test_init_needs_a_domain_and_keeps_it(run: Run) -> None:
    assert run("init").exit_code == 1
    assert run("init", "--trust-domain", "Not A Name").exit_code == 1
    assert run("init", "--trust-domain", DOMAIN).exit_code == 0
    assert run("init", REGISTRY_TRUST_DOMAIN=DOMAIN).exit_code == 0
    refused = run("init", "--trust-domain", "other.internal")
    assert refused.exit_code == 1
    assert "cannot be changed" in refused.stderr


def test_the_root_key_can_be_elsewhere(run: Run, tmp_path: Path) -> None:
    offline = tmp_path / "offline" / "root.pem"
    assert run("init", "--trust-domain", DOMAIN, "--root-key-out", str(offline)).exit_code == 0
    assert offline.exists()
    assert not (tmp_path / "home" / "root-key.pem").exists()
    assert run("init").exit_code == 0  # nothing to sign, so it is not missed
    (tmp_path / "home" / "signing-key.pem").unlink()
    missed = run("init")
    assert missed.exit_code == 1
    assert "root key" in missed.stderr
    assert not (tmp_path / "home" / "signing-key.pem").exists(), "refused before anything was written"
    rolled = run("init", "--json", REGISTRY_ROOT_KEY_FILE=str(offline))
    made = [name.partition(" /")[0] for name in json.loads(rolled.stdout)["made"]]
    assert made == ["signing key", "registry keys document"]


def test_a_further_node_makes_no_sealing_key(run: Run, registry: Driver, tmp_path: Path) -> None:
    """With another one it could not open the join tokens of the first."""
    other = tmp_path / "other"
    there = {"REGISTRY_HOME": str(other), "REGISTRY_DATABASE_URL": registry.url}
    for names in ([], ["signing-key.pem", "ledger-key.pem"]):
        other.mkdir(exist_ok=True)
        for name in names:
            shutil.copy(registry.home / name, other)
        refused = run("init", **there)
        assert (refused.exit_code, "copy" in refused.stderr) == (1, True)
        assert sorted(path.name for path in other.iterdir()) == sorted(names)
    shutil.copy(registry.home / "sealing.key", other)
    assert json.loads(run("init", "--json", **there).stdout)["made"] == []
    (other / "ledger-key.pem").unlink()
    shutil.copy(other / "signing-key.pem", other / "root-key.pem")
    assert "pinned" in run("init", **there).stderr
    assert not (other / "ledger-key.pem").exists()


@pytest.mark.parametrize("configured", [None, DOMAIN])
def test_the_laptop_mode_needs_no_init(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str | None
) -> None:
    served: list[Settings] = []
    monkeypatch.setattr("registry.server.run", lambda settings, *_: served.append(settings))
    environ = {} if configured is None else {"REGISTRY_TRUST_DOMAIN": configured}
    for settings in (environ, {}):  # and again, when there is a registry
        assert run("serve", "--dev", **settings).exit_code == 0
        client = create_app(served[-1]).test_client()
        assert client.get("/readyz").status_code == 200
        assert json.loads(run("init", "--json").stdout)["trust_domain"] == (configured or "dev.internal")
    assert all(settings.dev for settings in served)


def test_join_token_and_keys(run: Run, registry: Driver) -> None:
    made = json.loads(run("join-token", "create", "billing", "--ttl", "10m", "--uses", "2", "--json").stdout)
    assert made["expires_at"] - made["created_at"] == 600
    token = JoinToken.parse(made["token"])
    assert token.pin == registry.pin
    mine = KeyPair.generate("ES256")
    assert registry.join(mine, "billing", token).status_code == 201
    [listed] = json.loads(run("join-token", "list", "--json").stdout)
    assert (listed["used"], listed["uses"], "sealed_key" in listed) == (1, 2, False)
    assert run("join-token", "revoke", token.id).exit_code == 0
    assert run("join-token", "revoke", token.id).exit_code == 1
    assert registry.join(KeyPair.generate("ES256"), "billing", token).status_code == 401
    [row] = json.loads(run("services", "--json").stdout)
    assert (row["service"], row["active_keys"]) == ("billing", 1)
    [key] = json.loads(run("keys", "billing", "--json").stdout)
    assert run("keys", "--json").stdout == run("keys", "billing", "--json").stdout
    assert key["kid"] in run("keys").stdout
    assert run("revoke", key["kid"]).exit_code == 0
    assert registry.statement("billing", mine).state == "revoked"


def test_operator_tokens(run: Run, registry: Driver) -> None:
    made = json.loads(run("operator-token", "create", "--role", "viewer", "--ttl", "1h", "--json").stdout)
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert registry.client.get("/v1/services", headers=headers).status_code == 200
    assert made["id"] in run("operator-token", "list").stdout
    assert made["token"] not in run("operator-token", "list", "--json").stdout
    assert run("operator-token", "revoke", made["id"]).exit_code == 0
    assert registry.client.get("/v1/services", headers=headers).status_code == 401


def test_the_same_commands_over_http(run: Run, registry: Driver, url: str) -> None:
    token = (registry.home / "operator-token").read_text()

    def remote(*arguments: str) -> Result:
        return run(*arguments, "--url", url, PEERSEAL_OPERATOR_TOKEN=token)

    made = json.loads(remote("join-token", "create", "billing", "--json").stdout)
    mine = KeyPair.generate("ES256")
    assert registry.join(mine, "billing", JoinToken.parse(made["token"])).status_code == 201
    for command in (["join-token", "list"], ["services"], ["keys"], ["keys", "billing"]):
        assert json.loads(remote(*command, "--json").stdout) == json.loads(run(*command, "--json").stdout)
    kid = f"{DOMAIN}/billing/{mine.public.thumbprint}"
    assert remote("revoke", kid, "--reason", "retired").exit_code == 0
    assert registry.statement("billing", mine).state == "retired"
    assert remote("revoke", kid).exit_code == 0
    assert registry.statement("billing", mine).state == "revoked"
    assert remote("join-token", "revoke", made["id"]).exit_code == 0
    refused = remote("join-token", "create", "registry")
    assert (refused.exit_code, refused.stderr.startswith("Error: invalid_name")) == (1, True)
    assert run("services", "--url", url).exit_code == 2
    assert run("services", "--url", url, PEERSEAL_OPERATOR_TOKEN="pso1.x.y").exit_code == 1
    assert run("services", "--url", "http://127.0.0.1:9", PEERSEAL_OPERATOR_TOKEN=token).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["keys", "nobody"], 1),
        (["revoke", "nonsense"], 1),
        (["revoke", f"other.internal/billing/{'A' * 43}"], 1),
        (["revoke", f"{DOMAIN}/billing/{'A' * 43}"], 1),
        (["join-token", "create", "Not A Name"], 1),
        (["join-token", "create", "billing", "--ttl", "soon"], 2),
        (["join-token", "create", "billing", "--ttl", "9999d"], 1),
        (["join-token", "create", "billing", "--uses", "0"], 2),
        (["operator-token", "revoke", "nobody"], 1),
        (["serve", "--dev", "--host", "0.0.0.0"], 2),
        (["nonsense"], 2),
    ],
)
def test_exit_codes(run: Run, registry: Driver, arguments: list[str], code: int) -> None:
    assert run(*arguments).exit_code == code


def test_every_command_has_help(run: Run) -> None:
    commands = ["init", "serve", "migrate", "services", "keys", "revoke"]
    groups = [
        [group, command] for group in ("operator-token", "join-token") for command in ("create", "list", "revoke")
    ]
    for arguments in ([], *([command] for command in commands), *groups):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout


def test_nothing_works_before_init(run: Run) -> None:
    result = run("services")
    assert result.exit_code == 1
    assert "initialised" in result.stderr


def test_an_unreachable_database(run: Run, registry: Driver, tmp_path: Path) -> None:
    assert run("services", REGISTRY_DATABASE_URL=f"postgresql:///x?host={tmp_path}").exit_code == 3
    assert run("migrate", REGISTRY_DATABASE_URL=f"postgresql:///x?host={tmp_path}").exit_code == 3
