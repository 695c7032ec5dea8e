"""Whatever a stranger, a broker or a server's library hands over: public functions answer with an error of ours."""

import base64
import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from http import HTTPMethod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peerseal
from peerseal.errors import MalformedToken, MissingToken, PeersealError, UnsignableRequest
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.protocol.tokens.claims import new_jti
from peerseal.testing import MemoryRegistry
from peerseal.verify.request import RequestHeaders
from peerseal.verify.target import is_origin_form, routed_target
from tests.attacks.forge import BODY, HEADERS, METHOD, NOW, TARGET, Callee, honest_token
from tests.fuzz.generated import OBJECTS
from tests.fuzz.test_parsers import Parser, protocol_parsers, public_functions, verify_event


class Disguised:
    """Claims to be a text, and is none."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str

    def __len__(self) -> int:
        return 3


class Treacherous(dict[str, str]):
    """A mapping that raises."""

    def items(self) -> Any:
        raise LookupError("items")

    def get(self, *_: Any) -> Any:
        raise LookupError("get")

    def keys(self) -> Any:
        raise LookupError("keys")


class Shouting(str):
    """A text that says another one when it is asked for it."""

    def __str__(self) -> str:
        return "GET"

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return hash("GET")


released = memoryview(b"gone")
released.release()
OTHERS: list[Any] = [
    *OBJECTS,
    *(Disguised(), Treacherous(a="b"), Shouting("a.b.c"), released, memoryview(b"a.b.c")[::2], HTTPMethod.GET),
    *({"authorization": None}, {"content-type": b"a"}, {b"content-type": "a"}, {"content-type": ["a"]}, {"a": 1}),
    *([None], [("a",)], [("a", "b", "c")], [(b"authorization", b"Bearer a.b.c")], iter([]), lambda: None, lambda: 7),
    *({"kty": 10**5000}, {"kty": ["RSA"]}, {"kty": "EC", "crv": {}}, ValueError("a"), NotImplemented, ...),
]


def anything() -> st.SearchStrategy[Any]:
    """Python's own values, within one another, texts of all characters among them."""
    atoms = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.binary().map(bytearray)
    )
    return st.recursive(
        atoms | st.integers(0, len(OTHERS) - 1).map(lambda place: OTHERS[place]),  # sampled_from would print them all
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=6,
    )


@pytest.fixture(scope="module")
def trust() -> Iterator[peerseal.TrustStore]:
    with MemoryRegistry("acme.internal") as registry:
        yield registry.identity("callee").trust


SIGNED = {"method": METHOD, "target": TARGET, "body": BODY, "headers": HEADERS}
PARSERS = {
    f"{number} {parser.name}": parser for number, parser in enumerate((*protocol_parsers(), *public_functions()))
}
PARSERS["bearer_token"] = Parser("", bearer_token, None, lambda *_: None)
PARSERS["is_origin_form"] = Parser("", is_origin_form, None, lambda *_: None)
PARSERS["routed_target"] = Parser("", lambda value: routed_target("/a", value, value), None, lambda *_: None)


def answers(call: Callable[[Any], Any], value: Any) -> None:
    """Accepted, or refused with an error of ours; all else is the test's failure."""
    with contextlib.suppress(PeersealError):
        call(value)


@pytest.mark.parametrize("name", PARSERS)
def test_a_function_of_unverified_input_answers_for_every_value(name: str) -> None:
    for value in OTHERS:
        answers(PARSERS[name].call, value)


@settings(max_examples=60, deadline=None)
@given(anything())
def test_no_value_of_any_shape_raises_another_error(value: Any) -> None:
    for parser in PARSERS.values():
        answers(parser.call, value)


@pytest.mark.parametrize("name", ["key", "policy", "recorded_key", "read_statement"])
def test_a_trust_store_answers_for_every_value(trust: peerseal.TrustStore, name: str) -> None:
    for value in OTHERS:
        answers(getattr(trust, name), value)


@pytest.mark.parametrize("name", ["audience", "method", "target", "body", "headers", "ctx"])
def test_signing_a_request_answers_for_every_value(name: str) -> None:
    with MemoryRegistry("acme.internal") as registry:
        identity = registry.identity("client-service")
        for value in OTHERS:
            arguments = {"audience": "callee", **SIGNED, name: value}
            answers(lambda given: identity.sign_request(**given), arguments)


EVENT = {"topic": "t", "audience": "jobs", "scope": "s", "event_id": "e", "transaction_id": "x"}


@pytest.mark.parametrize("name", ["payload", *EVENT, "subject", "lifetime"])
def test_signing_an_event_answers_for_every_value(name: str) -> None:
    with MemoryRegistry("acme.internal") as registry:
        identity = registry.identity("client-service")
        for value in OTHERS:
            answers(lambda given: identity.sign_event(**given), {"payload": b"x", **EVENT, name: value})


@pytest.mark.parametrize("name", ["user", "scope", "facts", "transaction_id", "workload", "lifetime"])
def test_minting_answers_for_every_value(name: str) -> None:
    with MemoryRegistry("acme.internal") as registry:
        registry.set_domain(minters=["edge"])
        edge = registry.identity("edge")
        ada = peerseal.User("ada", "https://i", frozenset({"s"}), None, int(edge.clock()) + 600, {})
        for value in OTHERS:
            answers(lambda given: edge.mint_transaction(given.pop("user", ada), **given), {"scope": ["s"], name: value})


@pytest.mark.parametrize("name", ["audience", "client_id"])
def test_signing_an_assertion_answers_for_every_value(name: str) -> None:
    with MemoryRegistry("acme.internal") as registry:
        identity = registry.identity("client-service")
        for value in OTHERS:
            answers(lambda given: identity.sign_assertion(**given), {name: value})


def test_the_issuer_of_a_users_token_may_be_any_value(trust: peerseal.TrustStore) -> None:
    clients = [peerseal.IntrospectionClient(f"https://{name}.example", "edge", "secret") for name in ("a", "b")]
    users = peerseal.UserVerifier(trust, introspection=clients)
    for value in OTHERS:
        answers(lambda given: users.verify("opaque", issuer=given), value)
        answers(lambda given: users.verify("a.b.c", issuer=given), value)
        answers(users.forget, value)


TAKES_NOTHING_UNVERIFIED = {
    "Accepted": "a result",
    "AccessToken": "a result",
    "Metric": "the application's own",
    "current_request_id": "takes nothing",
    "metrics": "takes functions of the application's own",
    "Event": "a result",
    "Peer": "a result",
    "PeersealError": "an error",
    "IntrospectionClient": "a setting",
    "ReplayGuard": "a protocol",
    "FileReplayGuard": "asked by a verifier, with claims that were checked",
    "MemoryReplayGuard": "asked by a verifier, with claims that were checked",
    "RedisReplayGuard": "asked by a verifier, with claims that were checked",
    "RotationSchedule": "a setting",
    "CallLimits": "a setting",
    "CircuitState": "a result",
    "CircuitStatus": "a result",
    "TrustLimits": "a setting",
    "Transaction": "a result",
    "User": "a result",
    "carrying": "takes a Transaction",
    "current_transaction": "takes nothing",
    "errors": "a module",
    "propagate": "takes the application's function",
}


def test_every_public_name_is_tried_or_takes_nothing_unverified() -> None:
    tried = {"EventVerifier", "Identity", "TrustStore", "UserVerifier", "Verifier"}
    assert {*peerseal.__all__} == tried | TAKES_NOTHING_UNVERIFIED.keys()


def test_what_is_no_token_is_malformed(callee: Callee) -> None:
    for token in (b"a.b.c", 7, Shouting("a.b.c"), Disguised(), ["a.b.c"]):
        with pytest.raises(MalformedToken):
            callee.verifier.verify(token, **SIGNED)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("method", None),
        ("method", b"POST"),
        ("target", None),
        ("target", 7),
        ("body", None),
        ("body", "text"),
        ("body", lambda: "text"),
        ("body", lambda: None),
        ("headers", None),
        ("headers", [("content-type", "a")]),
        ("headers", {"content-type": None}),
        ("headers", {b"content-type": b"a"}),
        ("headers", {"x": ["a"]}),
        ("headers", Treacherous(a="b")),
    ],
)
def test_a_request_described_in_another_type_is_not_the_one_that_was_signed(
    callee: Callee, key: KeyPair, argument: str, value: Any
) -> None:
    refusal = callee.refuses(honest_token(key), "wrong_binding", **{argument: value})
    assert argument in str(refusal) or "header" in str(refusal)


def test_a_subclass_of_text_counts_for_what_it_holds_and_not_for_what_it_says(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key), "wrong_binding", method=Shouting("DELETE"))
    callee.refuses(honest_token(key), "wrong_binding", target=Shouting("/other"))
    callee.refuses(honest_token(key), "wrong_binding", headers={"content-type": Shouting("text/plain")})
    callee.accepts(honest_token(key), method=HTTPMethod[METHOD], target=Shouting(TARGET))


def test_a_body_may_be_any_bytes(callee: Callee, key: KeyPair) -> None:
    for body in (bytearray(BODY), memoryview(BODY), lambda: memoryview(BODY)):
        callee.verifier.verify(honest_token(key, jti=new_jti()), **SIGNED | {"body": body})


def test_two_spellings_of_a_header_are_two_values(callee: Callee, key: KeyPair) -> None:
    value = HEADERS["content-type"]
    callee.refuses(honest_token(key), "wrong_binding", headers={"Content-Type": value, "content-type": "text/plain"})
    callee.refuses(honest_token(key), "wrong_binding", headers={"content-type": "text/plain", "Content-Type": value})


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        (None, MissingToken),
        ([], MissingToken),
        ({}, MissingToken),
        ({"authorization": None}, MissingToken),
        ([("authorization", None)], MissingToken),
        ({"authorization": 7}, MalformedToken),
        ({"authorization": {"a": "b"}}, MalformedToken),
        ({"authorization": b"Bearer \xff"}, MalformedToken),
        ([("authorization",)], MalformedToken),
        (7, MalformedToken),
        (Treacherous(a="b"), MalformedToken),
        ([(7, b"x"), (None, None), (b"y", 3)], MalformedToken),
    ],
)
def test_headers_of_a_message_that_hold_no_token(headers: Any, error: type[PeersealError]) -> None:
    verifier = peerseal.EventVerifier(
        Callee().keys, audience="jobs.example.com", allow={}, max_age=timedelta(days=1), clock=lambda: NOW
    )
    with pytest.raises(error):
        verifier.verify(b"payload", headers, topic="OrderCreated")


@pytest.mark.parametrize("payload", [None, "text", 7, [b"payload"], {}])
def test_a_message_without_bytes_is_another_payload(payload: Any) -> None:
    with pytest.raises(PeersealError) as caught:
        verify_event(payload=payload)
    assert caught.value.code == "wrong_payload"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-tenant": "a\r\nb"},
        {"x-tenant": "a\r\n b"},
        {"x-tenant": "a\0"},
        {"x-tenant": "€"},
        {"x tenant": "a"},
        {"x-tenánt": "a"},
        {"": "a"},
        {"x-tenant:": "a"},
        {"X-Tenant": "a", "x-tenant": "b"},
        {"x-tenant": None},
        {"x-tenant": b"a"},
        {b"x-tenant": "a"},
    ],
)
def test_headers_that_no_request_can_hold_are_not_signed(headers: Any) -> None:
    with MemoryRegistry("acme.internal") as registry:
        identity = registry.identity("client-service")
        with pytest.raises(UnsignableRequest, match="header"):
            identity.sign_request("callee", method="GET", target="/", headers=headers)


# ---- blanks around a header's value


class AsSent(RequestHeaders):
    """A server's view that keeps what is around a value, as Werkzeug's and uWSGI's do."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> str:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)


@pytest.mark.parametrize("view", [dict, AsSent])
@pytest.mark.parametrize("signed", ["7", "7 ", " 7", "\t7\t "])
@pytest.mark.parametrize("sent", ["7", "7 ", "\t 7", " 7\t"])
def test_blanks_around_a_bound_value_do_not_count_on_either_side(
    callee: Callee, key: KeyPair, view: Callable[[dict[str, str]], Any], signed: str, sent: str
) -> None:
    token = honest_token(key, headers={**HEADERS, "x-tenant": signed})
    content_type = f" {HEADERS['content-type']}\t"
    callee.accepts(token, headers=view({**HEADERS, "content-type": content_type, "x-tenant": sent}))


@pytest.mark.parametrize("sent", ["7\xa0", "7\x0b", "7\x0c", "7\x85", "\u20037", "7\n", "7\r", "7 7", ""])
def test_other_white_space_counts(callee: Callee, key: KeyPair, sent: str) -> None:
    token = honest_token(key, headers={**HEADERS, "x-tenant": "7"})
    callee.refuses(token, "wrong_binding", headers={**HEADERS, "x-tenant": sent})


def test_a_content_type_of_blanks_is_none(callee: Callee, key: KeyPair) -> None:
    without = {name: value for name, value in HEADERS.items() if name != "content-type"}
    callee.accepts(honest_token(key, headers=without), headers={**without, "content-type": " \t"})


def test_what_is_signed_has_no_blanks_around_it() -> None:
    with MemoryRegistry("acme.internal") as registry:
        token = registry.identity("client-service").sign_request(
            "callee", method="GET", target="/", headers={"X-Tenant": " 7\t", "Content-Type": " "}
        )
    payload = token.split(".")[1]
    assert b'"headers":{"x-tenant":"7"}' in base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))


def test_blanks_around_an_authorization_do_not_count() -> None:
    assert bearer_token(" \tBearer  a.b.c \t") == "a.b.c"
