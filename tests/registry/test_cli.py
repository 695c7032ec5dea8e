"""The commands, as a shell runs them, on this host's database and over HTTP."""

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from werkzeug.serving import make_server

from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.protocol.words import words_of
from registry.__main__ import main
from registry.app import create_app
from registry.services.setup.keyfiles import new_root_key
from registry.settings import Settings
from tests.registry.driver import DOMAIN, Driver, entries_of
from tests.support.certificates import Authority
from tests.support.issuer import Issuer

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


def test_keys_are_made_without_a_database_and_only_in_an_empty_folder(run: Run, tmp_path: Path) -> None:
    made, home = run("init", "--keys-only"), tmp_path / "home"
    keys = {"root-key.pem", "signing-key.pem", "ledger-key.pem", "sealing.key"}
    assert {path.name for path in home.iterdir()} == keys
    pin = json.loads(run("init", "--keys-only", "--json").stdout)
    assert pin["made"] == []
    assert f"root pin: {pin['pin']}" in made.stdout
    assert f"root pin: {pin['pin']}" in run("init", "--trust-domain", DOMAIN).stdout
    (home / "root-key.pem").unlink()
    refused = run("init", "--keys-only")
    assert refused.exit_code == 1
    assert f"{home / 'root-key.pem'}: missing next to other keys" in refused.stderr
    assert not (home / "root-key.pem").exists()


def test_init_needs_a_domain_and_keeps_it(run: Run) -> None:
    assert run("init").exit_code == 1
    assert run("init", "--trust-domain", "Not A Name").exit_code == 1
    assert run("init", "--trust-domain", DOMAIN).exit_code == 0
    assert run("init", REGISTRY_TRUST_DOMAIN=DOMAIN).exit_code == 0
    refused = run("init", "--trust-domain", "other.internal")
    assert refused.exit_code == 1
    assert "cannot be changed" in refused.stderr


def test_the_root_names_witnesses_and_names_none_again(run: Run, registry: Driver, tmp_path: Path) -> None:
    keys = [NoteKey.of(name, WITNESS_KEY, Ed25519PrivateKey.generate().public_key()) for name in ("a", "b")]
    named = [option for key in keys for option in ("--witness", str(key))]
    done = run("root", "witnesses", *named, "--quorum", "2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["quorum"], [witness["name"] for witness in found["witnesses"]]) == (2, ["a", "b"])
    request = tmp_path / "request.json"
    assert run("root", "request", "--out", str(request)).exit_code == 0
    assert json.loads(request.read_bytes())["witnesses"] == found["witnesses"], "they stay, unless others are named"
    assert run("root", "request", "--no-witnesses", "--out", str(request)).exit_code == 0
    assert not json.loads(request.read_bytes()).keys() & {"witnesses", "quorum"}


def test_the_status_tells_the_quorum_of_the_root(run: Run, registry: Driver) -> None:
    assert "quorum" not in run("status").stdout
    named = [str(NoteKey.of(name, WITNESS_KEY, Ed25519PrivateKey.generate().public_key())) for name in ("a", "b")]
    assert run("root", "witnesses", "--witness", named[0], "--witness", named[1], "--quorum", "1").exit_code == 0
    told = run("status", REGISTRY_WITNESSES=f"{named[0]} http://127.0.0.1:1").stdout
    assert "quorum: 1 of 2, has cosigned nothing; this node submits nothing to b" in told
    found = json.loads(run("status", "--json").stdout)
    assert found["quorum"] == {"needed": 1, "named": 2, "size": 0, "at": 0, "unasked": ["a", "b"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "name each witness"),
        (["--quorum", "1"], "name each witness"),
        (["--witness", "a+00000000+AAAA"], "belong together"),
        (["--witness", "a+00000000+AAAA", "--quorum", "1"], "--witness: the verifier key of a"),
        (["--witness", "a", "--quorum", "17"], "17 is not in the range"),
        (["--witness", "a", "--no-witnesses"], "together"),
    ],
)
def test_witnesses_that_cannot_be_named(run: Run, registry: Driver, options: list[str], said: str) -> None:
    done = run("root", "witnesses", *options)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


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
    monkeypatch.setattr("registry.commands.node.run_gunicorn", lambda settings, *_: served.append(settings))
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


def test_operator_tokens_over_http(run: Run, registry: Driver, url: str) -> None:
    token = (registry.home / "operator-token").read_text()

    def remote(*arguments: str, token: str = token) -> Result:
        return run(*arguments, "--url", url, PEERSEAL_OPERATOR_TOKEN=token)

    made = json.loads(remote("operator-token", "create", "--ttl", "1h", "--json").stdout)
    assert (made["role"], made["expires_at"] - made["created_at"]) == ("operator", 3600)
    listed = remote("operator-token", "list", "--json").stdout
    assert json.loads(listed) == json.loads(run("operator-token", "list", "--json").stdout)
    assert made["token"] not in listed
    assert json.loads(remote("join-token", "create", "billing", "--json", token=made["token"]).stdout)["uses"] == 1
    refused = remote("operator-token", "create", token=made["token"])
    assert (refused.exit_code, "role_insufficient" in refused.stderr) == (1, True)
    assert remote("operator-token", "revoke", made["id"]).exit_code == 0
    assert remote("services", token=made["token"]).exit_code == 1


def test_pending_keys_here_and_over_http(run: Run, registry: Driver, url: str) -> None:
    token = (registry.home / "operator-token").read_text()
    applicants = registry.node(applicants=True)
    remote = {"PEERSEAL_OPERATOR_TOKEN": token}
    for at, service in (((), "billing"), (("--url", url), "shipping")):
        approved, rejected = (KeyPair.generate("ES256") for _ in range(2))
        kids = [f"{DOMAIN}/{service}/{each.public.thumbprint}" for each in (approved, rejected)]
        for each in (approved, rejected):
            answer = applicants.post_key(service, {"proof": applicants.proof(each, service)})
            assert answer.status_code == 202
        listed = json.loads(run("keys", "--pending", "--json", *at, **remote).stdout)
        assert {row["kid"] for row in listed} == set(kids)
        assert all(row["words"] == list(words_of(row["kid"].rpartition("/")[2])) for row in listed)
        spoken = " ".join(run("keys", "--pending", *at, **remote).stdout.split())
        assert " ".join(words_of(approved.public.thumbprint)) in spoken
        assert json.loads(run("keys", "nobody", "--pending", "--json", *at, **remote).stdout) == []
        assert run("approve", kids[0], *at, **remote).stdout == f"active: {kids[0]}\n"
        assert run("approve", kids[0], *at, **remote).exit_code == 0
        assert run("reject", kids[1], *at, **remote).exit_code == 0
        assert run("reject", kids[1], *at, **remote).exit_code == 1
        assert run("reject", kids[0], *at, **remote).exit_code == 1, "it is pending no more"
        assert run("approve", kids[1], *at, **remote).exit_code == 1
        assert len(run("keys", "--pending", *at, **remote).stdout.splitlines()) == 1
        assert registry.statement(service, approved).state == "active"
    applicants.close()


def test_the_audit_trail_and_tidying_up(run: Run, registry: Driver, url: str) -> None:
    made = json.loads(run("join-token", "create", "billing", "--json").stdout)
    rows = json.loads(run("audit", "--json").stdout)
    assert [row["act"] for row in rows] == ["registry_created", "operator_created", "join_token_created"]
    assert rows[-1]["subject"] == made["id"]
    token = (registry.home / "operator-token").read_text()
    at = ("--url", url)
    assert json.loads(run("audit", "--json", *at, PEERSEAL_OPERATOR_TOKEN=token).stdout) == rows
    later = run("audit", "--json", "--after", str(rows[1]["id"]), *at, PEERSEAL_OPERATOR_TOKEN=token).stdout
    assert json.loads(later) == rows[2:]
    assert '{"local": "cli"}' in run("audit").stdout
    nothing = {"applicants": 0, "console_sessions": 0, "join_tokens": 0, "operator_tokens": 0, "used_tokens": 0}
    assert json.loads(run("tidy", "--json").stdout) == nothing
    assert "0 applicants" in run("tidy").stdout


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
        (["operator-token", "create", "--role", "root"], 2),
        (["operator-token", "create", "--ttl", "9999d"], 1),
        (["approve", f"{DOMAIN}/billing/{'A' * 43}"], 1),
        (["approve", f"other.internal/billing/{'A' * 43}"], 1),
        (["reject", "nonsense"], 1),
        (["revoke", f"{DOMAIN}/billing/{'A' * 43}", "--reason", "rejected"], 2),
        (["policy", "get", "Not A Name"], 1),
        (["policy", "set", "registry"], 1),
        (["policy", "set", "billing", "--allow", "Not A Name"], 1),
        (["policy", "set", "billing", "--allow", "other.internal/"], 1),
        (["policy", "set", "billing", "--allow", "client=a", "--allow", "client=b"], 2),
        (["policy", "set", "billing", "--restricted", "--file", "-"], 2),
        (["policy", "set", "billing", "--file", "-"], 1),
        (["policy", "set", "billing", "--if-match", "7"], 1),
        (["policy", "explain", "client", "other.internal/billing", "read"], 1),
        (["domain", "set", "-"], 1),
        (["domain", "set", "no-such-file"], 2),
        (["serve", "--dev", "--host", "0.0.0.0"], 2),
        (["nonsense"], 2),
    ],
)
def test_exit_codes(run: Run, registry: Driver, arguments: list[str], code: int) -> None:
    assert run(*arguments).exit_code == code


@pytest.mark.parametrize("over_http", [False, True])
def test_policies(run: Run, registry: Driver, url: str, tmp_path: Path, over_http: bool) -> None:
    token = (registry.home / "operator-token").read_text()

    def told(*arguments: str, code: int = 0) -> Any:
        at = ["--url", url] if over_http else []
        result = run(*arguments, "--json", *at, PEERSEAL_OPERATOR_TOKEN=token)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if result.stdout else result.stderr

    none = {"entry": 0, "setting": {"allow": None}}
    assert told("policy", "get", "billing") == none
    allow = ("--allow", "client=invoices:read invoices:write", "--allow", "*")
    done = told("policy", "set", "billing", *allow)
    rules = {f"{DOMAIN}/client": ["invoices:read", "invoices:write"], "*": []}
    assert done == {"entry": len(entries_of(registry.store)), "setting": {"allow": rules, "restricted": False}}
    assert told("policy", "get", "billing") == done
    assert "precondition_failed" in told("policy", "remove", "billing", "--if-match", "0", code=1)
    entry = str(done["entry"])
    assert told("policy", "remove", "billing", "--if-match", entry) == none
    assert told("policy", "remove", "billing") == none

    file = tmp_path / "setting.json"
    file.write_text(json.dumps({"allow": {"client": ["read"]}, "restricted": True}))
    assert told("policy", "set", "billing", "--file", str(file))["setting"]["restricted"] is True

    assert told("domain", "get") == {"entry": 0, "setting": {"minters": [], "issuers": []}}
    file.write_text(json.dumps({"minters": ["edge"], "issuers": []}))
    done = told("domain", "set", str(file))
    assert done["setting"] == {"minters": [f"{DOMAIN}/edge"], "issuers": []}
    assert told("domain", "get") == done
    assert "precondition_failed" in told("domain", "set", str(file), "--if-match", "0", code=1)


@pytest.mark.parametrize("over_http", [False, True])
def test_a_policy_explains_itself(run: Run, registry: Driver, url: str, over_http: bool) -> None:
    token = (registry.home / "operator-token").read_text()

    def why(caller: str, scope: str) -> tuple[int, str]:
        at = ["--url", url] if over_http else []
        result = run("policy", "explain", caller, "billing", scope, *at, PEERSEAL_OPERATOR_TOKEN=token)
        return result.exit_code, result.stdout.strip()

    code, reason = why("client", "read")
    assert (code, reason) == (0, f"no policy: what the code of {DOMAIN}/billing allows decides")
    assert run("policy", "set", "billing", "--allow", "client=read write").exit_code == 0
    entry = len(entries_of(registry.store))
    code, reason = why("client", "read")
    assert (code, reason.startswith(f'allowed by rule "{DOMAIN}/client": [read, write] of entry {entry}')) == (0, True)
    assert why(f"{DOMAIN}/client", "admin") == (
        1,
        f'denied because rule "{DOMAIN}/client": [read, write] of entry {entry} has no admin',
    )
    assert why("stranger", "read") == (1, f"denied because entry {entry} names neither {DOMAIN}/stranger nor *")
    other = "other.internal/client"
    assert why(other, "read") == (1, "denied because the trust domain other.internal is not believed")
    limits = ("--service", "client", "--scopes", "read", "--unchecked")
    root = ("--url", "https://other.internal", "--pin", "BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ")
    assert run("federation", "add", "other.internal", *root, *limits).exit_code == 0
    assert "lets no scope write of other.internal in" in why(other, "write")[1]
    assert "does not name shop of other.internal" in why("other.internal/shop", "read")[1]
    assert f"does not name {other}, and * means this domain alone" in why(other, "read")[1]
    rules = ("--allow", "*=read", "--allow", "client", "--allow", f"{other}=read")
    assert run("policy", "set", "billing", *rules).exit_code == 0
    assert why(other, "read")[0] == 0
    assert run("policy", "set", "billing", *rules[:-2]).exit_code == 0
    assert why(other, "read")[0] == 1, "anyone means this domain alone"
    assert why("stranger", "read")[1].startswith('allowed by rule "*": [read]')
    assert why("client", "read")[0] == 1, "a caller that is named has its own scopes"
    told = json.loads(run("policy", "explain", "client", "billing", "read", "--json").stdout)
    assert (told["allowed"], told["rule"], told["entry"]) == (False, f"{DOMAIN}/client", entry + 3)
    assert run("federation", "add", "other.internal", *root, "--unlimited", "--unchecked").exit_code == 0
    said = "denied because the registry of other.internal is no service that may call"
    assert why("other.internal/registry", "read") == (1, said)


@pytest.mark.parametrize("over_http", [False, True])
def test_the_domains_settings_explain_themselves_and_refuse_mistakes_by_name(
    run: Run, registry: Driver, url: str, tmp_path: Path, over_http: bool
) -> None:
    token, file = (registry.home / "operator-token").read_text(), tmp_path / "settings.json"
    at = ["--url", url] if over_http else []

    def told(*arguments: str) -> str:
        result = run("domain", *arguments, *at, PEERSEAL_OPERATOR_TOKEN=token)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert told("explain").splitlines() == [
        "no settings were laid down: nothing is allowed",
        "no service may mint",
        "no issuer of users' tokens is believed",
        "the token exchange is off",
        "no scope is derived from another one",
        "no service gets access tokens for foreign resource servers",
    ]
    keys = Issuer("https://two.example.com").jwks
    settings = {
        "minters": ["edge"],
        "issuers": [
            {"issuer": "https://one.example.com", "audience": "edge", "introspection_url": "https://one.example.com/i"},
            {
                **{"issuer": "https://two.example.com", "audience": "edge", "jwks": keys},
                "introspection_url": "https://two.example.com/i",
                **{"introspection_signed": True, "introspect_jwts": True},
            },
            {
                "issuer": "https://three.example.com",
                "audience": "edge",
                "jwks_url": "https://three.example.com/keys",
                "ca": Authority.make(tmp_path, "ca").file.read_text(),
            },
        ],
        "exchange": {"legacy": {"jobs.example.com": ["invoice", "refund"]}, "edge": {"jobs.example.com": ["ship"]}},
        "derived_scopes": [
            {"minter": "edge", "from": "orders:write", "to": ["invoice", "ship"]},
            {"minter": "legacy", "from": "orders:write", "to": ["invoice", "print"]},
        ],
        "access_tokens": {
            "kafka": {"audience": "https://kafka.acme.internal", "services": ["legacy", "edge"], "scopes": ["w", "r"]}
        },
    }
    file.write_text(json.dumps(settings))
    told("set", str(file))
    edge, legacy, entry = f"{DOMAIN}/edge", f"{DOMAIN}/legacy", len(entries_of(registry.store))
    sentences = [
        f"entry {entry} laid down these settings",
        f"{edge} may mint transaction tokens",
        "users' tokens of https://one.example.com for audience edge are believed: its keys are found by discovery",
        "its opaque tokens are sent to https://one.example.com/i, by services with credentials there",
        "users' tokens of https://two.example.com for audience edge are believed: its keys are in these settings "
        f"(kid {keys['keys'][0]['kid']})",
        "its opaque tokens, and its JWTs, are sent to https://two.example.com/i, by services with credentials there: "
        "only signed answers are believed",
        "users' tokens of https://three.example.com for audience edge are believed: its keys are at "
        "https://three.example.com/keys, and its https is checked with the certificates in these settings",
        f"{edge} may exchange a user's token for an event token of one of [ship] for jobs.example.com",
        f"{legacy} may exchange a user's token for an event token of one of [invoice, refund] for jobs.example.com",
        f"a user's token with orders:write yields an event of {edge} of one of [invoice, ship] and nothing else, "
        f"signed by {edge}",
        f"a user's token with orders:write yields an event of {edge} of one of [ship] for jobs.example.com and nothing "
        "else, by the exchange",
        f"a user's token with orders:write yields an event of {legacy} of one of [invoice] for jobs.example.com and "
        "nothing else, by the exchange",
        f"print is derived for {legacy}, and no grant of the exchange has it: it yields nothing",
        f"{edge}, {legacy} may have access tokens of the registry for kafka (https://kafka.acme.internal) with [r, w], "
        "for 300 s each",
    ]
    assert told("explain").splitlines() == sentences
    as_json = json.loads(told("explain", "--json"))
    assert (as_json["entry"], as_json["sentences"]) == (entry, sentences)
    assert as_json["setting"]["derived_scopes"][0] == {
        "minter": edge,
        "from": "orders:write",
        "to": ["invoice", "ship"],
    }

    settings["derived_scopes"] = [{"minter": "shop", "from": "orders:write", "to": ["invoice"]}]
    file.write_text(json.dumps(settings))
    refused = run("domain", "set", str(file), *at, PEERSEAL_OPERATOR_TOKEN=token)
    expected = f"derived_scopes[0]: minter is {DOMAIN}/shop, expected a service of minters or a client of exchange"
    assert (refused.exit_code, expected in refused.stderr) == (1, True)
    assert len(entries_of(registry.store)) == entry


def test_every_command_has_help(run: Run) -> None:
    commands = ["init", "serve", "migrate", "services", "keys", "revoke", "approve", "reject", "audit", "tidy", "roles"]
    groups = [
        [group, command] for group in ("operator-token", "join-token") for command in ("create", "list", "revoke")
    ]
    groups += [["policy", command] for command in ("get", "set", "remove", "explain")]
    groups += [["domain", command] for command in ("get", "set", "explain")]
    groups += [["federation", command] for command in ("add", "list", "remove", "export", "accept")]
    for arguments in ([], *([command] for command in commands), *groups):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout


def test_the_sql_of_the_roles_is_printed_without_a_registry(run: Run) -> None:
    sql = (Path(__file__).parents[2] / "migrations/roles.sql").read_text()
    assert run("roles").stdout == sql
    assert json.loads(run("roles", "--json").stdout) == {"sql": sql}


def test_roles_are_applied_on_postgresql_only(run: Run, registry: Driver) -> None:
    refused = run("roles", "--apply")
    assert refused.exit_code == 1
    assert "roles are for PostgreSQL, the database is sqlite" in refused.stderr


def test_nothing_works_before_init(run: Run) -> None:
    result = run("services")
    assert result.exit_code == 1
    assert "initialised" in result.stderr


def test_an_unreachable_database(run: Run, registry: Driver, tmp_path: Path) -> None:
    assert run("services", REGISTRY_DATABASE_URL=f"postgresql:///x?host={tmp_path}").exit_code == 3
    assert run("migrate", REGISTRY_DATABASE_URL=f"postgresql:///x?host={tmp_path}").exit_code == 3


def test_no_pin_looks_like_an_option_on_a_command_line() -> None:
    pins = [KeyPair.from_pem(new_root_key()).public.thumbprint for _ in range(500)]
    assert not [pin for pin in pins if pin.startswith("-")]


def test_the_status_says_what_each_witness_has_cosigned(run: Run, registry: Driver, tmp_path: Path) -> None:
    key = NoteKey.of("a.example", WITNESS_KEY, Ed25519PrivateKey.generate().public_key())
    setting = {"REGISTRY_WITNESSES": f"{key} http://127.0.0.1:1"}
    assert "witness a.example: has cosigned nothing" in run("status", **setting).stdout
    state = {"size": 3, "at": 1_800_000_000, "failures": 2, "tried_at": 1_800_000_060, "trouble": "it gave no answer"}
    file = tmp_path / "home" / "cosigned-checkpoint"
    file.write_text(json.dumps({"note": None, "witnesses": {"a.example": state}}))
    told = " ".join(run("status", **setting).stdout.split())
    assert "cosigned 3 entries, at 2027-01-15T08:00:00Z; 2 failure(s) since: it gave no answer" in told
    assert json.loads(run("status", "--json", **setting).stdout)["witnesses"] == {"a.example": state}
    assert "witnesses" not in json.loads(run("status", "--json").stdout)
