"""The registry's root, signing and ledger keys, encrypted at rest where there is a passphrase."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from registry.__main__ import main
from registry.app import create_app
from registry.services.setup.ceremony import Ceremony
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.unit import Store
from tests.registry.driver import DOMAIN

PASSPHRASE = "correct horse battery staple"
OTHER = "another passphrase of some length"
SECRET = {"REGISTRY_KEY_PASSPHRASE": PASSPHRASE}
KEYS = ("root-key.pem", "signing-key.pem", "ledger-key.pem")

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    def run(*arguments: str, **environ: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"REGISTRY_HOME": str(home), **environ})

    return run


@pytest.fixture
def initialised(run: Run) -> None:
    assert run("init", "--trust-domain", DOMAIN, **SECRET).exit_code == 0


def is_encrypted(file: Path) -> bool:
    return file.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def document(home: Path, **environ: str) -> tuple[int, RegistryKeys | None]:
    """What a server answers that has those settings: the status, and the root-signed document."""
    client = create_app(Settings.from_environ({"REGISTRY_HOME": str(home), **environ})).test_client()
    ready = client.get("/readyz").status_code
    jws = client.get("/.well-known/peerseal-registry").text
    return ready, read_registry_keys(jws, pin=None, now=time.time()) if ready == 200 else None


@pytest.mark.usefixtures("initialised")
def test_the_keys_that_init_makes_are_encrypted_and_a_server_signs_with_them(home: Path) -> None:
    assert all(is_encrypted(home / name) for name in KEYS)
    status, keys = document(home, **SECRET)
    assert status == 200
    assert keys is not None
    assert keys.subject == DOMAIN


@pytest.mark.usefixtures("initialised")
@pytest.mark.parametrize("environ", [{}, {"REGISTRY_KEY_PASSPHRASE": OTHER}], ids=["none", "another"])
def test_without_the_passphrase_one_error_names_the_variable_the_file_and_the_remedy(
    run: Run, home: Path, environ: dict[str, str]
) -> None:
    before = {name: (home / name).read_bytes() for name in KEYS}
    failed = run("init", **environ)
    assert failed.exit_code != 0
    assert failed.output.count("Error") == 1
    assert str(home / "signing-key.pem") in failed.output
    assert "set it, or REGISTRY_KEY_PASSPHRASE_FILE, to the passphrase" in failed.output
    assert {name: (home / name).read_bytes() for name in KEYS} == before
    assert run("init", **SECRET).exit_code == 0


@pytest.mark.usefixtures("initialised")
def test_a_ceremony_makes_encrypted_keys_and_the_root_signs_with_the_passphrase_only(
    run: Run, home: Path, tmp_path: Path
) -> None:
    asked, signed = tmp_path / "request.json", tmp_path / "new.jwt"
    assert run("root", "request", "signing", "ledger", "--out", str(asked), **SECRET).exit_code == 0
    assert is_encrypted(home / "signing-key.pem.next")
    assert is_encrypted(home / "ledger-key.pem.next")
    sign = ("root", "sign", str(asked), "--root-key", str(home / "root-key.pem"), "--out", str(signed))
    assert "REGISTRY_KEY_PASSPHRASE is not set" in run(*sign).output
    assert not signed.exists()
    assert run(*sign, **SECRET).exit_code == 0
    settings = Settings.from_environ({"REGISTRY_HOME": str(home), **SECRET})
    ceremony = Ceremony(settings, Store(create_engine(settings.database_url)))
    new = ceremony.publish(signed.read_text())
    ceremony.put_in_place(new)
    assert not (home / "signing-key.pem.next").exists()
    assert all(is_encrypted(home / name) for name in KEYS)
    assert document(home, **SECRET) == (200, new)


def test_plain_keys_go_on_with_a_warning_until_they_are_replaced(
    run: Run, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("init", "--trust-domain", DOMAIN).exit_code == 0
    assert document(home, **SECRET)[0] == 200
    for name in ("signing-key.pem", "ledger-key.pem"):
        assert f"{home / name} is not encrypted, although REGISTRY_KEY_PASSPHRASE is set" in caplog.text
        assert not is_encrypted(home / name)
    caplog.clear()
    caplog.set_level(logging.WARNING)
    assert document(home)[0] == 200
    assert "not encrypted" not in caplog.text


def test_a_passphrase_that_protects_nothing_is_refused_before_anything_is_made(run: Run, home: Path) -> None:
    failed = run("init", "--trust-domain", DOMAIN, REGISTRY_KEY_PASSPHRASE="short")
    assert "REGISTRY_KEY_PASSPHRASE: expected 16 to 1000 bytes" in failed.output
    assert not home.exists()


def test_no_passphrase_is_shown(home: Path) -> None:
    settings = Settings.from_environ({"REGISTRY_HOME": str(home), **SECRET})
    assert PASSPHRASE not in f"{settings} {settings!r}"
