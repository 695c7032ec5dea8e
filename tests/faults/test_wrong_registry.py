"""A wrong pin, a registry of another domain, a pin that is none: no waiting mends that, so it ends at once, with its
own error. A mirror alone does not end anything.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest

from peerseal import Identity, TrustLimits, TrustStore
from peerseal.__main__ import main
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, PeersealError
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import encode_bundle, tile_path
from peerseal.runtime.limits import FetchLimits
from peerseal.testing import Answer, MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from tests.support.misbehaving import refused
from tests.support.patient import PatientRegistry, served

ROOT, ROOT_PATH = "GET /.well-known/peerseal-registry", "/.well-known/peerseal-registry"
QUIET = TrustLimits(poll_interval=3600.0)
NO_PINS = [
    "",
    "x",
    "A" * 42,
    "A" * 44,
    "A" * 42 + "B",
    "A" * 42 + "=",
    " " + "A" * 43,
    "A" * 43 + "\n",
    "../" + "A" * 40,
    "sha256:" + "A" * 36,
    "é" * 43,
]


def other_pin() -> str:
    return KeyPair.generate("ES256").public.thumbprint


def started(registry: MemoryRegistry, **options: object) -> Identity:
    """A start that is given as long as one in production."""
    return registry.identity("client", limits=QUIET, **options)


class TestAWrongPin:
    def test_ends_a_start_at_the_first_answer(self, registry: MemoryRegistry) -> None:
        with pytest.raises(DocumentRefused) as caught:
            started(registry, pin=other_pin(), join_token=None)
        assert caught.value.code == "document_wrong_root"
        assert registry.calls == {ROOT: 1}

    def test_ends_a_start_with_a_key_in_the_folder_as_well(self, registry: MemoryRegistry, tmp_path: Path) -> None:
        started(registry, key_dir=tmp_path, retire_at_exit=False).stop()
        registry.calls.clear()
        with pytest.raises(DocumentRefused):
            started(registry, key_dir=tmp_path, pin=other_pin(), join_token=None)
        assert registry.calls == {ROOT: 1}

    def test_of_a_join_token_ends_a_start(self, registry: MemoryRegistry) -> None:
        with MemoryRegistry(clock=registry.clock) as other, pytest.raises(DocumentRefused):
            started(registry, join_token=other.join_token("client"))
        assert registry.calls == {ROOT: 1}


@pytest.mark.parametrize("pin", NO_PINS)
class TestAPinThatIsNone:
    def test_is_a_mistake_of_the_configuration(self, registry: MemoryRegistry, pin: str) -> None:
        for make in (
            lambda: TrustStore("http://localhost", pin=pin),
            lambda: TrustStore("http://localhost", pin=pin, fetcher=registry, cache_dir="/nowhere"),
        ):
            with pytest.raises(ConfigurationError, match="43 characters"):
                make()
        assert registry.calls == {}

    def test_ends_the_commands(
        self, pin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PEERSEAL_REGISTRY_URL", refused())
        if pin:  # an empty one counts as none
            for command in (["keep-ledger", str(tmp_path)], ["monitor", "client"]):
                assert main([*command, "--pin", pin, "--once"]) == 2
                assert "43 characters" in capsys.readouterr().err


class TestAnotherDomain:
    def test_whose_root_document_speaks_of_two_domains(self, registry: MemoryRegistry) -> None:
        document = replace(registry.registry_keys(), subject="other.internal")
        registry.answers[ROOT_PATH] = Answer(200, sign_document(document, registry.root).encode())
        with pytest.raises(DocumentRefused) as caught:
            started(registry)
        assert caught.value.code == "document_wrong_subject"
        assert registry.calls[ROOT] == 1

    def test_with_the_root_that_was_pinned_before(self, registry: MemoryRegistry, tmp_path: Path) -> None:
        """The key folder belongs to the first domain."""
        started(registry, key_dir=tmp_path, cache_dir=tmp_path / "one", retire_at_exit=False).stop()
        with MemoryRegistry("other.internal", clock=registry.clock) as other:
            other.root = registry.root
            other.version = 2
            with pytest.raises(ConfigurationError, match="trust domain test"):
                started(other, key_dir=tmp_path, cache_dir=tmp_path / "two", join_token=None)
            with pytest.raises(DocumentRefused) as caught:
                started(other, key_dir=tmp_path / "new", cache_dir=_expired_root(other, registry, tmp_path / "one"))
        assert caught.value.code == "document_wrong_subject"


def _expired_root(other: MemoryRegistry, before: MemoryRegistry, cache: Path) -> Path:
    """The cache as it is, with the old domain's root document known and to be renewed."""
    (copy,) = cache.glob("documents-*/root.jwt")
    copy.write_text(sign_document(_ending(before.registry_keys()), before.root))
    other.clock.advance(1)  # type: ignore[attr-defined]
    return cache


def _ending(keys: RegistryKeys) -> RegistryKeys:
    return replace(keys, expires_at=keys.issued_at + 1)


class TestMirrors:
    """Of a registry on two URLs, the primary first."""

    @pytest.fixture
    def honest(self) -> Iterator[PatientRegistry]:
        with PatientRegistry() as registry:
            yield registry

    @pytest.fixture
    def liar(self) -> Iterator[PatientRegistry]:
        with PatientRegistry() as registry:
            yield registry

    @pytest.fixture
    def opened(self) -> Iterator[ExitStack]:
        with ExitStack() as opened:
            yield opened

    @staticmethod
    def identity(opened: ExitStack, honest: PatientRegistry, *urls: str) -> Identity:
        fetcher = HttpFetcher(urls, FetchLimits(1.0, 1.0, 1.0))
        identity = Identity(
            "client",
            registry=urls,
            join_token=honest.join_token("client"),
            fetcher=fetcher,
            alg="ES256",
            limits=QUIET,
        )
        opened.callback(identity.stop)
        return identity

    def test_one_that_lies_while_the_primary_is_down_does_not_end_a_start(
        self, honest: PatientRegistry, liar: PatientRegistry, opened: ExitStack
    ) -> None:
        honest.down = True
        identity = self.identity(
            opened, honest, opened.enter_context(served(honest)), opened.enter_context(served(liar))
        )
        Timer(1.0, lambda: setattr(honest, "down", False)).start()
        assert identity.start().credentials.key_id.startswith("test.internal/client/")
        assert liar.calls[ROOT] >= 1

    def test_the_primary_that_is_another_registry_does(
        self, honest: PatientRegistry, liar: PatientRegistry, opened: ExitStack
    ) -> None:
        identity = self.identity(opened, honest, opened.enter_context(served(liar)), refused())
        with pytest.raises(DocumentRefused) as caught:
            identity.start()
        assert caught.value.code == "document_wrong_root"
        assert liar.calls[ROOT] == 1

    @pytest.mark.parametrize("primary", ["honest", "liar", "down"])
    def test_only_the_primarys_word_counts(
        self, honest: PatientRegistry, liar: PatientRegistry, opened: ExitStack, primary: str
    ) -> None:
        urls = {
            "honest": opened.enter_context(served(honest)),
            "liar": opened.enter_context(served(liar)),
            "down": refused(),
        }
        trust = TrustStore([urls[primary], urls["liar"]], pin=honest.pin, limits=QUIET)
        try:
            assert trust.domain == "test.internal"
            said: BaseException | None = None
        except PeersealError as error:
            said = error.__cause__
        assert {
            "honest": said is None,
            "liar": isinstance(said, DocumentRefused) and said.of_another_registry,
            "down": isinstance(said, DocumentRefused | FetchError) and not getattr(said, "of_another_registry", False),
        }[primary]


def test_a_clock_that_is_wrong_is_named_once_the_time_is_over(registry: MemoryRegistry) -> None:
    identity = Identity(
        "client",
        registry="http://registry.test",
        join_token=registry.join_token("client"),
        fetcher=registry,
        clock=lambda: registry.clock() - 3600,
        limits=QUIET,
    )
    with pytest.raises(DocumentRefused) as caught:
        identity.start(timeout=0)
    assert caught.value.code == "document_from_future"


class TestKeepingTheLedger:
    """`peerseal keep-ledger`, of a registry on two URLs."""

    @pytest.mark.parametrize(("primary", "code"), [("honest", 0), ("liar", 0), ("down", 3)])
    def test_a_mirror_that_shows_another_root_ends_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], primary: str, code: int
    ) -> None:
        with PatientRegistry() as honest, PatientRegistry() as liar, served(honest) as url, served(liar) as other:
            bundle = encode_bundle([entry.encode() for entry in honest.ledger.entries])
            honest.answers["/ledger/checkpoint"] = Answer(200, honest.ledger.checkpoint().encode())
            honest.answers[f"/ledger/{tile_path('entries', 0, 1)}"] = Answer(200, bundle)
            urls = {"honest": [url, other], "liar": [other, url], "down": [refused(), other]}[primary]
            command = ["keep-ledger", str(tmp_path), "--once", "--pin", honest.pin, "--registry", ",".join(urls)]
            assert main(command) == code
        assert ("1 entries" in capsys.readouterr().out) is (code == 0)


@pytest.mark.parametrize("command", ["keep-ledger", "mirror"])
class TestEitherMirror:
    """What ends `peerseal keep-ledger` and `peerseal mirror`, of a registry on one URL."""

    def run(self, command: str, folder: Path, registry: PatientRegistry, url: str, pin: str | None = None) -> int:
        bundle = encode_bundle([entry.encode() for entry in registry.ledger.entries])
        size = len(registry.ledger.entries)
        registry.answers[f"/ledger/{tile_path('entries', 0, size)}"] = Answer(200, bundle)
        return main([command, str(folder), "--once", "--pin", pin or registry.pin, "--registry", url])

    def test_the_only_url_that_shows_another_root_ends_it(self, command: str, tmp_path: Path) -> None:
        with PatientRegistry() as liar, served(liar) as url:
            assert self.run(command, tmp_path, liar, url, other_pin()) == 4

    def test_another_history_than_it_has_ends_it(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with PatientRegistry() as honest, PatientRegistry() as liar:
            liar.root, liar.signing_key, liar.ledger.key = honest.root, honest.signing_key, honest.ledger.key
            for registry, minter, code in ((honest, "client", 0), (liar, "thief", 4)):
                registry.set_domain(minters=[minter])
                registry.answers["/ledger/checkpoint"] = Answer(200, registry.ledger.checkpoint().encode())
                with served(registry) as url:
                    assert self.run(command, tmp_path, registry, url) == code, capsys.readouterr()
        assert "document_inconsistent" in capsys.readouterr().err

    def test_a_document_that_is_refused_for_another_reason_is_an_error_and_no_other_history(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with PatientRegistry() as registry, served(registry) as url, PatientRegistry() as other:
            registry.answers["/ledger/checkpoint"] = Answer(200, other.ledger.checkpoint().encode())
            assert self.run(command, tmp_path, registry, url) == 1
        assert "document_unknown_signer" in capsys.readouterr().err
