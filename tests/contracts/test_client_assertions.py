"""Client assertions at the token exchange (RFC 7523), on both databases: what proves a client, and what does not."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from peerseal import EventVerifier, Identity, TrustStore
from peerseal.errors import WrongType
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.verify.request import Verifier
from tests.contracts.conftest import QUIET
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.registry.in_process import InProcess
from tests.registry.legacy import ABSENT, AUDIENCE, LEGACY, OTHER, PAYLOAD, REGISTRY, SCOPE, Client

REFUSED = 401, "invalid_client"
TYP = "client-authentication+jwt"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed_with_the_public_key(client: Client) -> str:
    """HS256, with a public value as the secret."""
    header = {"alg": "HS256", "kid": client.kid(), "typ": "JWT"}
    segments = ".".join(b64url(json.dumps(part).encode()) for part in (header, client.claims()))
    return f"{segments}.{b64url(hmac.digest(client.key.public.spki, segments.encode(), hashlib.sha256))}"


# ---- what proves a client


GOOD: Mapping[str, Callable[[Client], str]] = {
    "typ JWT": lambda c: c.assertion(),
    "typ client-authentication+jwt": lambda c: c.assertion(header={"typ": TYP}),
    "a list of one audience": lambda c: c.assertion(aud=[REGISTRY]),
    "with nbf": lambda c: c.assertion(nbf=c.now),
    "a short jti": lambda c: c.assertion(jti="1"),
    "a long jti": lambda c: c.assertion(jti="~" * 200),
    "for 300 s": lambda c: c.assertion(exp=c.now + 300),
    "within the leeway": lambda c: c.assertion(iat=c.now + 29, exp=c.now + 89),
    "with claims that nobody knows": lambda c: c.assertion(tenant={"a": [1]}),
    "another spelling of JSON": lambda c: c.written(json.dumps(c.claims(), indent=2).encode()),
}


def test_any_librarys_assertion_proves_a_client(client: Client) -> None:
    found = {name: client.post(client.form(client_assertion=make(client))).status_code for name, make in GOOD.items()}
    assert found == dict.fromkeys(GOOD, 200)


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_our_own_assertion_is_as_good_as_a_librarys(registry: Driver, client: Client, clock: Clock, alg: Any) -> None:
    identity = Identity(
        "legacy",
        registry="http://registry.test",
        join_token=registry.join_token("legacy").encode(),
        limits=QUIET,
        alg=alg,
        clock=clock,
        fetcher=InProcess(registry),
    ).start()
    assert client.exchanged(client_assertion=identity.sign_assertion())["scope"] == SCOPE
    assert client.exchanged(client_assertion=identity.sign_assertion(), event_id="e-2")["scope"] == SCOPE
    identity.stop()


# ---- what proves none


BAD: Mapping[str, Callable[[Client], str]] = {
    "nothing": lambda c: "",
    "rubbish": lambda c: "rubbish",
    "no ASCII": lambda c: c.assertion() + "ü",
    "for another audience": lambda c: c.assertion(aud="x"),
    "for two audiences": lambda c: c.assertion(aud=[REGISTRY, "x"]),
    "for no audience": lambda c: c.assertion(aud=[]),
    "without an audience": lambda c: c.assertion(aud=ABSENT),
    "for the domain": lambda c: c.assertion(aud=DOMAIN),
    "for the endpoint's URL": lambda c: c.assertion(aud="http://localhost/oauth2/token"),
    "expired": lambda c: c.assertion(iat=c.now - 120, exp=c.now - 60),
    "for too long": lambda c: c.assertion(exp=c.now + 301),
    "ends before it begins": lambda c: c.assertion(exp=c.now - 1),
    "without an end": lambda c: c.assertion(exp=ABSENT),
    "an end that is a text": lambda c: c.written(json.dumps(c.claims() | {"exp": str(c.now + 60)}).encode()),
    "an end that is no integer": lambda c: c.written(json.dumps(c.claims() | {"exp": c.now + 60.5}).encode()),
    "without a beginning": lambda c: c.assertion(iat=ABSENT),
    "from the future": lambda c: c.assertion(iat=c.now + 60, exp=c.now + 120),
    "not before the future": lambda c: c.assertion(nbf=c.now + 31),
    "nbf that is a text": lambda c: c.written(json.dumps(c.claims() | {"nbf": "0"}).encode()),
    "without a jti": lambda c: c.assertion(jti=ABSENT),
    "an empty jti": lambda c: c.assertion(jti=""),
    "an endless jti": lambda c: c.assertion(jti="1" * 201),
    "a jti with a blank": lambda c: c.assertion(jti="1 2"),
    "a jti that is a number": lambda c: c.written(json.dumps(c.claims() | {"jti": 1}).encode()),
    "in another's name": lambda c: c.assertion(sub=OTHER),
    "issued by another": lambda c: c.assertion(iss=OTHER),
    "without a subject": lambda c: c.assertion(sub=ABSENT),
    "by its short name": lambda c: c.assertion(iss="legacy", sub="legacy"),
    "by another's key": lambda c: c.assertion(c.other, header={"kid": c.kid()}),
    "by another's key under this name": lambda c: c.assertion(c.other),
    "by a key that nobody registered": lambda c: c.assertion(KeyPair.generate("ES256")),
    "by a service of another domain": lambda c: c.assertion(owner="other.internal/legacy"),
    "by the registry's name": lambda c: c.assertion(owner=REGISTRY),
    "a kid that is none": lambda c: c.assertion(header={"kid": "key-1"}),
    "no kid": lambda c: c.written(kid=ABSENT),
    "no typ": lambda c: c.written(typ=ABSENT),
    "another typ": lambda c: c.assertion(header={"typ": "at+jwt"}),
    "a typ in small letters": lambda c: c.assertion(header={"typ": "jwt"}),
    "an embedded key": lambda c: c.assertion(header={"jwk": dict(c.key.public.jwk)}),
    "a key's URL": lambda c: c.assertion(header={"jku": "https://evil.example/jwks"}),
    "critical members": lambda c: c.written(crit=["exp"], exp=1),
    "unsigned": lambda c: c.written(alg="none").rpartition(".")[0] + ".",
    "another algorithm": lambda c: c.written(alg="RS256"),
    "an algorithm that nobody may use": lambda c: c.written(alg="ES512"),
    "signed with the public key": signed_with_the_public_key,
    "altered": lambda c: c.assertion()[:-8] + "AAAAAAAA",
    "padded": lambda c: c.assertion() + "=",
    "a member twice": lambda c: c.written(json.dumps(c.claims()).encode()[:-1] + b', "sub": "%s"}' % LEGACY.encode()),
    "no object": lambda c: c.written(b"[]"),
    "larger than a token": lambda c: c.assertion(more="x" * jose.MAX_TOKEN),
    "a request token": lambda c: c.request_token(),
    "a proof of possession": lambda c: c.registry.proof(c.key, "legacy"),
    "an event token": lambda c: c.exchanged()["access_token"],
    "a user's token": lambda c: c.user(),
    "a key statement": lambda c: c.registry.got(f"/v1/services/legacy/keys/{c.key.public.thumbprint}.jwt"),
}


def test_whatever_is_wrong_with_an_assertion_the_answer_is_the_same(client: Client) -> None:
    answers = {name: client.post(client.form() | {"client_assertion": make(client)}) for name, make in BAD.items()}
    said = {name: (answer.status_code, answer.text) for name, answer in answers.items()}
    assert said == dict.fromkeys(BAD, (401, answers["nothing"].text))
    assert answers["nothing"].get_json()["error"] == "invalid_client"
    assert {answer.headers["WWW-Authenticate"] for answer in answers.values()} == {'Bearer error="invalid_client"'}


def test_an_assertion_of_no_known_type_is_none(client: Client) -> None:
    for kind in (ABSENT, "", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"):
        assert client.error(client.form(client_assertion_type=kind)) == REFUSED


def test_a_retired_and_a_revoked_key_prove_nothing(client: Client) -> None:
    early = client.assertion(), client.assertion(client.other, OTHER)
    assert client.registry.end(client.key, "legacy", "retired").status_code == 204
    assert client.registry.operator_ends(client.other, "other").status_code == 204
    for assertion in (*early, client.assertion(), client.assertion(client.other, OTHER)):
        assert client.error(client.form(client_assertion=assertion)) == REFUSED, "also where it was signed before"


def test_a_key_proves_nothing_once_it_is_past_its_end(client: Client) -> None:
    client.clock.forward(client.registry.settings.limits.key_lifetime - 1)
    assert client.exchanged()["scope"] == SCOPE
    early = client.assertion()
    client.clock.forward(1)
    assert client.error(client.form(client_assertion=early)) == REFUSED
    assert client.error(client.form()) == REFUSED


# ---- once, and here only


def test_an_assertion_is_good_once(client: Client) -> None:
    assertion = client.assertion()
    assert client.exchanged(client_assertion=assertion)
    assert client.error(client.form(client_assertion=assertion)) == REFUSED
    node = client.registry.node()
    client.registry = node
    assert client.error(client.form(client_assertion=assertion)) == REFUSED, "nor at another node"
    node.close()


def test_of_ten_at_once_with_one_assertion_one_is_let_in(client: Client) -> None:
    form = client.form()
    with ThreadPoolExecutor(10) as pool:
        statuses = sorted(pool.map(lambda _: client.post(form).status_code, range(10)))
    assert statuses == [200] + [401] * 9


def test_a_jti_counts_by_client_and_only_once_the_assertion_proved_itself(client: Client) -> None:
    forged = client.assertion(client.other, header={"kid": client.kid()}, jti="1")
    assert client.error(client.form(client_assertion=forged)) == REFUSED
    assert client.error(client.form(client_assertion=client.assertion(jti="1"), client_id="other")) == REFUSED
    others = client.assertion(client.other, OTHER, jti="1")
    assert client.error(client.form(client_assertion=others)) == (400, "invalid_target")
    assert client.exchanged(client_assertion=client.assertion(jti="1"))["scope"] == SCOPE


@pytest.mark.parametrize("typ", [TYP, "JWT"])
def test_an_assertion_opens_nothing_else(client: Client, trust: TrustStore, clock: Clock, typ: str) -> None:
    assertion = client.assertion(header={"typ": typ})
    verifier = Verifier(trust, audience="registry", allow={"*": ()}, clock=clock)
    with pytest.raises(WrongType):
        verifier.verify(assertion, method="GET", target="/")
    allow = {"legacy": {SCOPE}, "registry": {SCOPE}}
    consumers = EventVerifier(trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=7), clock=clock)
    with pytest.raises(WrongType):
        consumers.verify(PAYLOAD, bearer(assertion), topic="OrderCreated")
    assert client.exchanged(client_assertion=assertion), "after all that"


@pytest.mark.parametrize("typ", [TYP, "JWT"])
def test_an_assertion_moves_no_key_at_the_registry(client: Client, typ: str) -> None:
    registry, new = client.registry, KeyPair.generate("ES256")
    assertion = client.assertion(header={"typ": typ})
    proof = registry.proof(new, "legacy")
    own = f"/v1/services/legacy/keys/{client.key.public.thumbprint}?reason=retired"
    answers = [
        registry.post_key("legacy", {"proof": proof}, bearer(assertion)),
        registry.post_key("legacy", {"proof": assertion}),
        registry.post_key("legacy", {"proof": proof, "oidc": assertion}),
        registry.client.delete(own, headers=bearer(assertion)),
        registry.client.get("/v1/services", headers=bearer(assertion)),
        registry.client.put("/v1/domain", json={}, headers=bearer(assertion)),
    ]
    assert {answer.status_code for answer in answers} == {401}, [answer.data for answer in answers]
    assert make_kid(LEGACY, new.public.thumbprint) not in {key.kid for key in registry.key_set("legacy").keys}
