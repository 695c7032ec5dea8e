"""``peerseal join``, ``rotate`` and ``retire`` on a host, with a registry over HTTP."""

import io
import json
import os
import pty
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from demo.processes import free_port
from peerseal import Identity
from peerseal.commands.identity import PENDING
from peerseal.errors import TrustUnavailable
from peerseal.protocol.documents.key_set import ACTIVE, RETIRED
from peerseal.protocol.join import JoinToken
from peerseal.protocol.words import words_of
from peerseal.testing import Answer
from tests.peerseal.commands.host import KEYS, Host, new_host
from tests.registry.driver import Driver
from tests.support.waiting import until

WAITS = Answer(202, b"{}", {"content-type": "application/json"})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    with new_host(tmp_path, monkeypatch, capsys) as host:
        yield host


@pytest.fixture
def joined(host: Host) -> Host:
    host.join()
    return host


# ---- join


def test_a_host_joins_once_and_keeps_its_key(host: Host) -> None:
    host.with_token()
    code, output = host.run("join", "--json")
    first = json.loads(output)
    [thumbprint] = host.registry.keys
    assert (code, first["state"], first["new"]) == (0, "active", True)
    assert first["kid"] == f"{host.registry.domain}/billing/{thumbprint}"
    assert first["ends_at"] == host.registry.keys[thumbprint].active_until
    assert json.loads(host.run("join", "--json")[1]) == {**first, "new": False}
    assert list(host.registry.keys) == [thumbprint]


def test_what_join_prints_fits_a_terminal(joined: Host) -> None:
    code, output = joined.run("join")
    assert code == 0
    assert "state    active, registered before\n" in output
    assert max(map(len, output.splitlines())) <= 80
    assert joined.errors == ""


def test_without_a_key_folder_no_host_joins(host: Host) -> None:
    host.settings.delenv("PEERSEAL_KEY_DIR")
    assert host.run("join") == (2, "")
    assert "PEERSEAL_KEY_DIR is not set" in host.errors


def test_no_host_joins_as_the_registry(host: Host) -> None:
    host.set(SERVICE="registry")
    assert host.run("join") == (2, "")
    assert host.errors.startswith("Error: PEERSEAL_SERVICE: registry is reserved")
    assert not host.key_dir.exists()


def test_a_registry_elsewhere_without_a_pin_names_the_variable(host: Host) -> None:
    host.set(REGISTRY_URL="http://registry.test")
    assert host.run("join") == (2, "")
    assert host.errors.startswith("Error: PEERSEAL_REGISTRY_PIN is not set")


def test_a_used_join_token_is_refused_without_its_secret(host: Host, tmp_path: Path) -> None:
    token = host.join()
    host.set(KEY_DIR=str(tmp_path / "another"))
    assert host.run("join") == (1, "")
    assert "join_refused" in host.errors
    assert JoinToken.parse(token).secret not in host.errors


def test_a_host_whose_registry_is_away_does_not_join(host: Host) -> None:
    host.with_token()
    host.registry.down = True
    assert host.run("join") == (3, "")


@pytest.mark.parametrize("none", ["0", "0s", "0.0"])
def test_a_wait_of_no_time_tries_once(host: Host, none: str) -> None:
    host.with_token()
    host.registry.down = True
    assert host.run("join", "--wait", none) == (3, "")
    host.registry.down = False
    assert host.run("join", "--wait", none)[0] == 0


def test_a_key_of_which_the_registry_says_nothing_is_not_called_active(joined: Host) -> None:
    [key] = joined.stored().keys
    joined.registry.down = True
    assert joined.run("join") == (3, "")
    assert key.kid in joined.errors
    assert "is not known" in joined.errors
    joined.registry.down = False
    assert joined.run("join")[0] == 0


def test_a_key_is_not_called_active_by_another_server(joined: Host) -> None:
    [key] = joined.stored().keys
    for path in ("/.well-known/peerseal-registry", f"{KEYS}/{key.thumbprint}.jwt"):
        joined.registry.answers[path] = Answer(200, b"<html>It works!</html>")
    assert joined.run("join") == (1, "")
    assert "Error: " in joined.errors
    assert joined.stored().keys == (key,)


def test_a_revoked_key_is_not_called_active(joined: Host) -> None:
    joined.registry.revoke(joined.stored().keys[0].kid)
    assert joined.run("join") == (1, "")
    assert "join_refused" in joined.errors


def test_join_waits_for_the_word_on_a_key_that_it_has_if_asked(joined: Host) -> None:
    [key] = joined.stored().keys
    statement = f"{KEYS}/{key.thumbprint}.jwt"
    joined.registry.answers[statement] = Answer(503, b"", {})

    def recover() -> None:
        until(lambda: joined.registry.calls[f"GET {statement}"] > 2, what="further questions")
        joined.registry.answers.clear()

    operator = threading.Thread(target=recover)
    operator.start()
    code, output = joined.run("join", "--json", "--wait", "10m")
    operator.join()
    assert (code, json.loads(output)["state"], json.loads(output)["new"]) == (0, "active", False)


def test_a_key_that_waits_for_an_operator_has_an_exit_code_of_its_own(host: Host) -> None:
    host.registry.answers[KEYS] = WAITS
    code, output = host.run("join", "--json")
    [key] = host.stored().keys
    assert code == PENDING
    words = words_of(key.pair.public.thumbprint)
    named = {"id": key.owner, "kid": key.kid, "words": list(words)}
    assert json.loads(output) == {**named, "state": "pending", "new": True, "ends_at": None}
    shown = host.run("join")[1]
    assert "peerseal-registry approve" in shown
    assert " ".join(words) in " ".join(shown.split())
    assert max(map(len, shown.splitlines()[2:])) <= 80


@pytest.fixture
def applied(host: Host, sqlite_url: str, tmp_path: Path) -> Iterator[tuple[Driver, str, str]]:
    """A real registry with applicants, the kid of this host's key, which waits there, and the key's path."""
    driver = Driver(sqlite_url, tmp_path / "home", applicants=True)
    server = make_server("127.0.0.1", 0, driver.app, threaded=True)
    threading.Thread(target=server.serve_forever).start()
    try:
        host.set(REGISTRY_URL=f"http://127.0.0.1:{server.server_port}")
        code, output = host.run("join", "--json")
        kid = json.loads(output)["kid"]
        assert code == PENDING
        yield driver, kid, f"/v1/services/billing/keys/{kid.rpartition('/')[2]}"
    finally:
        server.shutdown()
        server.server_close()
        driver.close()


def test_the_approval_of_an_operator_completes_it(host: Host, applied: tuple[Driver, str, str]) -> None:
    driver, kid, path = applied
    assert driver.client.post(f"{path}/approve", headers=driver.operator).status_code == 201
    code, output = host.run("join", "--json")
    assert (code, json.loads(output)["kid"], json.loads(output)["state"]) == (0, kid, "active")


def test_a_rejected_applicant_applies_again_with_the_same_key(host: Host, applied: tuple[Driver, str, str]) -> None:
    driver, kid, path = applied
    assert driver.client.delete(f"{path}?reason=rejected", headers=driver.operator).status_code == 204
    code, output = host.run("join", "--json")
    assert (code, json.loads(output)["kid"]) == (PENDING, kid)


@pytest.mark.thorough  # it waits for ten seconds for the operator
def test_every_command_that_needs_a_key_has_that_exit_code(host: Host) -> None:
    host.registry.answers[KEYS] = WAITS
    assert host.run("assertion") == (PENDING, "")


def test_join_waits_for_the_approval_if_asked(host: Host) -> None:
    host.with_token()
    host.registry.answers[KEYS] = WAITS

    def approve() -> None:
        until(lambda: host.registry.calls[f"POST {KEYS}"] > 0, what="the application")
        host.registry.answers.clear()

    operator = threading.Thread(target=approve)
    operator.start()
    code, output = host.run("join", "--json", "--wait", "10m")
    operator.join()
    assert (code, json.loads(output)["state"]) == (0, "active")


def test_a_key_from_a_file_is_registered(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "made.pem"
    made = json.loads(host.run("keygen", str(file), "--alg", "ES256", "--json")[1])
    host.with_token()
    for new in (True, False):
        code, output = host.run("join", "--key", str(file), "--json")
        assert (code, json.loads(output)["new"]) == (0, new)
    assert host.registered() == {made["thumbprint"]: ACTIVE}


def test_a_host_with_a_key_takes_no_other_key(joined: Host, tmp_path: Path) -> None:
    joined.run("keygen", str(tmp_path / "made.pem"), "--alg", "ES256")
    assert joined.run("join", "--key", str(tmp_path / "made.pem")) == (2, "")
    assert "rotate or retire it" in joined.errors
    assert len(joined.stored().keys) == 1


# ---- rotate


def test_rotation_registers_the_next_key_and_leaves_the_old_one_valid(joined: Host) -> None:
    [old] = joined.stored().keys
    code, output = joined.run("rotate", "--json")
    shown = json.loads(output)
    new = joined.registry.found(shown["new"]["kid"])
    assert (code, shown["old"]["kid"], new.admission.by) == (0, old.kid, {"kid": old.kid})
    assert shown["new"]["signs_from"] > shown["old"]["ends_at"] - 7 * 24 * 3600
    assert list(joined.registered().values()) == [ACTIVE, ACTIVE]


def test_a_next_key_that_does_not_sign_yet_is_not_replaced(joined: Host) -> None:
    first, second = (json.loads(joined.run("rotate", "--json")[1]) for _ in range(2))
    assert first["new"] == second["new"]
    assert len(joined.registry.keys) == 2


def test_a_first_key_that_was_admitted_unseen_is_replaced_in_its_lead(joined: Host) -> None:
    """An operator approved it, or the answer was lost: the key has a lead, and signs all the same."""
    make_candidate(joined)
    joined.run("join")
    shown = json.loads(joined.run("rotate", "--json")[1])
    assert shown["old"]["kid"] != shown["new"]["kid"]
    assert joined.registry.found(shown["new"]["kid"]).admission.by == {"kid": shown["old"]["kid"]}


def test_a_host_without_a_key_cannot_rotate(host: Host) -> None:
    host.with_token()
    assert host.run("rotate") == (2, "")
    assert "peerseal join" in host.errors
    assert host.registry.keys == {}


def test_a_running_process_signs_with_the_key_that_the_command_registered(joined: Host) -> None:
    joined.set(ROTATE_LEAD="0")
    service = Identity.from_env().start()
    try:
        new = json.loads(joined.run("rotate", "--json")[1])["new"]["kid"]
        until(lambda: service.credentials.key_id == new, what="the change to the new key")
    finally:
        service.stop()


def test_rotation_needs_the_registry(joined: Host) -> None:
    [old] = joined.stored().keys
    joined.registry.down = True
    assert joined.run("rotate") == (3, "")
    assert joined.stored().signing(time.time()) == old
    joined.registry.down = False
    assert json.loads(joined.run("rotate", "--json")[1])["old"]["kid"] == old.kid


def test_rotation_with_a_wrong_url_names_the_cause(joined: Host) -> None:
    for copies in (joined.key_dir / "billing").glob("documents-*"):
        shutil.rmtree(copies)
    joined.set(REGISTRY_URL=f"http://127.0.0.1:{free_port()}")
    assert joined.run("rotate") == (3, "")
    assert "connection refused" in joined.errors.splitlines()[-1]


# ---- retire


def test_retirement_ends_the_keys_here_and_at_the_registry(joined: Host) -> None:
    joined.run("rotate")
    kids = [key.kid for key in joined.stored().keys]
    code, output = joined.run("retire", "--yes", "--json")
    assert (code, json.loads(output)) == (0, {"retired": kids})
    assert set(joined.registered().values()) == {RETIRED}
    assert joined.stored().keys == ()
    assert list((joined.key_dir / "billing").glob("*.pem")) == []
    assert joined.run("retire") == (0, "This host has no keys.\n")


def test_a_process_whose_keys_were_retired_can_sign_no_longer(joined: Host) -> None:
    service = Identity.from_env().start()
    try:
        service.sign_assertion()
        joined.run("retire", "--yes")
        until(lambda: not service.is_ready(), what="the loss of the keys")
        with pytest.raises(TrustUnavailable):
            service.sign_assertion()
    finally:
        service.stop()


def test_after_retirement_a_host_joins_with_a_new_token_only(joined: Host) -> None:
    assert "needs a new join token" in joined.run("retire", "--yes")[1]
    assert joined.run("join") == (1, "")
    joined.with_token()
    assert joined.run("join")[0] == 0


def test_without_a_terminal_nothing_is_retired_unless_told(joined: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert joined.run("retire") == (2, "")
    assert "--yes" in joined.errors
    assert list(joined.registered().values()) == [ACTIVE]


@pytest.mark.parametrize(("typed", "code", "state"), [("y\n", 0, RETIRED), ("\n", 1, ACTIVE), ("no\n", 1, ACTIVE)])
def test_at_a_terminal_the_user_decides(
    joined: Host, typed: str, code: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with typing(typed, monkeypatch):
        assert joined.run("retire")[0] == code
    assert list(joined.registered().values()) == [state]
    assert joined.errors.count("its calls will fail") == 0


def test_the_user_learns_that_a_process_uses_the_keys(joined: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Identity.from_env().start()
    try:
        with typing("n\n", monkeypatch):
            joined.run("retire")
        assert "A process of the service uses them: its calls will fail." in joined.errors
    finally:
        service.stop()


def test_a_key_that_the_registry_did_not_retire_stays(joined: Host) -> None:
    joined.registry.down = True
    assert joined.run("retire", "--yes") == (3, "")
    assert len(joined.stored().keys) == 1
    joined.registry.down = False
    assert joined.run("retire", "--yes")[0] == 0


def test_a_candidate_that_the_registry_admitted_unseen_is_retired_too(joined: Host) -> None:
    [key] = joined.stored().keys
    make_candidate(joined)
    assert joined.run("retire", "--yes", "--json") == (0, json.dumps({"retired": [key.kid]}) + "\n")
    assert list(joined.registered().values()) == [RETIRED]


def make_candidate(host: Host) -> None:
    """Leave the folder as a process leaves it that did not see the registry's answer."""
    file = host.key_dir / "billing/keys.json"
    file.write_text(re.sub(r'"registered_at":[0-9.]+', '"registered_at":null', file.read_text()))


@contextmanager
def typing(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal as standard input, at which a user types."""
    keyboard, terminal = pty.openpty()
    try:
        with open(terminal) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            os.write(keyboard, text.encode())
            yield
    finally:
        os.close(keyboard)
