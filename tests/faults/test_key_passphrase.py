"""Private keys encrypted at rest: what a thief of the folder reads, and every mistake with the passphrase."""

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.processes import free_port, gunicorn
from peerseal import Identity, RotationSchedule, Verifier
from peerseal.__main__ import main
from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.identity.environment import options_in
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Clock, MemoryRegistry
from tests.peerseal.served import Child
from tests.support.load import get
from tests.support.patient import PatientRegistry, served

PASSPHRASE = "correct horse battery staple"
OTHER = "another passphrase of some length"
NEEDED = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the keys of the service ``client`` lie."""
    return tmp_path / "keys" / "client"


Start = Callable[..., Identity]


@pytest.fixture
def start(registry: MemoryRegistry, folder: Path) -> Start:
    """A start of the service ``client`` with that passphrase, or with none."""

    def start(passphrase: str | None = PASSPHRASE, **options: Any) -> Identity:
        return registry.identity("client", key_dir=folder.parent, key_passphrase=passphrase, **options)

    return start


def private_keys(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.pem")}


def is_encrypted(folder: Path) -> bool:
    """Whether there are private keys, and all of them are encrypted."""
    pems = private_keys(folder).values()
    return bool(pems) and all(pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") for pem in pems)


def proven(registry: MemoryRegistry, identity: Identity) -> str:
    """The kid with which the identity proves itself to a callee."""
    verifier = Verifier(registry, audience="callee", allow={"client": ()}, clock=registry.clock)
    token = identity.sign_request("callee", method="GET", target="/")
    return verifier.verify(token, method="GET", target="/").kid


class TestAtRest:
    def test_what_lies_in_the_folder_is_encrypted_and_signs_after_a_restart(
        self, registry: MemoryRegistry, start: Start, folder: Path
    ) -> None:
        first = start()
        kid = proven(registry, first)
        first.stop()
        assert is_encrypted(folder)
        assert proven(registry, start()) == kid

    def test_other_programs_open_it_with_the_passphrase_only(self, start: Start, folder: Path) -> None:
        start()
        [file] = folder.glob("*.pem")
        opened = subprocess.run(
            ["openssl", "pkey", "-in", file, "-passin", f"pass:{PASSPHRASE}"], capture_output=True, check=True
        )
        assert f"{KeyPair.from_pem(opened.stdout).public.thumbprint}.pem" == file.name
        refused = subprocess.run(["openssl", "pkey", "-in", file, "-passin", f"pass:{OTHER}"], capture_output=True)
        assert refused.returncode != 0

    def test_the_next_key_is_encrypted_as_well(
        self, start: Start, folder: Path, clock: Clock, registry: MemoryRegistry
    ) -> None:
        identity = start(rotation=RotationSchedule(every=60, lead=1, overlap=1))
        first = identity.credentials.key_id
        identity.rotate()
        assert len(private_keys(folder)) == 2
        assert is_encrypted(folder)
        clock.advance(5)
        assert proven(registry, identity) != first

    def test_a_key_is_decrypted_once_and_not_for_each_signature(
        self, registry: MemoryRegistry, clock: Clock, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start().stop()
        read, from_pem = [], KeyPair.from_pem

        def counted(pem: bytes, password: bytes | None = None) -> KeyPair:
            read.append(password)
            return from_pem(pem, password)

        monkeypatch.setattr(KeyPair, "from_pem", counted)
        identity = start()
        for _ in range(100):
            identity.sign_request("callee", method="GET", target="/")
        clock.advance(10)  # it looks at the folder again
        proven(registry, identity)
        assert read == [PASSPHRASE.encode()]

    def test_without_a_folder_the_passphrase_is_not_needed(self, registry: MemoryRegistry) -> None:
        assert proven(registry, registry.identity("client", key_passphrase=PASSPHRASE))


class TestTakenOver:
    def test_plain_keys_are_encrypted_at_the_next_start(
        self, registry: MemoryRegistry, start: Start, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        plain = start(None)
        kid = proven(registry, plain)
        plain.stop()
        assert not is_encrypted(folder)
        caplog.set_level(logging.INFO, "peerseal.identity")
        registry.down = True  # the registry is not needed for it
        assert start().credentials.key_id == kid
        assert is_encrypted(folder)
        assert f"encrypted the private keys in {folder}" in caplog.text

    def test_once_they_are_nothing_is_written_again(self, start: Start, folder: Path) -> None:
        start().stop()
        before = {file: file.stat().st_ino for file in folder.iterdir() if file.suffix in (".pem", ".json")}
        start().stop()
        assert {file: file.stat().st_ino for file in before} == before

    def test_processes_without_the_passphrase_that_run_go_on_with_the_key_that_they_have(
        self, registry: MemoryRegistry, start: Start, folder: Path, clock: Clock
    ) -> None:
        old = start(None)
        new = start()
        assert is_encrypted(folder)
        clock.advance(10)  # the old one looks at the folder again
        assert proven(registry, old) == proven(registry, new)

    def test_another_passphrase_is_taken_up_by_way_of_openssl(
        self, registry: MemoryRegistry, start: Start, folder: Path
    ) -> None:
        """As docs/how-to/operations.md tells it."""
        start().stop()
        [file] = folder.glob("*.pem")
        decrypted = subprocess.run(
            ["openssl", "pkey", "-in", file, "-passin", f"pass:{PASSPHRASE}"], capture_output=True, check=True
        )
        file.write_bytes(decrypted.stdout)
        assert proven(registry, start(OTHER))
        assert is_encrypted(folder)
        with pytest.raises(ConfigurationError):
            start(PASSPHRASE)


class TestMistakes:
    @pytest.fixture
    def kept(self, start: Start, folder: Path) -> dict[str, bytes]:
        """The list of keys and the key, as they lie in the folder after a first start with a passphrase."""
        start().stop()
        return {"keys.json": (folder / "keys.json").read_bytes(), **private_keys(folder)}

    @pytest.mark.parametrize("passphrase", [OTHER, None], ids=["another", "none"])
    def test_one_error_names_the_variable_the_file_and_the_remedy_and_the_key_stays(
        self,
        registry: MemoryRegistry,
        start: Start,
        folder: Path,
        kept: dict[str, bytes],
        passphrase: str | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        calls = registry.calls.total()
        with pytest.raises(ConfigurationError) as caught:
            start(passphrase, retire_at_exit=True)
        [pem] = folder.glob("*.pem")
        said = str(caught.value)
        assert said.count("PEERSEAL_KEY_PASSPHRASE") == 2  # and the one with _FILE
        assert str(pem) in said
        assert "set it, or PEERSEAL_KEY_PASSPHRASE_FILE, to the passphrase" in said
        assert PASSPHRASE not in said + caplog.text
        assert OTHER not in said + caplog.text
        assert {"keys.json": (folder / "keys.json").read_bytes(), **private_keys(folder)} == kept
        assert registry.calls.total() == calls, "nothing was retired, registered or asked"
        assert [key.state for key in registry.jwk_set("client").keys] == [ACTIVE]
        assert proven(registry, start())

    def test_a_running_process_goes_on_while_another_one_has_the_wrong_passphrase(
        self, registry: MemoryRegistry, start: Start
    ) -> None:
        running = start()
        with pytest.raises(ConfigurationError):
            start(OTHER)
        assert proven(registry, running)
        running.look_after_keys()

    def test_a_key_of_another_passphrase_that_no_list_names_is_not_deleted(self, start: Start, folder: Path) -> None:
        identity = start()
        pair = KeyPair.generate("ES256")
        stray = folder / f"{pair.public.thumbprint}.pem"
        stray.write_bytes(pair.to_pem(OTHER.encode()))
        stray.chmod(0o600)
        identity.rotate()
        assert stray.exists()

    @pytest.mark.parametrize(
        "content", [b"", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", b"\x00" * 100], ids=["empty", "cut", "zeroes"]
    )
    def test_a_damaged_key_file_is_an_error_and_stays_as_it_is(
        self, start: Start, folder: Path, kept: dict[str, bytes], content: bytes
    ) -> None:
        [pem] = folder.glob("*.pem")
        pem.write_bytes(content)
        with pytest.raises((ConfigurationError, KeyRefused), match=pem.name):
            start()
        assert pem.read_bytes() == content

    @pytest.mark.parametrize("text", ["short", "x" * 15, "x" * 1001, "é" * 501])
    def test_a_passphrase_that_protects_nothing_or_that_openssl_does_not_take_is_refused(
        self, start: Start, folder: Path, text: str
    ) -> None:
        with pytest.raises(ConfigurationError, match="PEERSEAL_KEY_PASSPHRASE: expected 16 to 1000 bytes") as caught:
            start(text)
        assert text not in str(caught.value)
        assert not folder.exists()

    @pytest.mark.parametrize("value", [b"bytes of some length", 7, ["a"]])
    def test_what_is_no_text_is_refused(self, start: Start, value: Any) -> None:
        with pytest.raises(ConfigurationError, match="PEERSEAL_KEY_PASSPHRASE: expected a text"):
            start(value)


class TestTheFile:
    def test_its_text_counts_without_the_line_break(self, tmp_path: Path) -> None:
        file = tmp_path / "passphrase"
        file.write_text(f"{PASSPHRASE}\n")
        assert options_in(NEEDED | {"PEERSEAL_KEY_PASSPHRASE_FILE": str(file)})["key_passphrase"] == PASSPHRASE
        assert options_in(NEEDED | {"PEERSEAL_KEY_PASSPHRASE": PASSPHRASE})["key_passphrase"] == PASSPHRASE
        assert options_in(NEEDED)["key_passphrase"] is None

    @pytest.mark.parametrize("content", ["", "\n", '""'])
    def test_an_empty_one_does_not_leave_keys_plain(self, tmp_path: Path, folder: Path, content: str) -> None:
        file = tmp_path / "passphrase"
        file.write_text(content)
        environ = NEEDED | {"PEERSEAL_KEY_DIR": str(folder.parent), "PEERSEAL_KEY_PASSPHRASE_FILE": str(file)}
        with pytest.raises(ConfigurationError, match=f"PEERSEAL_KEY_PASSPHRASE_FILE={file}: empty"):
            Identity.from_env(environ)
        assert not folder.exists()

    def test_one_that_this_user_may_not_read_is_said_so(self, tmp_path: Path) -> None:
        file = tmp_path / "passphrase"
        file.write_text(PASSPHRASE)
        file.chmod(0)

        def read() -> str:
            os.setuid(10001)
            try:
                Identity.from_env(NEEDED | {"PEERSEAL_KEY_PASSPHRASE_FILE": str(file)})
            except ConfigurationError as error:
                return str(error)
            return "it was accepted"

        if os.geteuid() != 0:
            pytest.skip("only root can start a process of another user")
        for parent in (tmp_path, *list(tmp_path.parents)[:3]):
            parent.chmod(parent.stat().st_mode | 0o011)
        assert Child(read).result() == f"PEERSEAL_KEY_PASSPHRASE_FILE={file}: cannot be read: Permission denied"


@pytest.mark.e2e
@pytest.mark.slow
class TestProcesses:
    @pytest.fixture
    def patient(self) -> Iterator[PatientRegistry]:
        with PatientRegistry() as registry:
            yield registry

    @pytest.fixture
    def environ(self, patient: PatientRegistry, tmp_path: Path) -> Iterator[dict[str, str]]:
        """The settings of the service ``callee``, its passphrase in a file."""
        file = tmp_path / "passphrase"
        file.write_text(f"{PASSPHRASE}\n")
        with served(patient) as url:
            yield {
                "PEERSEAL_SERVICE": "callee",
                "PEERSEAL_REGISTRY_URL": url,
                "PEERSEAL_JOIN_TOKEN": patient.join_token("callee"),
                "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
                "PEERSEAL_CACHE_DIR": str(tmp_path / "cache"),
                "PEERSEAL_KEY_PASSPHRASE_FILE": str(file),
            }

    def test_the_workers_of_a_host_share_one_encrypted_key(self, environ: dict[str, str], tmp_path: Path) -> None:
        app, log = "tests.support.callee:create_app()", tmp_path / "log"
        with gunicorn("callee", app, port=free_port(), log=log, settings=environ, workers=3) as server:
            server.wait_until_answers(f"{server.url}/my-public-credentials")
            shown = {get(f"{server.url}/my-public-credentials", {})[1] for _ in range(30)}
        assert len(shown) == 1
        assert is_encrypted(tmp_path / "keys" / "callee")

    def test_a_command_reads_it_too(
        self,
        environ: dict[str, str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert main(["assertion", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["client_id"].endswith("/callee")
        assert is_encrypted(tmp_path / "keys" / "callee")
        monkeypatch.delenv("PEERSEAL_KEY_PASSPHRASE_FILE")
        assert main(["assertion"]) == 2
        assert "is encrypted, and PEERSEAL_KEY_PASSPHRASE is not set" in capsys.readouterr().err
