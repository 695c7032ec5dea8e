"""Attacks on signed answers: none of what arrives reaches the application."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import requests

from peerseal.errors import ResponseRefused, TokenError
from peerseal.httpx import AsyncPeerSession
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.request import REQUEST_TYP
from peerseal.protocol.tokens.response import RESPONSE_HEADER, RESPONSE_TYP, ResponseToken, request_hash
from peerseal.verify.request import Verifier
from peerseal.verify.response import ResponseHead, ResponseVerifier
from tests.attacks import forge
from tests.attacks.forge import CALLEE, CALLER, NOW, OTHER, Keys, ec_key, rsa_key
from tests.attacks.mutations import resigned, respelled
from tests.support.signed_answers import ARCHIVE, ARCHIVE_TAG, BODY, PLAIN, WAYS, Sent, Way, World, signing_service
from tests.support.signed_answers import CALLEE as SIGNER

each_way = pytest.mark.parametrize("call", WAYS)

PROVEN = ("iss", "aud", "req", "status", "content_digest", "headers")
REQUEST = forge.honest_token(ec_key("caller"))
HEADERS = {"content-type": "application/json"}
ANSWER = ResponseHead.of(200, [("Content-Type", "application/json")])


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with signing_service(bind_response_headers=("X-Price",)) as world:
        yield world


@pytest.fixture
def world(shared: World) -> World:
    shared.sent.clear()
    shared.between = lambda sent: sent
    shared.towards = id
    return shared


def refused(call: Way, world: World, path: str = "/orders", **options: Any) -> ResponseRefused:
    with pytest.raises(ResponseRefused) as error:
        call(world, path, **options)
    return error.value


# ---- on the way

EARLIER, LATER = "Thu, 01 Jan 1970 01:00:00 GMT", "Thu, 01 Jan 2099 00:00:00 GMT"


ALTERED: dict[str, tuple[str, Any]] = {
    "its status becomes 201": ("wrong_binding", lambda sent: replace(sent, status="201 CREATED")),
    "its status becomes 500": ("wrong_binding", lambda sent: replace(sent, status="500 NO")),
    "its content type is removed": ("wrong_binding", lambda sent: sent.without("Content-Type")),
    "its content type is changed": ("wrong_binding", lambda sent: sent.holding("Content-Type", "text/html")),
    "it has a second content type": ("wrong_binding", lambda sent: sent.plus("Content-Type", "text/html")),
    "its ETag becomes weak": ("wrong_binding", lambda sent: sent.holding("ETag", 'W/"1"')),
    "its ETag is removed": ("wrong_binding", lambda sent: sent.without("ETag")),
    "a location is added": ("wrong_binding", lambda sent: sent.plus("Location", "/elsewhere")),
    "an encoding is added": ("wrong_binding", lambda sent: sent.plus("Content-Encoding", "identity")),
    "a range is added": ("wrong_binding", lambda sent: sent.plus("Content-Range", "bytes 0-11/12")),
    "a time of change is added": ("wrong_binding", lambda sent: sent.plus("Last-Modified", LATER)),
    "a bound header is removed": ("wrong_binding", lambda sent: sent.without("X-Price")),
    "a bound header is changed": ("wrong_binding", lambda sent: sent.holding("X-Price", "1")),
    "a bound header is doubled": ("wrong_binding", lambda sent: sent.plus("X-Price", "7")),
    "its body is changed": ("wrong_binding", lambda sent: replace(sent, body=sent.body.replace(b"7", b"1"))),
    "its body is removed": ("wrong_binding", lambda sent: replace(sent, body=b"").holding("Content-Length", "0")),
    "its body grows": ("wrong_binding", lambda sent: replace(sent, body=BODY + b" ").without("Content-Length")),
    "its token is removed": ("unsigned_response", lambda sent: sent.without(RESPONSE_HEADER)),
    "its token is empty": ("malformed_response", lambda sent: sent.holding(RESPONSE_HEADER, "")),
    "its token is doubled": ("malformed_response", lambda sent: sent.plus(RESPONSE_HEADER, sent.token)),
    "its token is huge": ("malformed_response", lambda sent: sent.holding(RESPONSE_HEADER, "a" * 20_000)),
    "its token is its request's": (
        "malformed_response",
        lambda sent: sent.holding(RESPONSE_HEADER, sent.request_token),
    ),
}


@each_way
@pytest.mark.parametrize("name", ALTERED)
def test_an_answer_that_was_altered_never_reaches_the_application(world: World, call: Way, name: str) -> None:
    code, world.between = ALTERED[name]
    assert refused(call, world).code == code


@each_way
def test_a_body_that_is_cut_is_refused(world: World, call: Way) -> None:
    world.between = lambda sent: replace(sent, body=sent.body[:5]).holding("Content-Length", "5")
    assert refused(call, world).code == "wrong_binding"


@each_way
def test_two_answers_that_change_places_are_refused(world: World, call: Way) -> None:
    call(world)
    first = world.sent[-1]
    world.between = lambda sent: first
    assert refused(call, world).code == "wrong_response"


@each_way
def test_an_old_answer_is_refused_tomorrow_even_to_its_own_request(world: World, call: Way) -> None:
    def a_day_later(sent: Sent) -> Sent:
        world.clock.advance(86_400)
        return sent

    world.between = a_day_later
    try:
        assert refused(call, world).code == "expired"
    finally:
        world.clock.advance(-86_400)


@each_way
def test_the_answer_of_another_service_is_refused(world: World, call: Way) -> None:
    other = world.registry.identity("billing")
    world.between = lambda sent: sent.holding(RESPONSE_HEADER, _signed_by(other, world, sent))
    assert refused(call, world).code == "wrong_response"


def _signed_by(service: Any, world: World, sent: Sent) -> str:
    headers = {"content-type": "application/json", "etag": '"1"', "x-price": "7"}
    token: str = service.sign_response(
        sent.request_token, caller=world.caller.id, status=200, body=sent.body, headers=headers
    )
    return token


@each_way
def test_the_answer_by_a_revoked_key_of_the_callee_is_refused(call: Way) -> None:
    with signing_service() as world:
        call(world)
        world.registry.revoke(world.callee.credentials.key_id)
        world.caller.trust.refresh()
        assert refused(call, world).code == "revoked_key"


@each_way
def test_the_answer_by_a_retired_key_of_the_callee_is_refused(call: Way) -> None:
    with signing_service() as world:
        call(world)
        world.registry.retire(world.callee.credentials.key_id)
        world.clock.advance(120)
        world.caller.trust.refresh()
        assert refused(call, world).code in ("expired", "unknown_key")


@each_way
def test_a_redirect_is_followed_only_if_it_is_signed_and_stays_within_the_origin(world: World, call: Way) -> None:
    with signing_service(sign_responses=False) as unsigned:
        assert refused(call, world, f"/elsewhere?to={unsigned.url}/orders").code == "unsigned_response"
        assert unsigned.sent == []
    world.between = lambda sent: sent.holding("Location", "/status/200") if sent.status.startswith("302") else sent
    assert refused(call, world, "/moved").code == "wrong_binding"
    assert len(world.sent) == 2


@each_way
def test_an_error_page_of_a_proxy_is_refused_and_the_proxy_is_named(world: World, call: Way) -> None:
    headers = (("Content-Type", "text/html"), ("Server", "nginx/1.25"))
    world.between = lambda sent: replace(sent, status="502 Bad Gateway", headers=headers, body=b"<html>")
    error = refused(call, world, method="POST")
    assert error.code == "unsigned_response"
    assert error.answered == 502
    assert "502" in str(error)
    assert "nginx/1.25" in str(error)


@pytest.mark.parametrize("call", [WAYS[0], WAYS[2]])
def test_a_retry_after_an_error_page_brings_the_signed_answer(world: World, call: Way) -> None:
    pages = iter([replace(Sent("502 Bad Gateway", (), b"", ""))])
    world.between = lambda sent: next(pages, sent)
    assert call(world).body == BODY
    assert len(world.sent) == 2


def test_an_async_session_keeps_no_cookie_of_an_answer_that_is_not_proven(world: World) -> None:
    async def jar(world: World) -> dict[str, str]:
        async def pause(_: float) -> None:
            """Not at all."""

        wired: Any = {"require_signed_response": True, "verify": PLAIN, "sleep": pause}
        async with AsyncPeerSession(world.caller, SIGNER, world.url, **wired) as session:
            await session.get("/orders")
            return dict(session.cookies)

    evil = Sent("502 Bad Gateway", (("Set-Cookie", "sid=evil; Path=/"), ("Content-Length", "0")), b"", "")
    pages = iter([evil])
    world.between = lambda sent: next(pages, sent)
    assert asyncio.run(jar(world)) == {}
    world.between = lambda sent: sent.plus("Set-Cookie", "sid=good; Path=/")
    assert asyncio.run(jar(world)) == {"sid": "good"}


@each_way
def test_a_refusal_that_is_packed_is_not_unpacked_before_it_is_proven(world: World, call: Way) -> None:
    head = (("Content-Type", "application/problem+json"), ("Content-Encoding", "gzip"), ("Content-Length", "7"))
    world.between = lambda sent: Sent("401 NO", head, b"no gzip", "")
    assert refused(call, world).code == "unsigned_response"


@each_way
@pytest.mark.parametrize("status", [206, 304])
def test_an_answer_for_a_header_that_was_added_on_the_way_is_refused(world: World, call: Way, status: int) -> None:
    """The callee signs it honestly: it saw ``Range`` or ``If-None-Match``, which are not bound."""
    assert refused(call, world, f"/status/{status}").code == "wrong_binding"


@each_way
@pytest.mark.parametrize(("status", "header"), [(206, "Range"), (304, "If-None-Match"), (304, "If-Modified-Since")])
def test_an_answer_that_the_request_asked_for_is_accepted(world: World, call: Way, status: int, header: str) -> None:
    assert call(world, f"/status/{status}", headers={header: "x"}).status == status


CHOOSING: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "another range": ("/archive", {"Range": "bytes=0-4"}, {"HTTP_RANGE": "bytes=10-14"}),
    "a range of another version": ("/archive", {"Range": "bytes=0-4", "If-Range": '"v0"'}, {"HTTP_IF_RANGE": '"v1"'}),
    "an added version": ("/archive", {"Range": "bytes=0-4"}, {"HTTP_IF_RANGE": '"v0"'}),
    "a later time": ("/dated", {"If-Modified-Since": EARLIER}, {"HTTP_IF_MODIFIED_SINCE": LATER}),
    "an added time": ("/dated", {"If-None-Match": '"v0"'}, {"HTTP_IF_MODIFIED_SINCE": LATER}),
    "another tag": ("/archive", {"If-None-Match": '"v0"'}, {"HTTP_IF_NONE_MATCH": '"v1"'}),
    "an added tag": ("/archive", {"If-Modified-Since": EARLIER}, {"HTTP_IF_NONE_MATCH": '"v1"'}),
    "another condition": ("/archive", {"If-Match": '"v1"'}, {"HTTP_IF_MATCH": '"v0"'}),
    "an added condition": ("/archive", {}, {"HTTP_IF_MATCH": '"v0"'}),
    "an added time of a condition": ("/archive", {}, {"HTTP_IF_UNMODIFIED_SINCE": EARLIER}),
}
"""What the caller sends, and what the headers that choose an answer become on the way."""


@each_way
@pytest.mark.parametrize("name", CHOOSING)
def test_an_answer_to_headers_that_were_changed_or_added_on_the_way_is_refused(
    world: World, call: Way, name: str
) -> None:
    path, sent, arrive = CHOOSING[name]
    world.towards = lambda environ: environ.update(arrive)
    assert refused(call, world, path, headers=sent).code == "unsigned_response"


@each_way
def test_a_part_of_a_file_is_accepted_as_the_part_that_was_asked_for(world: World, call: Way) -> None:
    got = call(world, "/archive", headers={"Range": "bytes=0-4", "If-Range": ARCHIVE_TAG})
    assert (got.status, got.body, got.headers["Content-Range"]) == (206, ARCHIVE[:5], f"bytes 0-4/{len(ARCHIVE)}")
    world.between = lambda sent: sent.holding("Content-Range", f"bytes 5-9/{len(ARCHIVE)}")
    assert refused(call, world, "/archive", headers={"Range": "bytes=0-4"}).code == "wrong_binding"


def test_nothing_is_signed_for_an_unbound_range_of_a_caller_that_asks_for_no_signature() -> None:
    with signing_service(sign_responses=True) as world:
        got = WAYS[0](world, "/archive", headers={"Range": "bytes=0-4"}, require_signed_response=False)
        assert (got.status, RESPONSE_HEADER in dict(world.sent[-1].headers)) == (206, False)
        assert 'peerseal_responses_total{outcome="unbound"} 1' in world.callee.metrics()


@each_way
def test_the_length_that_an_answer_to_head_tells_is_the_signed_one_or_missing(world: World, call: Way) -> None:
    assert call(world, method="HEAD").headers["Content-Length"] == str(len(BODY))
    world.between = lambda sent: sent.holding("Content-Length", "999")
    assert refused(call, world, method="HEAD").code == "wrong_binding"
    world.between = lambda sent: sent.without("Content-Length")
    assert call(world, method="HEAD").status == 200


@each_way
def test_a_pretended_replay_costs_one_attempt_and_brings_nothing(world: World, call: Way) -> None:
    problem = Sent("401 NO", (("Content-Type", "application/problem+json"),), b'{"code": "replayed"}', "")
    world.between = lambda sent: problem.plus("Content-Length", str(len(problem.body)))
    assert refused(call, world).code == "unsigned_response"
    assert len(world.sent) == 2


@each_way
def test_a_pretended_replay_is_not_in_the_history_of_the_answer(world: World, call: Way) -> None:
    problem = Sent("401 NO", (("Content-Type", "application/problem+json"),), b'{"code": "replayed"}', "")
    pretended = problem.plus("Content-Length", str(len(problem.body)))
    world.between = lambda sent: pretended if len(world.sent) in (1, 3) else sent
    got = call(world, "/moved")
    assert (got.status, got.body) == (200, BODY)
    assert [each for each in got.history if each == 401] == []
    assert len(world.sent) == 4


def test_a_copy_of_a_request_gets_no_signature(world: World) -> None:
    WAYS[0](world)
    headers = {"Authorization": f"Bearer {world.sent[-1].request_token}", "Peerseal-Want-Response": "1"}
    again = requests.get(f"{world.url}/orders", headers=headers, timeout=20)
    assert (again.status_code, RESPONSE_HEADER in again.headers) == (401, False)


# ---- tokens


class Caller:
    """The caller under attack, and what it believes."""

    def __init__(self) -> None:
        self.keys = Keys()
        for owner, name in ((CALLEE, "callee"), (CALLER, "caller"), (OTHER, "other")):
            self.keys.add(owner, ec_key(name))
        self.keys.add(CALLEE, rsa_key("callee"))
        self.verifier = ResponseVerifier(self.keys, caller=CALLER, audience=CALLEE, clock=lambda: NOW)

    def code(self, token: str, head: ResponseHead = ANSWER, body: bytes = BODY) -> str:
        """``accepted``, or the code of the refusal."""
        arrived = ResponseHead.of(head.status, (*head.headers, (RESPONSE_HEADER, token)))
        try:
            self.verifier.verify(arrived, request_token=REQUEST, body=body)
        except ResponseRefused as error:
            return error.code
        return "accepted"


@pytest.fixture
def caller() -> Caller:
    return Caller()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of an honest response token, changed."""
    honest = ResponseToken(
        CALLEE, CALLER, NOW, request_hash(REQUEST), 200, forge.digest_header(BODY), dict(HEADERS)
    ).claims()
    return forge.changed(honest, changes)


def header(key: KeyPair, owner: str = CALLEE, **changes: Any) -> dict[str, Any]:
    """The header of an honest response token, changed."""
    return forge.header(key, owner, **{"typ": RESPONSE_TYP, **changes})


def token(key: KeyPair | None = None, owner: str = CALLEE, **changes: Any) -> str:
    """A response token of changed claims, signed like an honest one."""
    key = key or ec_key("callee")
    return forge.forge(header(key, owner), claims(**changes), key.sign)


@pytest.mark.parametrize("key", [ec_key("callee"), rsa_key("callee")], ids=["ES256", "RS256"])
def test_an_honest_token_is_accepted(caller: Caller, key: KeyPair) -> None:
    assert caller.code(token(key)) == "accepted"


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "of another request": ("wrong_response", {"req": request_hash("a.b.c")}),
    "to another caller": ("wrong_response", {"aud": OTHER}),
    "in another service's name": ("wrong_response", {"iss": OTHER}),
    "of yesterday": ("expired", {"iat": NOW - 86_400, "exp": NOW - 86_340}),
    "of tomorrow": ("expired", {"iat": NOW + 86_400, "exp": NOW + 86_460}),
    "that lives too long": ("expired", {"exp": NOW + 61}),
    "that ends before it begins": ("expired", {"exp": NOW - 1}),
    "of another status": ("wrong_binding", {"status": 201}),
    "of another body": ("wrong_binding", {"content_digest": forge.digest_header(b"")}),
    "of other headers": ("wrong_binding", {"headers": {}}),
    "with a header that did not arrive": ("wrong_binding", {"headers": {**HEADERS, "etag": '"1"'}}),
    "with an unknown claim": ("malformed_response", {"sub": CALLEE}),
    "without a status": ("malformed_response", {"status": forge.ABSENT}),
    "whose status is a text": ("malformed_response", {"status": "200"}),
    "whose status is true": ("malformed_response", {"status": True}),
    "whose status is informational": ("malformed_response", {"status": 103}),
    "whose headers are a list": ("malformed_response", {"headers": []}),
    "whose header is a list": ("malformed_response", {"headers": {"content-type": ["application/json"]}}),
    "whose header is in upper case": ("malformed_response", {"headers": {"Content-Type": "application/json"}}),
    "whose req is short": ("malformed_response", {"req": "AAAA"}),
    "whose req is no base64url": ("malformed_response", {"req": "=" * 43}),
    "whose iat is a float": ("malformed_response", {"iat": NOW + 0.5}),
    "whose checkpoint is too long": ("malformed_response", {"cp": b64url(b"a" * 513)}),
    "whose checkpoint is empty": ("malformed_response", {"cp": ""}),
    "whose checkpoint is a number": ("malformed_response", {"cp": 7}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_signed_token_with_other_claims_is_refused(caller: Caller, name: str) -> None:
    code, changes = WRONG[name]
    assert caller.code(token(**changes)) == code


def test_the_longest_checkpoint_is_accepted(caller: Caller) -> None:
    assert caller.code(token(cp=b64url(b"a" * 512))) == "accepted"


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "PS256", "es256", ""])
def test_other_algorithms_are_refused(caller: Caller, alg: str) -> None:
    head = header(ec_key("callee"), alg=alg)
    for signature in (b"", ec_key("callee").sign):
        assert caller.code(forge.forge(head, claims(), signature)) == "malformed_response"
    assert caller.keys.asked == []


def test_an_algorithm_that_is_not_the_keys_is_refused(caller: Caller) -> None:
    head = header(ec_key("callee"), alg="RS256")
    assert caller.code(forge.forge(head, claims(), rsa_key("callee").sign)) == "bad_signature"


def test_a_key_of_another_service_is_not_even_asked_for(caller: Caller) -> None:
    for key, owner in ((ec_key("other"), OTHER), (ec_key("caller"), CALLER), (ec_key("x"), "evil.test/orders")):
        assert caller.code(token(key, owner, iss=owner)) == "wrong_response"
    assert caller.keys.asked == []


def test_unknown_and_revoked_keys_and_other_signatures_are_refused(caller: Caller) -> None:
    assert caller.code(token(ec_key("unknown"))) == "unknown_key"
    stolen = forge.forge(header(ec_key("callee")), claims(), ec_key("unknown").sign)
    assert caller.code(stolen) == "bad_signature"
    caller.keys.revoke(CALLEE, ec_key("callee"))
    assert caller.code(token()) == "revoked_key"


def test_a_retired_key_signs_no_new_answer(caller: Caller) -> None:
    caller.keys.add(CALLEE, ec_key("callee"), active_until=NOW - 60)
    assert caller.code(token()) == "expired"


def test_a_request_token_is_no_answer_and_an_answer_no_request_token(caller: Caller) -> None:
    assert caller.code(REQUEST) == "malformed_response"
    retyped = forge.forge(header(ec_key("callee"), typ=REQUEST_TYP), claims(), ec_key("callee").sign)
    assert caller.code(retyped) == "malformed_response"
    verifier = Verifier(caller.keys, audience=CALLER, allow={CALLEE: ()}, clock=lambda: NOW)
    for one in (token(), retyped):
        with pytest.raises(TokenError):
            verifier.verify(one, method="GET", target="/")


def test_headers_that_arrive_in_other_pieces_count_as_what_recipients_make_of_them(caller: Caller) -> None:
    signed = token(headers={**HEADERS, "x-list": "a, b"})
    for pairs in ([("X-List", "a"), ("x-list", " b ")], [("X-List", "a, b")]):
        assert caller.code(signed, ResponseHead.of(200, [*ANSWER.headers, *pairs])) == "accepted"
    for pairs in ([("X-List", "b, a")], [("X-List", "a"), ("X-List", "b"), ("X-List", "c")], []):
        assert caller.code(signed, ResponseHead.of(200, [*ANSWER.headers, *pairs])) == "wrong_binding"


def mutated(random: Random, honest: list[str]) -> str:
    """One spoilt token: as a stranger, or as the holder of some other key, can make it."""
    if random.random() < 0.85:
        return respelled(random, random.choice(honest), honest)
    return resigned(random, random.choice(honest), ec_key("attacker").sign)


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_mutated_token_is_accepted_and_no_error_leaves_the_tree(caller: Caller, count: int) -> None:
    random, honest = Random(18), [token(), token(rsa_key("callee"), cp=b64url(b"a" * 200))]
    for _ in range(count):
        spoilt = mutated(random, honest)
        assert spoilt in honest or caller.code(spoilt) != "accepted", spoilt


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_an_answer_that_the_callee_signs_itself_says_what_arrived_or_is_refused(caller: Caller, count: int) -> None:
    random, honest = Random(19), token()
    for _ in range(count):
        other = resigned(random, honest, ec_key("callee").sign)
        if caller.code(other) == "accepted":
            found = json.loads(b64url_decode(other.split(".")[1]))
            assert {name: found[name] for name in PROVEN} == {name: claims()[name] for name in PROVEN}
