"""``peerseal whoami`` on a host, with a registry over HTTP."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal import Identity
from peerseal.commands.whoami import (
    CANDIDATE,
    CURRENT,
    ENDED,
    NEXT,
    PREVIOUS,
    UNKNOWN,
    use_of,
)
from peerseal.identity.key_folder import StoredKey, StoredKeys
from peerseal.protocol.documents.key_set import ACTIVE, REVOKED
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.words import words_of
from peerseal.testing import Answer
from tests.peerseal.commands.host import KEYS, Host, new_host

PAIR = KeyPair.generate("ES256")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    with new_host(tmp_path, monkeypatch, capsys) as host:
        yield host


def test_the_keys_are_shown_with_their_use_and_the_registrys_word(host: Host) -> None:
    host.join()
    host.run("rotate")
    code, output = host.run("whoami", "--json")
    shown = json.loads(output)
    stored = host.stored().keys
    assert (code, shown["id"], shown["registry"]["problem"]) == (0, f"{host.registry.domain}/billing", None)
    assert shown["registry"]["pin"] == host.registry.pin
    assert [key["kid"] for key in shown["keys"]] == [key.kid for key in stored]
    assert [(key["use"], key["state"]) for key in shown["keys"]] == [(CURRENT, ACTIVE), (NEXT, ACTIVE)]
    assert [key["ends_at"] for key in shown["keys"]] == [int(key.expires_at) for key in stored]
    assert shown["in_use"] is False


def test_a_running_process_is_seen(host: Host) -> None:
    host.join()
    service = Identity.from_env().start()
    try:
        assert "used by a running process" in host.run("whoami")[1]
    finally:
        service.stop()
    assert "used by no process now" in host.run("whoami")[1]


def test_it_registers_nothing_and_makes_no_folder(host: Host) -> None:
    host.with_token()
    code, output = host.run("whoami")
    assert (code, host.registry.keys, host.key_dir.exists()) == (0, {}, False)
    assert f"service   {host.registry.domain}/billing\n" in output
    assert "keys      none: peerseal join registers one\n" in output
    assert {call.method for call in host.registry.log} == {"GET"}


def test_a_revoked_key_is_shown_as_revoked(host: Host) -> None:
    host.join()
    host.registry.revoke(host.stored().keys[0].kid)
    shown = json.loads(host.run("whoami", "--json")[1])
    assert [(key["use"], key["state"]) for key in shown["keys"]] == [(CURRENT, REVOKED)]
    assert len(host.stored().keys) == 1


def test_a_candidate_has_no_end(host: Host) -> None:
    host.registry.answers[KEYS] = Answer(202, b"{}", {})
    host.run("join")
    assert " ".join(words_of(host.stored().keys[0].pair.public.thumbprint)) in " ".join(host.run("whoami")[1].split())
    [key] = json.loads(host.run("whoami", "--json")[1])["keys"]
    assert key["words"] == list(words_of(key["kid"].rpartition("/")[2]))
    assert (key["use"], key["state"], key["signs_from"], key["ends_at"]) == (CANDIDATE, UNKNOWN, None, None)
    shown = host.run("whoami")[1]
    assert "    candidate, not registered or not approved; at the registry: unknown\n" in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("  /")) <= 80, "folders are shown whole"


def test_without_its_registry_the_host_shows_what_it_knows(host: Host) -> None:
    host.join()
    host.registry.down = True
    code, output = host.run("whoami")
    assert (code, f"service   {host.registry.domain}/billing\n" in output) == (0, True)
    assert "problem   the registry's keys: " in output
    assert "    current; at the registry: not known\n" in output


def test_a_registry_elsewhere_without_a_pin_is_not_asked(host: Host) -> None:
    host.set(REGISTRY_URL="https://registry.invalid")
    code, output = host.run("whoami")
    assert (code, "needs a pin" in output) == (0, True)
    assert "pin       none\n" in output


def test_offline_it_asks_nothing(host: Host) -> None:
    host.join()
    asked = len(host.registry.log)
    shown = json.loads(host.run("whoami", "--offline", "--json")[1])
    assert shown["registry"]["problem"] == "not asked (--offline)"
    assert [key["state"] for key in shown["keys"]] == [None]
    assert len(host.registry.log) == asked


def test_a_host_that_never_joined_does_not_know_its_domain_offline(host: Host) -> None:
    assert "service   billing, of a trust domain that is not known\n" in host.run("whoami", "--offline")[1]
    assert json.loads(host.run("whoami", "--offline", "--json")[1])["id"] is None


def test_without_a_key_folder_the_keys_are_in_memory(host: Host) -> None:
    host.settings.delenv("PEERSEAL_KEY_DIR")
    assert "keys      in memory: without PEERSEAL_KEY_DIR" in host.run("whoami")[1]
    assert json.loads(host.run("whoami", "--json")[1])["keys"] is None


def test_the_folders_are_shown_with_the_modes_that_were_found(host: Host, tmp_path: Path) -> None:
    host.join()
    (host.key_dir / "billing").chmod(0o755)
    host.set(CACHE_DIR=str(tmp_path / "cache"))
    keys, cache = json.loads(host.run("whoami", "--json")[1])["folders"]
    assert keys == {
        "setting": "PEERSEAL_KEY_DIR",
        "path": str(host.key_dir / "billing"),
        "mode": "0755",
        "owner": os.geteuid(),
    }
    assert (cache["setting"], cache["mode"]) == ("PEERSEAL_CACHE_DIR", None)
    assert "PEERSEAL_CACHE_DIR: does not exist yet\n" in host.run("whoami")[1]


def test_the_help_says_that_a_folder_with_keys_is_made_private(host: Host) -> None:
    host.join()
    (host.key_dir / "billing").chmod(0o755)
    host.run("whoami")
    assert (host.key_dir / "billing").stat().st_mode & 0o777 == 0o700
    with pytest.raises(SystemExit):
        host.run("whoami", "--help")
    assert "takes access away from other users" in " ".join(host.printed().split())


def test_a_file_in_place_of_the_key_folder_is_wrong_usage(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    host.set(KEY_DIR=str(file))
    assert host.run("whoami") == (2, "")
    assert f"PEERSEAL_KEY_DIR: {file}/billing cannot be looked up" in host.errors
    assert "name a folder" in host.errors


def test_encrypted_keys_without_the_passphrase_name_the_variable(host: Host) -> None:
    host.set(KEY_PASSPHRASE="a long enough passphrase")
    host.join()
    host.settings.delenv("PEERSEAL_KEY_PASSPHRASE")
    assert host.run("whoami") == (2, "")
    assert "PEERSEAL_KEY_PASSPHRASE is not set" in host.errors


def test_a_missing_setting_is_named(host: Host) -> None:
    host.settings.delenv("PEERSEAL_SERVICE")
    assert host.run("whoami") == (2, "")
    assert "PEERSEAL_SERVICE is not set" in host.errors


def a_key(letter: str, **times: float) -> StoredKey:
    return StoredKey(f"acme.internal/billing/{letter * 43}", PAIR, **times)


def test_the_uses_of_keys_follow_their_lives() -> None:
    stored = StoredKeys(
        keys=(
            a_key("A", registered_at=0, signs_from=0, expires_at=50),
            a_key("B", registered_at=10, signs_from=10, expires_at=200),
            a_key("C", registered_at=20, signs_from=20, expires_at=200),
            a_key("D", registered_at=90, signs_from=120, expires_at=300),
            a_key("E"),
        )
    )
    assert [use_of(stored, key, 100) for key in stored.keys] == [ENDED, PREVIOUS, CURRENT, NEXT, CANDIDATE]
