"""Attacks on event tokens: each refused with its code, and what comes too early to be believed costs no key."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from peerseal.errors import PeersealError
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.event import EVENT_TYP
from peerseal.protocol.tokens.request import REQUEST_TYP
from peerseal.verify.event import Event, EventVerifier
from peerseal.verify.request import Verifier
from tests.attacks import forge
from tests.attacks.forge import ABSENT, BEFORE_THE_KEY, CALLEE, CALLER, DOMAIN, NOW, OTHER, STRANGER, Keys, changed

TOPIC, AUDIENCE, SCOPE = "OrderCreated", "jobs.example.com", "trigger_invoicing"
PAYLOAD = b'{"eventID":"e-1","transactionID":"t-1","items":[{"itemID":1,"quantity":2,"price":100}]}'
REGISTRY = f"{DOMAIN}/registry"
DAY = 24 * 3600


def event_claims(issuer: str = CALLER, **changes: Any) -> dict[str, Any]:
    """The claims of an honest event token for PAYLOAD on TOPIC, changed."""
    honest = {
        "iss": issuer,
        "sub": "ada",
        "aud": AUDIENCE,
        "scope": SCOPE,
        "event_id": "e-1",
        "transaction_id": "t-1",
        "topic": TOPIC,
        "event_payload_hash": hashlib.sha256(PAYLOAD).hexdigest(),
        "rctx": {"iss": "https://login.example.com", "jti": "u-1"},
        "iat": NOW,
        "exp": NOW + 7 * DAY,
        "jti": forge.JTI,
    }
    return changed(honest, changes)


def event_header(key: KeyPair, owner: str = CALLER, **changes: Any) -> dict[str, Any]:
    return forge.header(key, owner, **{"typ": EVENT_TYP, **changes})


class Consumer:
    """The consumers under attack: CALLER may publish, OTHER too, but with another scope; STRANGER may not."""

    def __init__(self, **options: Any) -> None:
        self.keys = Keys()
        self.now = float(NOW)
        self.key = forge.rsa_key("caller")
        self.keys.add(CALLER, self.key)
        self.keys.add(OTHER, forge.ec_key("other"))
        self.keys.add(STRANGER, forge.ec_key("stranger"))
        allow = options.pop("allow", {"client-service": {SCOPE}, "billing": {"other_purpose"}})
        self.verifier = EventVerifier(
            self.keys,
            audience=AUDIENCE,
            allow=allow,
            max_age=options.pop("max_age", timedelta(days=7)),
            clock=lambda: self.now,
            **options,
        )

    def token(self, **changes: Any) -> str:
        return forge.forge(event_header(self.key), event_claims(**changes), self.key.sign)

    def consume(self, token: str, payload: bytes = PAYLOAD, **said: Any) -> Event:
        return self.verifier.verify(payload, {"authorization": f"Bearer {token}"}, **{"topic": TOPIC, **said})

    def refuses(self, token: str, code: str, payload: bytes = PAYLOAD, **said: Any) -> None:
        self.keys.asked.clear()
        with pytest.raises(PeersealError) as refused:
            self.consume(token, payload, **said)
        assert refused.value.code == code, refused.value
        if code in BEFORE_THE_KEY - {"malformed_token"}:
            assert self.keys.asked == []


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


def test_an_honest_event_is_believed(consumer: Consumer) -> None:
    event = consumer.consume(consumer.token(), event_id="e-1", transaction_id="t-1", scope=SCOPE)
    assert (event.issuer, event.publisher, event.user) == (CALLER, "client-service", "ada")
    assert (event.id, event.transaction_id, event.topic, event.scope) == ("e-1", "t-1", TOPIC, SCOPE)
    assert event.key == (CALLER, "e-1")
    assert event.authentication == {"iss": "https://login.example.com", "jti": "u-1"}
    assert event.payload == PAYLOAD


def test_the_same_event_again_is_believed_again_for_brokers_redeliver(consumer: Consumer) -> None:
    token = consumer.token()
    assert consumer.consume(token).key == consumer.consume(token).key


ALTERED: Mapping[str, bytes] = {
    "price changed": PAYLOAD.replace(b"100", b"001"),
    "items reordered": b'{"eventID":"e-1","transactionID":"t-1","items":[{"quantity":2,"itemID":1,"price":100}]}',
    "userID put into the body": PAYLOAD.replace(b"{", b'{"userID":"grace",', 1),
    "one blank more": PAYLOAD + b" ",
    "emptied": b"",
    "cut": PAYLOAD[:-1],
}


@pytest.mark.parametrize("payload", ALTERED.values(), ids=ALTERED)
def test_an_altered_payload_is_refused(consumer: Consumer, payload: bytes) -> None:
    consumer.refuses(consumer.token(), "wrong_payload", payload)


ELSEWHERE: Mapping[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another topic": ({}, {"topic": "OrderCancelled"}, "wrong_topic"),
    "its dead letter topic": ({}, {"topic": f"{TOPIC}.dlq"}, "wrong_topic"),
    "a topic in other case": ({}, {"topic": TOPIC.lower()}, "wrong_topic"),
    "another event id": ({}, {"event_id": "e-2"}, "wrong_event"),
    "another transaction": ({}, {"transaction_id": "t-2"}, "wrong_transaction"),
    "another audience": ({"aud": "reports.example.com"}, {}, "wrong_audience"),
    "an audience in other case": ({"aud": AUDIENCE.upper()}, {}, "wrong_audience"),
    "an audience with a trailing dot": ({"aud": f"{AUDIENCE}."}, {}, "wrong_audience"),
    "another scope": ({"scope": "trigger_refund"}, {}, "insufficient_scope"),
    "a scope of another publisher's": ({"scope": "other_purpose"}, {}, "insufficient_scope"),
    "a scope that is not served here": ({}, {"scope": "other_purpose"}, "insufficient_scope"),
}


@pytest.mark.parametrize(("changes", "said", "code"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_event_for_something_else_is_refused(
    consumer: Consumer, changes: dict[str, Any], said: dict[str, Any], code: str
) -> None:
    consumer.refuses(consumer.token(**changes), code, **said)


TIMES: Mapping[str, tuple[dict[str, Any], float, str | None]] = {
    "in its last second": ({}, 7 * DAY - 1, None),
    "just within the leeway of its end": ({"iat": NOW - 60, "exp": NOW + 60}, 60 + 29, None),
    "expired by leeway and a second": ({"exp": NOW + 60}, 60 + 31, "expired"),
    "older than is accepted here": ({"exp": NOW + 30 * DAY}, 7 * DAY + 31, "expired"),
    "from the future": ({"iat": NOW + 31}, 0, "not_yet_valid"),
    "lives a year and a day": ({"exp": NOW + 366 * DAY}, 0, "lifetime_too_long"),
    "ends before it begins": ({"exp": NOW}, 0, "expired"),
    "signed before its key was there": ({"iat": NOW - 3600 - 31, "exp": NOW + 60}, 0, "not_yet_valid"),
    "signed after its key was retired": ({"iat": NOW + 3600 + 31, "exp": NOW + 2 * DAY}, DAY, "expired"),
    "signed while its key was there": ({"iat": NOW + 3600}, DAY, None),
}


@pytest.mark.parametrize(("changes", "later", "code"), TIMES.values(), ids=TIMES)
def test_times_hold(consumer: Consumer, changes: dict[str, Any], later: float, code: str | None) -> None:
    consumer.now += later
    if code is None:
        assert consumer.consume(consumer.token(**changes)).id == "e-1"
    else:
        consumer.refuses(consumer.token(**changes), code)


ILL_FORMED: Mapping[str, dict[str, Any]] = {
    **{f"no {name}": {name: ABSENT} for name in event_claims()},
    "an unknown claim": {"admin": True},
    "a list of audiences": {"aud": [AUDIENCE]},
    "a service as audience": {"aud": CALLEE},
    "two scopes": {"scope": f"{SCOPE} other_purpose"},
    "a list of scopes": {"scope": [SCOPE]},
    "no scope": {"scope": ""},
    "exp as text": {"exp": str(NOW + 60)},
    "exp as float": {"exp": NOW + 60.0},
    "exp true": {"exp": True},
    "iat of the year 10^9": {"iat": 1 << 60},
    "a hash in capitals": {"event_payload_hash": hashlib.sha256(PAYLOAD).hexdigest().upper()},
    "a hash of another length": {"event_payload_hash": "00"},
    "a topic with a blank": {"topic": "Order Created"},
    "an event id with a newline": {"event_id": "e-1\n"},
    "an endless event id": {"event_id": "e" * 201},
    "a jti of 64 bits": {"jti": "AAAAAAAAAAA"},
    "rctx no object": {"rctx": "admin"},
    "an actor, by a service": {"act": {"sub": OTHER}},
    "an actor that is no service": {"act": {"sub": "admin"}},
    "nobody as user": {"sub": ""},
    "a user with NUL": {"sub": "ada\0"},
    "a user with a line break": {"sub": "ada\nrefused: grace"},
    "a user with a line separator": {"sub": "ada\u2028refused: grace"},
}


@pytest.mark.parametrize("changes", ILL_FORMED.values(), ids=ILL_FORMED)
def test_ill_formed_claims_are_refused(consumer: Consumer, changes: dict[str, Any]) -> None:
    consumer.refuses(consumer.token(**changes), "malformed_token")


def test_an_event_of_another_registered_service_is_refused(consumer: Consumer) -> None:
    stranger = forge.ec_key("stranger")
    by_itself = forge.forge(event_header(stranger, STRANGER), event_claims(STRANGER), stranger.sign)
    consumer.refuses(by_itself, "caller_not_allowed")
    in_anothers_name = forge.forge(event_header(stranger, STRANGER), event_claims(CALLER), stranger.sign)
    consumer.refuses(in_anothers_name, "caller_not_allowed")


def test_a_service_that_may_publish_cannot_do_it_in_anothers_name(consumer: Consumer) -> None:
    other = forge.ec_key("other")
    consumer.refuses(forge.forge(event_header(other, OTHER), event_claims(CALLER), other.sign), "wrong_issuer")
    with_anothers_kid = event_header(consumer.key, alg=other.public.alg)
    consumer.refuses(forge.forge(with_anothers_kid, event_claims(), other.sign), "bad_signature")


def test_a_revoked_and_an_unknown_key_are_told_apart(consumer: Consumer) -> None:
    token = consumer.token()
    consumer.keys.revoke(CALLER, consumer.key)
    consumer.refuses(token, "revoked_key")
    fresh = KeyPair.generate("ES256")
    consumer.refuses(forge.forge(event_header(fresh), event_claims(), fresh.sign), "unknown_key")


Make = Callable[[Consumer], str]

WRITTEN: Mapping[str, tuple[Make, str]] = {
    "a request token on the topic": (
        lambda c: forge.forge(forge.header(c.key), forge.claims(), c.key.sign),
        "wrong_type",
    ),
    "a request token's claims under an event's typ": (
        lambda c: forge.forge(event_header(c.key), forge.claims(), c.key.sign),
        "malformed_token",
    ),
    "alg none": (lambda c: forge.forge(event_header(c.key, alg="none"), event_claims(), b""), "malformed_token"),
    "HS256": (lambda c: forge.forge(event_header(c.key, alg="HS256"), event_claims(), b"x" * 32), "malformed_token"),
    "an embedded jwk": (
        lambda c: forge.forge(event_header(c.key, jwk=dict(c.key.public.jwk)), event_claims(), c.key.sign),
        "malformed_token",
    ),
    "no signature": (lambda c: forge.forge(event_header(c.key), event_claims(), b""), "bad_signature"),
    "one bit of the signature": (
        lambda c: c.token()[:-4] + ("AAAA" if not c.token().endswith("AAAA") else "BBBB"),
        "bad_signature",
    ),
    "a member twice": (
        lambda c: forge.forge(event_header(c.key), b'{"iss":"a","iss":"b"}', c.key.sign),
        "malformed_token",
    ),
    "1 MB": (lambda c: c.token() + "A" * 1_000_000, "malformed_token"),
    "not base64url": (lambda c: c.token() + "=", "malformed_token"),
}


@pytest.mark.parametrize(("make", "code"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_no_event_token_is_refused(consumer: Consumer, make: Make, code: str) -> None:
    consumer.refuses(make(consumer), code)


def test_an_event_token_opens_no_http_endpoint(consumer: Consumer) -> None:
    verifier = Verifier(consumer.keys, audience=CALLEE, allow={"client-service": {SCOPE}}, clock=lambda: consumer.now)
    with pytest.raises(PeersealError) as refused:
        verifier.verify(consumer.token(), method="GET", target="/")
    assert refused.value.code == "wrong_type"
    as_request = forge.forge(forge.header(consumer.key, typ=REQUEST_TYP), event_claims(), consumer.key.sign)
    with pytest.raises(PeersealError) as refused:
        verifier.verify(as_request, method="GET", target="/")
    assert refused.value.code == "malformed_token"


HEADERS: Mapping[str, tuple[Any, str]] = {
    "none": ({}, "missing_token"),
    "None as a value": ([("authorization", None)], "missing_token"),
    "another scheme": ({"authorization": "Basic YTpi"}, "missing_token"),
    "two": ([("authorization", b"Bearer x"), ("Authorization", b"Bearer y")], "malformed_token"),
    "not ASCII": ([("authorization", "Bearer ä".encode())], "malformed_token"),
    "an empty token": ({"authorization": "Bearer "}, "malformed_token"),
}


@pytest.mark.parametrize(("headers", "code"), HEADERS.values(), ids=HEADERS)
def test_headers_without_one_token_are_refused(consumer: Consumer, headers: Any, code: str) -> None:
    with pytest.raises(PeersealError) as refused:
        consumer.verifier.verify(PAYLOAD, headers, topic=TOPIC)
    assert refused.value.code == code
    assert consumer.keys.asked == []


# ---- what the registry issues in exchange


def exchanged(key: KeyPair, actor: str = CALLER, **changes: Any) -> str:
    return forge.forge(
        event_header(key, REGISTRY), event_claims(REGISTRY, **{"act": {"sub": actor}, **changes}), key.sign
    )


def trusting(**options: Any) -> tuple[Consumer, KeyPair]:
    """Consumers who believe the registry's tokens as well, and its key."""
    allow = {"client-service": {SCOPE}, "billing": {"other_purpose"}, "registry": {SCOPE}}
    consumer, key = Consumer(allow=allow, **options), forge.ec_key("registry")
    consumer.keys.add(REGISTRY, key)
    return consumer, key


def test_the_registrys_token_counts_as_the_event_of_whom_it_was_issued_for() -> None:
    consumer, key = trusting()
    event = consumer.consume(exchanged(key))
    assert (event.issuer, event.publisher, event.key) == (CALLER, "client-service", (CALLER, "e-1"))


def test_the_registrys_tokens_count_only_where_the_consumer_says_so(consumer: Consumer) -> None:
    key = forge.ec_key("registry")
    consumer.keys.add(REGISTRY, key)
    consumer.refuses(exchanged(key), "caller_not_allowed")
    anyone = Consumer(allow={"*": {SCOPE}})
    anyone.keys.add(REGISTRY, key)
    anyone.refuses(exchanged(key), "caller_not_allowed")


def test_the_registry_widens_nothing() -> None:
    consumer, key = trusting()
    consumer.refuses(exchanged(key, STRANGER), "caller_not_allowed")
    consumer.refuses(exchanged(key, OTHER), "insufficient_scope")
    consumer.refuses(exchanged(key, OTHER, scope="other_purpose"), "insufficient_scope")
    consumer.refuses(exchanged(key, act=ABSENT), "malformed_token")


def test_a_token_that_binds_no_payload_is_refused_unless_the_consumer_names_the_danger() -> None:
    consumer, key = trusting()
    unbound = exchanged(key, event_payload_hash=ABSENT, topic=ABSENT)
    consumer.refuses(unbound, "wrong_payload")
    careless, _ = trusting(unsafe_unbound_payload=True)
    assert careless.consume(unbound, b"anything").payload == b"anything"
    careless.refuses(exchanged(key), "wrong_payload", b"anything")
    careless.refuses(careless.token(event_payload_hash=ABSENT), "malformed_token", b"anything")


def test_a_forged_hash_of_the_token_itself_is_no_payload(consumer: Consumer) -> None:
    consumer.refuses(consumer.token(event_payload_hash=b64url(hashlib.sha256(PAYLOAD).digest())), "malformed_token")
