"""A stranger's bytes cost no more work than the check of their signature: no payload is parsed before it. Each kind of
document has a greatest size, and of a longer answer no more is read.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import AnswerTooLarge, DocumentRefused, FetchError, TrustUnavailable
from peerseal.protocol import jose
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.frame import Document, read_document
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import decode_proof, verify_checkpoint
from peerseal.protocol.ledger.merkle import MAX_PROOF
from peerseal.protocol.names import make_kid, registry_id
from peerseal.testing import Answer, MemoryRegistry
from peerseal.transport.fetch import HttpFetcher, no_larger_than
from tests.support.patient import PatientRegistry, served

DOMAIN = "test.internal"
REGISTRY = registry_id(DOMAIN)
ROOT, SIGNER, STRANGER = (KeyPair.generate("ES256") for _ in range(3))
KINDS: list[type[Document]] = [KeySetDocument, KeySetPart, KeyStatement, Changes, PolicyDocument, DomainDocument]
NOW = 1_800_000_000.0


def forged(kind: type[Document], payload: bytes, owner: KeyPair) -> str:
    """A document that a stranger signed, in the name of ``owner``."""
    header = jose.Header("ES256", make_kid(REGISTRY, owner.public.thumbprint), kind.TYP)
    return jose.compact(jose.encode_header(header), payload, STRANGER.sign)


def code_of(kind: type[Document], jws: str) -> str:
    """Why a document is refused."""
    signers = {make_kid(REGISTRY, SIGNER.public.thumbprint): SIGNER.public}
    with pytest.raises(DocumentRefused) as caught:
        read_document(kind, jws, signers, now=NOW, domain=DOMAIN)
    return caught.value.code


def root_code_of(jws: str, pin: str | None = ROOT.public.thumbprint) -> str:
    """Why a root's document is refused."""
    with pytest.raises(DocumentRefused) as caught:
        read_registry_keys(jws, pin=pin, now=NOW)
    return caught.value.code


class TestThePayloadIsNotParsed:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.TYP)
    @pytest.mark.parametrize("payload", [b"no JSON", b"{}", b"[" * 100_000], ids=["text", "empty", "nested"])
    def test_of_a_document_with_a_bad_signature(self, kind: type[Document], payload: bytes) -> None:
        jws = forged(kind, payload, SIGNER)
        if len(jws) <= kind.MAX_SIZE:
            assert code_of(kind, jws) == "document_bad_signature"
        assert code_of(kind, forged(kind, b"x", STRANGER)) == "document_unknown_signer"

    def test_nor_is_it_decoded(self) -> None:
        head, _, signature = forged(Changes, b"{}", SIGNER).split(".")
        assert code_of(Changes, f"{head}.!!!.{signature}") == "document_bad_signature"

    def test_of_the_roots_document_beyond_the_root(self) -> None:
        """Who signed it stands in it, and nowhere else."""
        rest: list[dict[str, Any]] = [
            {},
            {"signing_keys": "none", "urls": 7, "ledger_key": None},
            {"signing_keys": [{"kty": "RSA", "n": "A" * 100, "e": "AQAB"}] * 100},
        ]
        for members in rest:
            payload = canonical_json({"root": dict(ROOT.public.jwk), **members})
            assert root_code_of(forged(RegistryKeys, payload, ROOT)) == "document_bad_signature"
            payload = canonical_json({"root": dict(STRANGER.public.jwk), **members})
            assert root_code_of(forged(RegistryKeys, payload, STRANGER)) == "document_wrong_root"

    def test_a_large_forgery_costs_about_as_much_as_a_small_one(self) -> None:
        """In time of the processor, that is: the larger one is fifty times as long, and hashed once."""
        keys = [{**STRANGER.public.jwk, "kid": "x", "state": "active"}] * 100
        small = forged(KeySetDocument, canonical_json({"keys": keys}), SIGNER)
        large = forged(KeySetDocument, canonical_json({"keys": keys * 50}), SIGNER)
        seconds = [
            min(_processor_time(lambda jws=jws: code_of(KeySetDocument, jws)) for _ in range(5))
            for jws in (small, large)
        ]
        assert seconds[1] < 20 * max(seconds[0], 0.0005)


def _processor_time(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


class TestSizes:
    @pytest.mark.parametrize("kind", [*KINDS, RegistryKeys], ids=lambda kind: kind.TYP)
    def test_of_documents(self, kind: type[Document]) -> None:
        size = kind.MAX_SIZE
        fitting = forged(kind, b"x" * (size * 3 // 4 - 600), SIGNER)
        longer = fitting + "A" * (size - len(fitting) + 1)
        if kind is RegistryKeys:
            assert root_code_of(longer) == "document_malformed"
        else:
            assert code_of(kind, fitting) == "document_bad_signature"
            assert code_of(kind, longer) == "document_malformed"

    def test_of_a_header_and_of_a_signature(self) -> None:
        head, payload, signature = forged(KeySetDocument, b"{}", SIGNER).split(".")
        long_header = b64url(b'{"alg":"ES256","kid":"' + b"a" * 100_000 + b'","typ":"jwk-set+jwt"}')
        assert code_of(KeySetDocument, f"{long_header}.{payload}.{signature}") == "document_malformed"
        assert code_of(KeySetDocument, f"{head}.{payload}.{'A' * 100_000}") == "document_malformed"

    def test_of_a_checkpoint_and_its_signature_lines(self) -> None:
        with MemoryRegistry(DOMAIN) as registry:
            note, jwks = registry.ledger.checkpoint(), [registry.ledger.jwk]
            witness = "— witness.test " + "A" * 100 + "\n"
            assert verify_checkpoint(note + witness * 40, DOMAIN, jwks).size == 1
            for long in (note + witness * 70, note + "— w AAAA\n" * 10_000, "x" * 10_000_000, note + "\n" * 10_000_000):
                with pytest.raises(DocumentRefused) as caught:
                    verify_checkpoint(long, DOMAIN, jwks)
                assert caught.value.code == "document_bad_checkpoint"

    def test_of_a_proof(self) -> None:
        assert len(decode_proof([b64url(bytes(32))] * MAX_PROOF)) == MAX_PROOF
        with pytest.raises(Exception, match="not a proof"):
            decode_proof([b64url(bytes(32))] * (MAX_PROOF + 1))


class TestAnswersOverHttp:
    """Padded beyond the size of their kind: no more of them is read, and the reason is told."""

    @pytest.fixture
    def registry(self) -> Iterator[PatientRegistry]:
        with PatientRegistry(DOMAIN) as registry:
            yield registry

    @pytest.fixture
    def trust(self, registry: PatientRegistry) -> Iterator[TrustStore]:
        with served(registry) as url:
            trust = TrustStore(url, pin=registry.pin, limits=TrustLimits(poll_interval=3600.0))
            yield trust
            trust.stop()

    @staticmethod
    def pad(registry: PatientRegistry, path: str, size: int) -> None:
        registry.answers[path] = Answer(200, b"x" * (size + 1))

    @staticmethod
    def refused(ask: Callable[[], object]) -> FetchError:
        """Why nothing could be had."""
        with pytest.raises(TrustUnavailable) as caught:
            ask()
        assert isinstance(caught.value.__cause__, AnswerTooLarge)
        return caught.value.__cause__

    def test_the_roots_document(self, registry: PatientRegistry, trust: TrustStore) -> None:
        self.pad(registry, "/.well-known/peerseal-registry", RegistryKeys.MAX_SIZE)
        assert str(RegistryKeys.MAX_SIZE) in str(self.refused(lambda: trust.domain))

    def test_documents(self, registry: PatientRegistry, trust: TrustStore) -> None:
        kid = registry.identity("client", limits=TrustLimits(poll_interval=3600.0)).credentials.key_id
        asks: list[tuple[type[Document], str, Callable[[], object]]] = [
            (KeyStatement, f"/v1/services/client/keys/{kid.rpartition('/')[2]}.jwt", lambda: trust.recorded_key(kid)),
            (PolicyDocument, "/v1/services/client/policy.jwt", lambda: trust.policy(f"{DOMAIN}/client")),
            (DomainDocument, "/v1/domain.jwt", lambda: trust.settings()),
        ]
        for kind, path, ask in asks:
            self.pad(registry, path, kind.MAX_SIZE)
            assert str(kind.MAX_SIZE) in str(self.refused(ask))

    def test_a_limit_holds_within_and_not_behind_and_the_smaller_counts(self, registry: PatientRegistry) -> None:
        registry.answers["/x"] = Answer(200, b"x" * 1000)
        with served(registry) as url:
            fetcher = HttpFetcher([url])
            with no_larger_than(1000), no_larger_than(5000):
                assert len(fetcher.call("GET", "/x").body) == 1000
            with no_larger_than(999), pytest.raises(AnswerTooLarge):
                fetcher.call("GET", "/x")
            assert len(fetcher.call("GET", "/x").body) == 1000
