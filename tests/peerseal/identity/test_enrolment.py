"""Enrolment: what the registry is told, and what is made of its answers."""

import json
from pathlib import Path

import pytest

from peerseal.errors import DocumentRefused, EnrolmentPending, EnrolmentRefused, FetchError
from peerseal.identity.enrolment import Enrolment
from peerseal.identity.key_folder import StoredKey
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof
from peerseal.testing import Answer, MemoryRegistry
from tests.support.keys import signing_key

KEYS = "/v1/services/client/keys"
DOMAIN = "test.internal"


@pytest.fixture
def enrolment(registry: MemoryRegistry) -> Enrolment:
    return Enrolment("client", registry.trust_store(), registry.clock)


@pytest.fixture
def pair() -> KeyPair:
    return KeyPair.generate("ES256")


@pytest.fixture
def token(registry: MemoryRegistry) -> JoinToken:
    return JoinToken.parse(registry.join_token("client"))


def held(pair: KeyPair) -> StoredKey:
    return StoredKey(f"{DOMAIN}/client/{pair.public.thumbprint}", pair, 0.0)


def refused(registry: MemoryRegistry, enrolment: Enrolment, token: JoinToken) -> str:
    """The code with which the registry refuses a registration that goes by that token."""
    with pytest.raises(EnrolmentRefused) as caught:
        enrolment.join(KeyPair.generate("ES256"), token)
    return caught.value.code


class TestJoining:
    def test_a_key_is_registered_and_its_statement_given(
        self, enrolment: Enrolment, pair: KeyPair, token: JoinToken
    ) -> None:
        statement = enrolment.join(pair, token)
        assert (statement.kid, statement.state) == (f"{DOMAIN}/client/{pair.public.thumbprint}", "active")
        assert statement.active_until - statement.active_from == 7 * 24 * 3600

    def test_the_same_key_again_changes_nothing_and_spends_nothing(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken
    ) -> None:
        first = enrolment.join(pair, token)
        assert enrolment.join(pair, token) == first
        assert len(registry.jwk_set("client").keys) == 1

    def test_what_is_sent_is_a_proof_and_a_mac_over_it(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken
    ) -> None:
        enrolment.join(pair, token)
        (call,) = [call for call in registry.log if call.method == "POST"]
        body = json.loads(call.body)
        assert (set(body), set(body["join"])) == ({"proof", "join"}, {"id", "mac"})
        assert "authorization" not in call.headers

    def test_a_spent_token_admits_no_second_key(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken
    ) -> None:
        enrolment.join(pair, token)
        assert refused(registry, enrolment, token) == "join_refused"

    def test_an_expired_token_admits_none(
        self, registry: MemoryRegistry, enrolment: Enrolment, token: JoinToken
    ) -> None:
        registry.clock.advance(600)  # type: ignore[attr-defined]
        assert refused(registry, enrolment, token) == "join_refused"

    def test_a_token_for_another_service_admits_none(self, registry: MemoryRegistry, enrolment: Enrolment) -> None:
        token = JoinToken.parse(registry.join_token("other"))
        assert refused(registry, enrolment, token) == "join_refused"

    def test_a_token_with_another_secret_admits_none(
        self, registry: MemoryRegistry, enrolment: Enrolment, token: JoinToken
    ) -> None:
        forged = JoinToken(token.id, JoinToken.generate(registry.pin).secret, token.pin)
        assert refused(registry, enrolment, forged) == "join_refused"

    def test_a_key_of_another_service_is_refused(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken
    ) -> None:
        enrolment.join(pair, token)
        other = Enrolment("other", registry.trust_store(), registry.clock)
        with pytest.raises(EnrolmentRefused) as caught:
            other.join(pair, JoinToken.parse(registry.join_token("other")))
        assert caught.value.code == "key_of_another_service"

    @pytest.mark.parametrize(("end", "code"), [("retire", "key_retired"), ("revoke", "key_revoked")])
    def test_a_key_that_ended_never_comes_back(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken, end: str, code: str
    ) -> None:
        kid = enrolment.join(pair, token).kid
        getattr(registry, end)(kid)
        with pytest.raises(EnrolmentRefused) as caught:
            enrolment.join(pair, JoinToken.parse(registry.join_token("client")))
        assert caught.value.code == code


class TestAnswers:
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_registry_in_trouble_can_be_asked_again(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken, status: int
    ) -> None:
        registry.answers[KEYS] = Answer(status, canonical_json({"code": "storage_unavailable"}))
        with pytest.raises(FetchError) as caught:
            enrolment.join(pair, token)
        assert caught.value.http_status == status

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b'{"code": "key_roca"}', "key_roca"),
            (b"{}", "refused"),
            (b'{"code": 7}', "refused"),
            (b"[]", "refused"),
            (b"<html>", "refused"),
            (b"\xff", "refused"),
            (b"", "refused"),
        ],
    )
    def test_a_refusal_has_the_registrys_code_where_it_gave_one(
        self, registry: MemoryRegistry, enrolment: Enrolment, token: JoinToken, body: bytes, code: str
    ) -> None:
        registry.answers[KEYS] = Answer(400, body)
        assert refused(registry, enrolment, token) == code

    def test_a_pending_key_is_not_a_registered_one(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken
    ) -> None:
        registry.answers[KEYS] = Answer(202, b"")
        with pytest.raises(EnrolmentPending):
            enrolment.join(pair, token)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xff", b"a.b.c", b"{}"])
    def test_an_unsigned_acceptance_is_not_believed(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, token: JoinToken, body: bytes
    ) -> None:
        registry.answers[KEYS] = Answer(201, body)
        with pytest.raises(DocumentRefused):
            enrolment.join(pair, token)

    def test_an_unknown_key_has_no_statement(self, enrolment: Enrolment, pair: KeyPair) -> None:
        assert enrolment.statement(held(pair)) is None

    @pytest.mark.parametrize("status", [204, 302, 400, 401, 403, 410, 500, 503])
    def test_any_other_answer_says_nothing_about_the_key(
        self, registry: MemoryRegistry, enrolment: Enrolment, pair: KeyPair, status: int
    ) -> None:
        registry.answers[f"{KEYS}/{pair.public.thumbprint}.jwt"] = Answer(status, b"")
        with pytest.raises(FetchError):
            enrolment.statement(held(pair))


class TestThroughIdentities:
    """The calls that a key signs itself."""

    @pytest.fixture
    def current(self, registry: MemoryRegistry, tmp_path: Path) -> StoredKey:
        """The signing key of an identity of the service ``client``."""
        registry.identity("client", key_dir=tmp_path)
        return signing_key(tmp_path, "client", registry.clock())

    def test_the_registry_takes_a_vouchers_word_for_its_own_service_only(
        self, registry: MemoryRegistry, tmp_path: Path
    ) -> None:
        client, _ = registry.identity("client"), registry.identity("other", key_dir=tmp_path)
        thief = Enrolment("client", registry.trust_store(), registry.clock)
        with pytest.raises(EnrolmentRefused) as caught:
            thief.rotate(KeyPair.generate("ES256"), signing_key(tmp_path, "other", registry.clock()))
        assert caught.value.code == "caller_not_allowed"
        assert len(registry.jwk_set("client").keys) == 1
        assert client.rotate()

    def test_a_retired_key_vouches_for_nothing(
        self, registry: MemoryRegistry, enrolment: Enrolment, current: StoredKey
    ) -> None:
        registry.retire(current.kid)
        with pytest.raises(EnrolmentRefused) as caught:
            enrolment.rotate(KeyPair.generate("ES256"), current)
        assert caught.value.code == "caller_not_allowed"

    def test_a_rotation_read_off_the_wire_admits_no_other_key(self, registry: MemoryRegistry, pair: KeyPair) -> None:
        registry.identity("client").rotate()
        stolen = next(call.headers["authorization"] for call in registry.log if "authorization" in call.headers)
        issuer, audience = service_id(DOMAIN, "client"), registry_id(DOMAIN)
        body = canonical_json({"proof": sign_proof(pair, issuer=issuer, audience=audience, now=registry.clock())})
        answer = registry.call(
            "POST", KEYS, body=body, headers={"Authorization": stolen, "Content-Type": "application/json"}
        )
        assert (answer.status, json.loads(answer.body)["code"]) == (401, "wrong_binding")

    def test_a_key_can_end_only_itself(
        self, registry: MemoryRegistry, enrolment: Enrolment, current: StoredKey
    ) -> None:
        sibling = registry.identity("client").credentials.key_id.rpartition("/")[2]
        with pytest.raises(FetchError):
            enrolment.retire(sibling, current)
        assert {key.state for key in registry.jwk_set("client").keys} == {"active"}
        enrolment.retire(current.thumbprint, current)
        assert sorted(key.state for key in registry.jwk_set("client").keys) == ["active", "retired"]

    def test_retiring_says_so_where_the_registry_is_in_trouble(
        self, registry: MemoryRegistry, enrolment: Enrolment, current: StoredKey
    ) -> None:
        registry.answers[f"{KEYS}/{current.thumbprint}"] = Answer(503, b"")
        with pytest.raises(FetchError):
            enrolment.retire(current.thumbprint, current)
