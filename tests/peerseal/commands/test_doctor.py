"""``peerseal doctor`` says what is wrong on a host, and what to do; it changes nothing."""

import ast
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request

from demo.processes import free_port
from peerseal import Identity
from peerseal.__main__ import main
from peerseal.commands.checks.finding import ERROR, OK, WARNING, Finding
from peerseal.commands.checks.host import Host
from peerseal.commands.doctor import CHECKS, examine, exit_code, lines_of
from peerseal.errors import EnrolmentPending, EnrolmentRefused
from peerseal.flask import PeerAuth
from peerseal.identity.key_folder import KeyFolder, StoredKey
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.transport.fetch import Fetcher
from tests.peerseal.served import served
from tests.support.front import Front

URL = "http://127.0.0.1:1"
EXTERNAL = "http://shop.test"
PASSPHRASE = "a long enough passphrase"
Examined = Callable[..., dict[str, list[Finding]]]


@pytest.fixture
def clock() -> Clock:
    return Clock(float(int(time.time())))  # a whole second, as a Date has


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        yield registry


@pytest.fixture
def variables(registry: MemoryRegistry, tmp_path: Path) -> dict[str, str]:
    """Those of a service whose every setting is right."""
    return {
        "PEERSEAL_SERVICE": "billing",
        "PEERSEAL_REGISTRY_URL": URL,
        "PEERSEAL_REGISTRY_PIN": registry.pin,
        "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
        "PEERSEAL_JOIN_TOKEN": registry.join_token("billing"),
    }


@pytest.fixture
def examined(registry: MemoryRegistry, variables: dict[str, str], clock: Clock) -> Examined:
    """What each check finds, with some variables changed; None removes one."""

    def examined(
        changes: Mapping[str, str | None] | None = None,
        *,
        now: Callable[[], float] = clock,
        front: Fetcher | None = None,
        path: str = "/api/orders",
    ) -> dict[str, list[Finding]]:
        merged = variables | dict(changes or {})
        environ = {name: value for name, value in merged.items() if value is not None}

        def connect(url: str) -> Fetcher:
            return front if front is not None and url == EXTERNAL else registry

        host = Host(environ, None if front is None else EXTERNAL + path, now, connect)
        found: dict[str, list[Finding]] = {name: [] for name, _ in CHECKS}
        for name, finding in examine(host):
            found[name].append(finding)
        return found

    return examined


@pytest.fixture
def identity(registry: MemoryRegistry, variables: dict[str, str], clock: Clock) -> Identity:
    """The service after its first start on this host."""
    return registry.identity("billing", key_dir=variables["PEERSEAL_KEY_DIR"], retire_at_exit=False)


@pytest.fixture
def app(identity: Identity) -> Flask:
    """The service, which may call itself."""
    app = Flask(__name__)
    PeerAuth(app, identity, allow={"billing": set()})
    return app


def levels(found: Mapping[str, list[Finding]]) -> set[str]:
    return {finding.level for findings in found.values() for finding in findings}


def only(found: Mapping[str, list[Finding]], check: str) -> Finding:
    [finding] = found[check]
    return finding


def test_a_new_host_with_right_settings_has_no_error(examined: Examined) -> None:
    found = examined()
    assert levels(found) == {OK, WARNING}
    assert only(found, "key").found == "this host has no registered key, and the registry knows no service billing"


def test_a_started_service_is_all_ok(examined: Examined, identity: Identity) -> None:
    found = examined()
    assert levels(found) == {OK}
    assert found["key"][1].found == "the registry says that this key is active"


def test_nothing_is_changed_and_nothing_registered(
    examined: Examined, registry: MemoryRegistry, tmp_path: Path
) -> None:
    examined()
    assert list(tmp_path.iterdir()) == []
    assert {call.method for call in registry.log} == {"GET"}


def test_a_folder_of_keys_that_others_may_read_is_left_as_it_is(
    examined: Examined, identity: Identity, tmp_path: Path
) -> None:
    folder = tmp_path / "keys/billing"
    folder.chmod(0o750)
    finding = only(examined(), "key folder")
    assert (finding.level, finding.remedy) == (WARNING, f"chmod -R go= {folder}")
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("changes", "check", "found", "remedy"),
    [
        ({"PEERSEAL_SERVICE": None}, "settings", "PEERSEAL_SERVICE is not set", "the registry's operator knows it"),
        ({"PEERSEAL_SERVICE": "Bill ing"}, "settings", "PEERSEAL_SERVICE: ", "correct that variable"),
        ({"PEERSEAL_CACHEDIR": "/c"}, "settings", "PEERSEAL_CACHEDIR is no setting", "is PEERSEAL_CACHE_DIR meant?"),
        ({"PEERSEAL_REGISTRY_URL": "registry:8080"}, "settings", "has no scheme", "correct that variable"),
        ({"PEERSEAL_REGISTRY_URL": f"{URL}/v1/"}, "URL", "ends in /v1", f"set it to {URL}"),
        ({"PEERSEAL_JOIN_TOKEN": "psj1.x"}, "settings", "PEERSEAL_JOIN_TOKEN: ", "correct that variable"),
        (
            {"PEERSEAL_SERVICE": "registry"},
            "settings",
            "PEERSEAL_SERVICE: registry is reserved",
            "correct that variable",
        ),
        ({"PEERSEAL_KEY_PASSPHRASE": "short"}, "settings", "PEERSEAL_KEY_PASSPHRASE: expected 16", "correct that"),
        (
            {"PEERSEAL_OIDC_TOKEN_FILE": "/missing/token", "PEERSEAL_JOIN_TOKEN": None},
            "join token",
            "PEERSEAL_OIDC_TOKEN_FILE=/missing/token: ",
            "the first start sends that token",
        ),
        ({"PEERSEAL_JOIN_TOKEN": None}, "join token", "PEERSEAL_JOIN_TOKEN is not set", "join-token create billing"),
        ({"PEERSEAL_REGISTRY_PIN": "A" * 43}, "pin", "PEERSEAL_REGISTRY_PIN says AAAA", "another registry answers"),
        ({"PEERSEAL_KEY_DIR": None}, "key folder", "PEERSEAL_KEY_DIR is not set", "outlives a restart"),
        ({"PEERSEAL_KEY_DIR": __file__}, "key folder", "test_doctor.py is a file", "name a folder in PEERSEAL_KEY_DIR"),
        ({"PEERSEAL_CACHE_DIR": __file__}, "cache folder", "is a file", "name a folder in PEERSEAL_CACHE_DIR"),
        ({"PEERSEAL_REPLAY_DIR": __file__}, "replay guard", "is a file", "name a folder in PEERSEAL_REPLAY_DIR"),
        ({"PEERSEAL_KEY_DIR": None}, "replay guard", "the memory of each process", "set PEERSEAL_CACHE_DIR"),
        ({"PEERSEAL_KEY_DIR": None, "WEB_CONCURRENCY": "2"}, "workers", "WEB_CONCURRENCY=2", "set PEERSEAL_KEY_DIR"),
        (
            {"PEERSEAL_KEY_DIR": None, "GUNICORN_CMD_ARGS": "--bind :80 -w 4"},
            "workers",
            "GUNICORN_CMD_ARGS (-w 4)",
            "set PEERSEAL_KEY_DIR",
        ),
        ({"PEERSEAL_KEY_DIR": None, "FLASK_DEBUG": "1"}, "workers", "the reloader", "set PEERSEAL_KEY_DIR"),
    ],
)
def test_a_mistake_in_the_variables_is_named_with_its_remedy(
    examined: Examined, changes: dict[str, str | None], check: str, found: str, remedy: str
) -> None:
    wrong = [finding for finding in examined(changes)[check] if finding.level != OK]
    assert any(found in finding.found and remedy in finding.remedy for finding in wrong), wrong


@pytest.fixture
def encrypted(registry: MemoryRegistry, variables: dict[str, str]) -> Identity:
    """The service after its first start with a passphrase."""
    return registry.identity(
        "billing", key_dir=variables["PEERSEAL_KEY_DIR"], key_passphrase=PASSPHRASE, retire_at_exit=False
    )


@pytest.mark.usefixtures("encrypted")
@pytest.mark.parametrize(
    ("passphrase", "cause"),
    [
        (None, "is encrypted, and PEERSEAL_KEY_PASSPHRASE is not set"),
        ("another long passphrase", "PEERSEAL_KEY_PASSPHRASE does not open"),
        ("short", "PEERSEAL_KEY_PASSPHRASE: expected 16 to 1000 bytes"),
    ],
)
def test_keys_that_cannot_be_read_are_no_reason_for_a_join_token(
    examined: Examined, passphrase: str | None, cause: str
) -> None:
    found = examined({"PEERSEAL_KEY_PASSPHRASE": passphrase}, front=Front(Flask(__name__)))
    assert cause in only(found, "key").found
    join_token, proxy = only(found, "join token"), only(found, "proxy")
    assert (join_token.level, join_token.remedy) == (WARNING, "see the check of the key")
    assert (proxy.found, proxy.remedy) == (
        f"{EXTERNAL}/api/orders is not called: the keys of this host cannot be read",
        "see the check of the key",
    )


@pytest.mark.usefixtures("encrypted")
def test_keys_that_can_be_read_with_their_passphrase_are_ok(examined: Examined) -> None:
    assert levels(examined({"PEERSEAL_KEY_PASSPHRASE": PASSPHRASE})) == {OK}


def test_a_key_folder_of_which_the_system_refuses_all_is_named_without_a_number(examined: Examined) -> None:
    found = examined({"PEERSEAL_KEY_DIR": "/" + 300 * "k"})
    said = only(found, "key").found
    assert said.endswith(f"k/billing: cannot be read by uid {os.geteuid()}: File name too long")
    assert only(found, "join token").remedy == "see the check of the key"


@pytest.mark.parametrize(("seconds", "way"), [(121, "ahead of"), (-121, "behind")])
def test_a_wrong_clock_is_told_with_its_offset_and_hides_nothing_else(
    examined: Examined, identity: Identity, clock: Clock, seconds: int, way: str
) -> None:
    found = examined(now=lambda: clock.now + seconds)
    by_date, by_signed_time = found["clock"]
    assert by_date.found == f"this host's clock is 121 s {way} the registry's, by the answer's Date"
    assert by_signed_time.level == ERROR
    assert {name for name in found if levels({name: found[name]}) & {ERROR}} == {"clock"}


def test_another_server_is_told_from_a_registry(examined: Examined, registry: MemoryRegistry) -> None:
    registry.answers["/.well-known/peerseal-registry"] = Answer(200, b"<html>It works!</html>")
    finding = only(examined(), "registry")
    assert (finding.level, "another server may listen there" in finding.remedy) == (ERROR, True)


def test_without_a_pin_the_root_key_is_shown(examined: Examined, registry: MemoryRegistry) -> None:
    finding = only(examined({"PEERSEAL_REGISTRY_PIN": None, "PEERSEAL_JOIN_TOKEN": None}), "pin")
    assert (finding.level, finding.found) == (WARNING, f"no pin is set; the root key on this machine is {registry.pin}")


def test_a_missing_pin_is_told_where_the_registry_is_elsewhere_and_does_not_answer(
    variables: dict[str, str], registry: MemoryRegistry
) -> None:
    environ = {name: variables[name] for name in ("PEERSEAL_SERVICE", "PEERSEAL_KEY_DIR")}
    registry.down = True
    host = Host(environ | {"PEERSEAL_REGISTRY_URL": "http://registry.test"}, connect=lambda _: registry)
    [finding] = [finding for name, finding in examine(host) if name == "pin"]
    assert finding.level == ERROR
    assert finding.found == "no pin is set, and http://registry.test is not on this machine"
    assert "PEERSEAL_REGISTRY_PIN" in finding.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("started", [True, False])
def test_a_key_folder_in_a_folder_of_another_user_is_an_error(
    examined: Examined, tmp_path: Path, request: pytest.FixtureRequest, started: bool
) -> None:
    if started:
        request.getfixturevalue("identity")
    os.chown(tmp_path, 12345, -1)
    finding = only(examined(), "key folder")
    assert finding.level == ERROR
    assert f"{tmp_path} belongs to neither root nor uid 0" in finding.found
    assert "choose another folder" in finding.remedy


def test_a_join_token_of_another_registry_is_told_by_its_pin(examined: Examined) -> None:
    with MemoryRegistry() as foreign:
        found = examined({"PEERSEAL_JOIN_TOKEN": foreign.join_token("billing"), "PEERSEAL_REGISTRY_PIN": None})
    assert f"the join token says {foreign.pin}" in only(found, "pin").found


def test_a_revoked_key_is_told(examined: Examined, identity: Identity, registry: MemoryRegistry) -> None:
    registry.revoke(identity.credentials.key_id)
    assert examined()["key"][1].found == "the registry says that this key is revoked"


def test_a_key_of_a_registry_that_was_set_up_again_is_told(
    examined: Examined, identity: Identity, registry: MemoryRegistry
) -> None:
    registry.keys.clear()
    assert examined()["key"][1].found == "the registry does not know this key"


def test_a_key_that_was_refused_is_no_registered_key(
    examined: Examined, registry: MemoryRegistry, variables: dict[str, str]
) -> None:
    with pytest.raises(EnrolmentRefused):
        registry.identity("billing", key_dir=variables["PEERSEAL_KEY_DIR"], join_token=registry.join_token("other"))
    assert examined()["key"][0].found.startswith("this host has no registered key, ")


def test_a_key_that_waits_for_an_operator_is_told(
    examined: Examined, registry: MemoryRegistry, variables: dict[str, str]
) -> None:
    registry.answers["/v1/services/billing/keys"] = Answer(202, b"{}", {})
    identity = Identity(
        "billing", registry="http://registry.test", key_dir=variables["PEERSEAL_KEY_DIR"], alg="ES256", fetcher=registry
    )
    with pytest.raises(EnrolmentPending) as pending:
        identity.start(timeout=0.0)
    kid = str(pending.value).partition(" ")[0]
    found = examined({"PEERSEAL_JOIN_TOKEN": None})
    waits = found["key"][1]
    assert waits.found == (
        f"the registry has admitted no key {kid}: it was never sent there, was refused, or waits for an operator"
    )
    assert "`peerseal join` sends it, and says what the registry answers" in waits.remedy
    assert levels(found) == {OK, WARNING}


def test_a_key_that_was_admitted_while_this_host_could_not_note_it_is_told(
    examined: Examined, identity: Identity, variables: dict[str, str]
) -> None:
    kid = unnoted(variables)
    finding = examined()["key"][1]
    assert (finding.level, finding.found) == (
        WARNING,
        f"the registry says that {kid} is active, and this host has not noted it",
    )


def test_a_key_that_was_revoked_before_this_host_noted_it_is_an_error(
    examined: Examined, identity: Identity, registry: MemoryRegistry, variables: dict[str, str]
) -> None:
    kid = unnoted(variables)
    registry.revoke(kid)
    finding = examined()["key"][1]
    assert (finding.level, finding.found) == (ERROR, f"the registry says that {kid} is revoked")


def unnoted(variables: Mapping[str, str]) -> str:
    """The kid of the host's key, which is as a full disk leaves it: the registry admitted it, the host did not note
    that."""
    folder = KeyFolder(Path(variables["PEERSEAL_KEY_DIR"]) / "billing")
    stored = folder.load()
    [key] = stored.keys
    folder.save(replace(stored, keys=(replace(key, registered_at=None),)))
    return key.kid


def test_a_next_key_that_the_registry_did_not_admit_is_told(
    examined: Examined, identity: Identity, variables: dict[str, str]
) -> None:
    folder = KeyFolder(Path(variables["PEERSEAL_KEY_DIR"]) / "billing")
    [signing] = (stored := folder.load()).keys
    pair = KeyPair.generate("ES256")
    kid = f"{signing.owner}/{pair.public.thumbprint}"
    folder.save(stored.having(StoredKey(kid, pair, refused=True)))
    found = examined()["key"]
    assert [each.level for each in found] == [WARNING, OK, OK]
    assert kid in found[0].found


def test_a_key_is_not_blamed_while_the_registry_does_not_answer(
    examined: Examined, identity: Identity, registry: MemoryRegistry, variables: dict[str, str]
) -> None:
    kid = unnoted(variables)
    registry.answers[REGISTRY_KEYS_PATH] = Answer(503, b"", {})
    assert examined()["key"][1].found == f"{kid} is not registered, as far as this host knows"


@pytest.mark.parametrize(("url", "level"), [(URL, WARNING), ("http://registry.test", ERROR)])
def test_without_a_join_token_only_a_registry_on_this_machine_may_admit_a_service(
    examined: Examined, url: str, level: str
) -> None:
    finding = only(examined({"PEERSEAL_REGISTRY_URL": url, "PEERSEAL_JOIN_TOKEN": None}), "join token")
    assert (finding.level, "serve --dev" in finding.found) == (level, level == WARNING)


def test_a_host_whose_keys_have_ended_is_told(examined: Examined, identity: Identity, clock: Clock) -> None:
    clock.advance(8 * 24 * 3600)
    assert only(examined(), "key").found.startswith("each key on this host has ended")


def test_a_key_that_ends_soon_is_a_warning(examined: Examined, identity: Identity, clock: Clock) -> None:
    clock.advance(6.5 * 24 * 3600)
    assert examined()["key"][0].level == WARNING


def test_the_policy_is_shown_with_its_callers(examined: Examined, identity: Identity, registry: MemoryRegistry) -> None:
    registry.set_policy("billing", {"shop": ["read"], "*": []}, restricted=True)
    found = only(examined(), "policy").found
    assert found.endswith("it names * (no scope), test.internal/shop (read)")


def test_a_folder_for_the_replay_guard_alone_is_shared(examined: Examined, tmp_path: Path) -> None:
    found = examined({"PEERSEAL_KEY_DIR": None, "PEERSEAL_REPLAY_DIR": str(tmp_path)})["replay guard"]
    assert [finding.level for finding in found] == [OK, OK]


def test_a_redis_that_does_not_answer_is_an_error_without_its_password(examined: Examined) -> None:
    finding = only(examined({"PEERSEAL_REPLAY_URL": f"redis://:secret@127.0.0.1:{free_port()}/0"}), "replay guard")
    assert (finding.level, "secret" in finding.found + finding.remedy) == (ERROR, False)


def test_a_call_through_a_proxy_that_changes_nothing_arrives(examined: Examined, app: Flask) -> None:
    assert only(examined(front=Front(app)), "proxy").found.endswith("the call arrives as it was signed (404)")


@pytest.mark.parametrize("path", ["/api/orders?a=1", "/api/v2/orders"])
def test_a_stripped_prefix_is_found_out(examined: Examined, app: Flask, path: str) -> None:
    prefix = path.partition("/orders")[0]
    finding = only(examined(front=Front(app, strip=prefix), path=path), "proxy")
    assert finding.found.endswith(f"the service gets {path.removeprefix(prefix)}, without {prefix}")
    assert finding.remedy == f"set PEERSEAL_EXTERNAL_PREFIX={prefix} for the service"


def test_a_prefix_that_no_proxy_strips_is_found_out(examined: Examined, identity: Identity) -> None:
    app = Flask(__name__)
    PeerAuth(app, identity, allow={"billing": set()}, external_prefix="/api")
    finding = only(examined({"PEERSEAL_EXTERNAL_PREFIX": "/api"}, front=Front(app), path="/orders"), "proxy")
    assert finding.remedy.startswith("unset PEERSEAL_EXTERNAL_PREFIX")


def test_a_service_that_does_not_allow_itself_is_a_warning(examined: Examined, identity: Identity) -> None:
    app = Flask(__name__)
    PeerAuth(app, identity, allow={})
    finding = only(examined(front=Front(app)), "proxy")
    [entry] = re.findall("^for this check, add (.*) to its allow=$", finding.remedy)
    assert finding.level == WARNING
    assert examined(front=Front(allowing(entry, identity)))["proxy"][0].level == OK


def test_the_page_allows_a_service_to_call_itself_as_a_service_can(examined: Examined, identity: Identity) -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/terminal.md").read_text(encoding="utf-8")
    [entry] = re.findall(r"`allow=\{(\"billing.*)\}`", page)
    assert only(examined(front=Front(allowing(entry, identity))), "proxy").level == OK


def allowing(entry: str, identity: Identity) -> Flask:
    """A service whose ``allow=`` has that entry, written as Python."""
    name, scopes = entry.split(": ")
    written = {"set()": set(), "{}": {}}
    app = Flask(__name__)
    PeerAuth(app, identity, allow={ast.literal_eval(name): written[scopes]})
    return app


@pytest.mark.parametrize(
    "code", ["bad_signature", "wrong_issuer", "wrong_type", "lifetime_too_long", "revoked_key", "content_too_large"]
)
def test_a_refusal_before_the_binding_is_compared_is_an_error(
    examined: Examined, identity: Identity, code: str
) -> None:
    finding = only(examined(front=Front(answering(401, {"code": code}))), "proxy")
    assert (finding.level, code in finding.found) == (ERROR, True)


@pytest.mark.parametrize("code", ["bad_transaction_token", "insufficient_scope"])
def test_a_refusal_after_the_binding_was_compared_is_ok(examined: Examined, identity: Identity, code: str) -> None:
    assert only(examined(front=Front(answering(403, {"code": code}))), "proxy").level == OK


@pytest.mark.parametrize("problem", [{}, {"code": "a_code_of_the_application"}])
@pytest.mark.parametrize("status", [400, 413, 431, 500, 502])
def test_an_answer_that_may_be_of_a_server_in_front_is_no_success(
    examined: Examined, identity: Identity, status: int, problem: dict[str, str]
) -> None:
    finding = only(examined(front=Front(answering(status, problem))), "proxy")
    assert finding.level == WARNING
    assert f"answers {status}" in finding.found


def answering(status: int, problem: dict[str, str]) -> Flask:
    """A service that answers each call with a token so."""
    app = Flask(__name__)

    @app.before_request
    def answer() -> tuple[dict[str, str], int]:
        return (problem, status) if "Authorization" in request.headers else ({"code": "missing_token"}, 401)

    return app


def test_a_proxy_that_drops_the_token_is_an_error(examined: Examined, app: Flask) -> None:
    finding = only(examined(front=Front(app, drop=frozenset({"Authorization"}))), "proxy")
    assert "the token does not arrive" in finding.found


def test_a_path_without_a_check_tells_nothing(examined: Examined, identity: Identity) -> None:
    assert only(examined(front=Front(Flask(__name__))), "proxy").level == WARNING


def test_a_registry_that_is_down_has_its_own_exit_code(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for name, value in (variables | {"PEERSEAL_REGISTRY_URL": url}).items():
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 3
    assert "connection refused" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def at_work(registry: MemoryRegistry, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variables are set, and the registry is reached over HTTP."""
    for name in [name for name in os.environ if name.startswith("PEERSEAL_")]:
        monkeypatch.delenv(name)
    with served(registry) as url:
        for name, value in (variables | {"PEERSEAL_REGISTRY_URL": url}).items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("at_work")
def test_each_check_has_a_line_of_at_most_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("ok       settings      PEERSEAL_SERVICE=billing;")
    assert max(map(len, shown)) <= 80


@pytest.mark.usefixtures("at_work")
def test_json_has_all_findings_and_no_secret(variables: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    checks: list[dict[str, Any]] = json.loads(text)["checks"]
    assert {check["level"] for check in checks} == {OK, WARNING}
    assert variables["PEERSEAL_JOIN_TOKEN"].split(".")[2] not in text


@pytest.mark.usefixtures("at_work")
def test_an_error_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERSEAL_REGISTRY_PIN", "A" * 43)
    assert main(["doctor"]) == 1


@pytest.mark.parametrize("url", ["shop.test/api", "http://shop.test/a#b", "http://me:secret@shop.test/a"])
def test_a_url_that_cannot_be_called_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", url]) == 2
    said = capsys.readouterr()
    assert (said.out, "secret" in said.err) == ("", False)


def test_a_check_that_cannot_be_done_is_an_error_and_the_others_go_on(
    variables: dict[str, str], registry: MemoryRegistry
) -> None:
    host = Host(variables | {"PEERSEAL_REPLAY_URL_FILE": "/missing"}, connect=lambda _: registry)
    found = list(examine(host))
    assert ("replay guard", ERROR) in [(name, finding.level) for name, finding in found]
    assert found[-1][0] == "policy"
    assert exit_code(host, [finding for _, finding in found]) == 1


def test_an_unknown_variable_is_a_finding_and_no_log_line_too(
    variables: dict[str, str], registry: MemoryRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    found = list(examine(Host(variables | {"PEERSEAL_KEYDIRECTORY": "/k"}, connect=lambda _: registry)))
    assert any("PEERSEAL_KEYDIRECTORY is no setting" in finding.found for _, finding in found)
    assert "PEERSEAL_KEYDIRECTORY" not in caplog.text


def test_a_long_finding_goes_on_below_itself() -> None:
    shown = list(lines_of("clock", Finding(ERROR, "x " * 60, "do this")))
    assert shown[1].startswith(" " * 23 + "x")
    assert shown[-1] == " " * 23 + "-> do this"


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_authorities_that_cannot_be_read_are_named(examined: Examined, variable: str) -> None:
    finding = examined({variable: "/nowhere/ca.pem"})["TLS"][0]
    assert finding.level == WARNING
    assert finding.found == f"{variable}=/nowhere/ca.pem: no such file or directory; calls over https fail"
