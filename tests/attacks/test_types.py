"""Values of any type where text or bytes are expected: each gets an error of ours, and none is accepted."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from peerseal import EventVerifier, UserVerifier
from peerseal.errors import ConfigurationError, InvalidName, PeersealError, UnsignableRequest
from peerseal.protocol.encoding import b64url_decode, strict_json
from peerseal.protocol.join import JoinToken
from peerseal.protocol.names import check_service, check_trust_domain, qualify, split_kid, split_service_id
from peerseal.testing import MemoryRegistry
from peerseal.verify.transaction import read_transaction
from tests.attacks import forge
from tests.attacks.forge import Callee, ec_key, honest_token
from tests.fuzz.generated import OBJECTS, Wilful

KEY = ec_key("caller")
NAMES: list[Callable[[Any], Any]] = [
    check_service,
    check_trust_domain,
    split_kid,
    split_service_id,
    lambda name: qualify(name, "acme.internal"),
]


def refusal_of(call: Callable[[], object]) -> str | None:
    """The code of our error, or None where there was none; any other error goes on."""
    try:
        call()
    except PeersealError as error:
        return error.code
    return None


@pytest.fixture
def callee() -> Callee:
    return Callee()


def test_a_token_of_any_type_is_refused(callee: Callee) -> None:
    codes = {refusal_of(lambda token=token: callee.accepts(token)) for token in OBJECTS}
    assert codes <= {"missing_token", "malformed_token"}


def test_no_token_and_an_empty_one_are_different_answers(callee: Callee) -> None:
    assert refusal_of(lambda: callee.accepts(None)) == "missing_token"  # type: ignore[arg-type]
    assert refusal_of(lambda: callee.accepts("")) == "malformed_token"


def test_a_text_with_methods_of_its_own_is_read_as_what_it_is(callee: Callee) -> None:
    assert callee.accepts(Wilful(honest_token(KEY))).id == forge.CALLER


@pytest.mark.parametrize("name", ["method", "target", "body", "headers"])
def test_a_request_described_in_any_type_is_not_the_one_that_was_signed(callee: Callee, name: str) -> None:
    for value in OBJECTS:
        if value in ({}, ()) or (name == "body" and value is str):
            continue
        refusal = refusal_of(lambda value=value: callee.accepts(honest_token(KEY), **{name: value}))
        assert refusal == "wrong_binding", repr(value)[:80]


@pytest.mark.parametrize("value", [value for value in OBJECTS if value is not None], ids=lambda value: str(type(value)))
def test_a_scope_of_any_type_is_one_that_nobody_has(callee: Callee, value: object) -> None:
    assert refusal_of(lambda: callee.accepts(honest_token(KEY), scope=value)) == "insufficient_scope"


def event_verifier() -> EventVerifier:
    return EventVerifier(
        Callee().keys, audience="jobs", allow={"client-service": {"a"}}, max_age=timedelta(1), clock=lambda: forge.NOW
    )


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: str(type(value)))
def test_headers_of_an_event_of_any_type_hold_no_token(value: Any) -> None:
    verifier = event_verifier()
    for headers in (
        value,
        {"authorization": value},
        [("authorization", value)],
        {value: "a"} if hashable(value) else (),
    ):
        assert refusal_of(lambda headers=headers: verifier.verify(b"", headers, topic="t")) in {
            "missing_token",
            "malformed_token",
        }


def hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: str(type(value)))
def test_everything_else_that_reads_what_a_stranger_sent(value: Any) -> None:
    users = UserVerifier(forge.Keys(), clock=lambda: forge.NOW)
    assert refusal_of(lambda: users.verify(value)) in {"missing_token", "malformed_token"}
    assert refusal_of(lambda: read_transaction(forge.Keys(), value, now=0, leeway=0)) is not None
    with pytest.raises(ConfigurationError):
        JoinToken.parse(value)
    refusal_of(lambda: b64url_decode(value))
    refusal_of(lambda: strict_json(value))


@pytest.mark.parametrize("check", NAMES)
def test_a_name_is_text(check: Callable[[Any], Any]) -> None:
    for value in OBJECTS:
        if not isinstance(value, str):
            with pytest.raises(InvalidName):
                check(value)


def test_what_cannot_be_signed_says_so() -> None:
    with MemoryRegistry() as registry:
        identity = registry.identity("client")
        whole = {"method": "GET", "target": "/", "body": b"", "headers": {}}
        for name in ("target", "body", "headers"):
            for value in (7, object(), ["a"], {1: 2}, "text" if name != "headers" else 1):
                if name == "target" and value == "text":
                    continue
                with pytest.raises((UnsignableRequest, InvalidName)):
                    identity.sign_request("callee", **{**whole, name: value})  # type: ignore[arg-type]
