"""What stands between a service and the issuer of opaque tokens, or an issuer gone bad: its answers, and its manners.

Nothing of it makes a user of a token that is none; and none of it is blamed on the user: 503, never 401.
"""

import gc
import gzip
import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Response

from peerseal import IntrospectionClient, UserVerifier
from peerseal.errors import Expired, TrustUnavailable, WrongType
from peerseal.protocol.policies import DomainSettings, UserIssuer
from peerseal.runtime.limits import FetchLimits, IssuerLimits
from tests.attacks import forge
from tests.support.introspecting import SIGNED, Client, Introspecting, running_introspection
from tests.support.misbehaving import IN_TIME, Behaviour, hangs, misbehaving
from tests.support.wire import Keys, raw_server

NOW = forge.NOW
TOKEN = "opaque-token-of-ada"
Forged = Callable[[Introspecting, dict[str, Any]], str]


@pytest.fixture
def issuer() -> Iterator[Introspecting]:
    with running_introspection(now=lambda: NOW) as issuer:
        issuer.clients["edge-client"] = Client("edge-client", "secret")
        issuer.issue(TOKEN)
        yield issuer


def users_of(
    issuer: Introspecting, *, url: str | None = None, limits: IssuerLimits | None = None, **setting: Any
) -> UserVerifier:
    keys = Keys()
    named = UserIssuer(issuer.issuer.url, "edge", introspection_url=url or issuer.url, **setting)
    keys.domain_settings = DomainSettings(issuers=(named,))
    own = IntrospectionClient(issuer.issuer.url, "edge-client", "secret")
    return UserVerifier(keys, introspection=own, limits=limits, clock=lambda: NOW)


def compact(issuer: Introspecting, members: dict[str, Any], key: Any, alg: str, **header: Any) -> str:
    claims = {"iss": issuer.issuer.url, "aud": "edge-client", "iat": NOW, "token_introspection": members}
    headers = {"typ": SIGNED, "kid": issuer.issuer.kid, **header}
    return jwt.encode(claims, key, alg, headers=headers)


def hs256_of_the_public_key(issuer: Introspecting, members: dict[str, Any]) -> str:
    public = issuer.issuer.keys[issuer.issuer.kid].public_key()
    raw = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # PyJWT refuses a PEM as a secret
    return compact(issuer, members, raw, "HS256")


FORGED: dict[str, Forged] = {
    "unsigned": lambda i, m: compact(i, m, None, "none"),
    "HS256 of the public key": hs256_of_the_public_key,
    "by a key of nobody": lambda i, m: compact(i, m, forge.ec_key("x").private, "ES256", kid="x"),
    "by another key under that kid": lambda i, m: compact(i, m, forge.ec_key("x").private, "ES256"),
    "by an RSA key under that kid": lambda i, m: compact(i, m, forge.rsa_key("x").private, "RS256"),
    "by the key that it brings": lambda i, m: compact(
        i, m, forge.ec_key("x").private, "ES256", jwk=dict(forge.ec_key("x").public.jwk)
    ),
    "altered": lambda i, m: i.signed(m)[:-8] + "AAAAAAAA",
    "a JWT of another kind": lambda i, m: i.signed(m, typ="JWT"),
    "an access token": lambda i, m: i.signed(m, typ="at+jwt"),
    "of another issuer": lambda i, m: i.signed(m, iss="https://evil.example"),
    "for another service": lambda i, m: i.signed(m, aud="billing-client"),
    "for nobody": lambda i, m: i.signed(m, aud=None),
    "of half a minute ago": lambda i, m: i.signed(m, iat=NOW - 31),
    "of the future": lambda i, m: i.signed(m, iat=NOW + 31),
    "of no time": lambda i, m: i.signed(m, iat=None),
    "of a time in text": lambda i, m: i.signed(m, iat=str(NOW)),
    "without what it is about": lambda i, m: i.signed(m, token_introspection=None),
    "with what it is about in text": lambda i, m: i.signed(m, token_introspection=json.dumps(m)),
    "with the answer beside it": lambda i, m: i.signed({}, **m),
    "no JWT": lambda i, m: json.dumps(m),
    "nothing": lambda i, m: "",
    "not ASCII": lambda i, m: "é.é.é",
}


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_signed_answer_that_is_not_the_issuers_to_us_now(
    issuer: Introspecting, forged: Forged, required: bool
) -> None:
    issuer.override = lambda members: Response(forged(issuer, members), mimetype=f"application/{SIGNED}")
    with pytest.raises(TrustUnavailable):
        users_of(issuer, introspection_signed=required).verify(TOKEN)
    issuer.override = lambda members: Response(issuer.signed(members), mimetype=f"application/{SIGNED}")
    assert users_of(issuer, introspection_signed=required).verify(TOKEN).name == "ada"


@pytest.mark.parametrize(
    "content_type", ["application/json", f"application/{SIGNED}", f"Application/{SIGNED}; a=b", ""]
)
@pytest.mark.parametrize("token", [TOKEN, "made-up"])
def test_a_plain_answer_where_signed_ones_are_required(issuer: Introspecting, content_type: str, token: str) -> None:
    """Neither that a token is active nor that it is not: who cuts the signature off must not log users out."""
    issuer.override = lambda members: Response(json.dumps(members), content_type=content_type)
    with pytest.raises(TrustUnavailable):
        users_of(issuer, introspection_signed=True).verify(token)


def test_a_signed_answer_as_a_users_token(issuer: Introspecting) -> None:
    answer = issuer.signed({"active": True}, sub="ada", exp=NOW + 60)
    with pytest.raises(WrongType):
        users_of(issuer).verify(answer)


GARBAGE: dict[str, str] = {
    "no JSON": "<html>login</html>",
    "nothing": "",
    "a list": "[true]",
    "true": "true",
    "empty": "{}",
    "active twice": '{"active": false, "active": true, "sub": "ada", "aud": "edge"}',
    "active twice, by an escape": '{"active": false, "\\u0061ctive": true, "sub": "ada", "aud": "edge"}',
    **{
        f"active {value}": f'{{"active": {value}, "sub": "ada", "aud": "edge"}}'
        for value in ('"true"', "1", "null", "[]", '"false"', "0")
    },
    **{
        f"exp {value}": f'{{"active": true, "exp": {value}, "sub": "ada", "aud": "edge"}}'
        for value in ('"2000000000"', "2e9", "-1", "NaN", "true", "null", "1" + "0" * 5000)
    },
    "aud a number": '{"active": true, "aud": 7, "sub": "ada"}',
    "aud with a number": '{"active": true, "aud": ["edge", 7], "sub": "ada"}',
    "iss a list": '{"active": true, "aud": "edge", "iss": [], "sub": "ada"}',
    "deeply nested": '{"active": true, "aud": "edge", "sub": "ada", "x": ' + "[" * 200 + "]" * 200 + "}",
    "two answers": '{"active": false}{"active": true}',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_an_answer_that_is_none(issuer: Introspecting, body: str) -> None:
    issuer.override = lambda _: Response(body, mimetype="application/json")
    users = users_of(issuer)
    with pytest.raises(TrustUnavailable):
        users.verify(TOKEN)
    issuer.override = None
    assert users.verify(TOKEN).name == "ada", "an answer that was refused is not remembered"


@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "gzip"])
def test_an_answer_of_8_mb(issuer: Introspecting, encoded: bool) -> None:
    body = json.dumps({"active": True, "sub": "ada", "aud": "edge", "x": "y" * (8 << 20)}).encode()
    headers = {"Content-Encoding": "gzip"} if encoded else {}
    issuer.override = lambda _: Response(gzip.compress(body) if encoded else body, headers=headers)
    users = users_of(issuer)
    with pytest.raises(TrustUnavailable, match="larger than 16384 bytes"):
        users.verify(TOKEN)
    issuer.override = None
    assert users.verify(TOKEN).name == "ada", "the issuer answers, so it does not rest"


def drips(connection: socket.socket) -> None:
    """A byte now and then, which never lets a plain timeout end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
    with suppress(OSError):
        while True:
            connection.sendall(b" ")
            time.sleep(0.02)


@pytest.mark.parametrize("behave", [drips, hangs, socket.socket.close], ids=["drips", "hangs", "closes"])
def test_an_issuer_that_is_slow_holds_one_call_for_its_time(issuer: Introspecting, behave: Behaviour) -> None:
    limits = IssuerLimits(fetch=FetchLimits(0.5, 0.5, 0.5))
    with misbehaving(behave) as server:
        users, began = users_of(issuer, url=server.url + "/introspect", limits=limits), time.monotonic()
        with pytest.raises(TrustUnavailable):
            users.verify(TOKEN)
        assert time.monotonic() - began < IN_TIME
        for count in range(50):  # while it rests, others are answered at once
            with pytest.raises(TrustUnavailable, match="a moment ago"):
                users.verify(f"another-{count}")
        assert server.asked == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_the_token(issuer: Introspecting, status: int) -> None:
    with raw_server() as elsewhere:
        issuer.override = lambda _: Response(status=status, headers={"Location": f"{elsewhere.url}/introspect"})
        with pytest.raises(TrustUnavailable):
            users_of(issuer).verify(TOKEN)
        assert elsewhere.seen == []


@pytest.mark.parametrize("status", [401, 403])
def test_our_credentials_refused_are_never_the_users_fault(
    issuer: Introspecting, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.override = lambda _: Response('{"active": false}', status=status, mimetype="application/json")
    with pytest.raises(TrustUnavailable):
        users_of(issuer).verify(TOKEN)
    assert "PEERSEAL_INTROSPECTION_CLIENT_ID" in caplog.text


def test_the_answer_about_one_token_is_none_about_another(issuer: Introspecting) -> None:
    users = users_of(issuer)
    assert users.verify(TOKEN).name == "ada"
    for other in (TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "x" + TOKEN):
        with pytest.raises(Expired):
            users.verify(other)


def test_neither_the_log_nor_the_memory_keeps_a_token(issuer: Introspecting, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    users = users_of(issuer)
    tokens = ["".join(["opaque-secret-", str(count)]) for count in range(4)]
    issuer.issue(tokens[0], jti=tokens[0])
    issuer.issue(tokens[2])
    assert users.verify(tokens[0]).name == "ada"
    with pytest.raises(Expired):
        users.verify(tokens[1])
    issuer.override = lambda _: Response(status=500)
    with pytest.raises(TrustUnavailable):
        users.verify(tokens[2])
    assert "opaque-secret" not in caplog.text
    issuer.tokens.clear()
    gc.collect()
    references = [sys.getrefcount(token) for token in tokens]
    assert references == [references[3]] * 4, "of the last one nobody was asked"
