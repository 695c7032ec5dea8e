"""Token exchange, on both databases: what is granted, and each refusal as RFC 6749 names it."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from werkzeug.test import TestResponse

from peerseal import EventVerifier, Identity, TrustLimits, TrustStore
from peerseal.errors import CallerNotAllowed, PeersealError, WrongPayload, WrongType
from peerseal.peers.verify import Verifier
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.events import payload_hash
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens import new_jti
from registry.domain.exchange import ACCESS_TOKEN, ASSERTED, GRANT, JWT
from registry.services.ceremony import SETTLED_AFTER, Ceremony, Rolled, signed, written
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.registry.in_process import InProcess
from tests.support.issuer import Issuer, running_issuer

AUDIENCE, SCOPE = "jobs.example.com", "trigger_invoicing"
LEGACY, REGISTRY = f"{DOMAIN}/legacy", f"{DOMAIN}/registry"
QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)
PAYLOAD = b'{"eventID": "e-1"}'
ABSENT: Any = object()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


def set_domain(registry: Driver, issuer: Issuer, exchange: Mapping[str, Any] | None) -> None:
    body: dict[str, Any] = {"minters": [], "issuers": [{"issuer": issuer.url, "audience": "edge"}]}
    if exchange is not None:
        body["exchange"] = exchange
    etag = registry.client.get("/v1/domain", headers=registry.operator).headers["ETag"]
    answer = registry.client.put("/v1/domain", json=body, headers={**registry.operator, "If-Match": etag})
    assert answer.status_code == 200, answer.data


class Client:
    """The service ``legacy``, a program with nothing but a JWT library; its key is registered."""

    def __init__(self, registry: Driver, issuer: Issuer, clock: Clock) -> None:
        self.registry, self.issuer, self.clock = registry, issuer, clock
        self.key = registry.joined(KeyPair.generate("ES256"), "legacy")
        self.other = registry.joined(KeyPair.generate("ES256"), "other")
        set_domain(registry, issuer, {"legacy": {AUDIENCE: [SCOPE, "trigger_refund"]}})

    def assertion(self, key: KeyPair | None = None, owner: str = LEGACY, **changes: Any) -> str:
        """By PyJWT. ``changes`` alter claims, or, under ``header``, members of the header."""
        key, now = key or self.key, int(self.clock())
        header = {"typ": "JWT", "kid": make_kid(owner, key.public.thumbprint), **changes.pop("header", {})}
        claims = {"iss": owner, "sub": owner, "aud": REGISTRY, "iat": now, "exp": now + 60, "jti": new_jti()}
        claims = {name: value for name, value in (claims | changes).items() if value is not ABSENT}
        header = {name: value for name, value in header.items() if value is not ABSENT}
        return jwt.encode(claims, key.to_pem(), "ES256", header)

    def user(self, **changes: Any) -> str:
        """A user's token, with more scopes than the client is granted."""
        scope = changes.pop("scope", f"{SCOPE} orders:read")
        return self.issuer.token("ada", changes.pop("audience", "edge"), now=self.clock(), scope=scope, **changes)

    def form(self, **changes: Any) -> dict[str, str]:
        """A good form, changed."""
        form = {
            "grant_type": GRANT,
            "client_assertion_type": ASSERTED,
            "client_assertion": changes.pop("client_assertion", None) or self.assertion(),
            "subject_token": changes.pop("subject_token", None) or self.user(),
            "subject_token_type": ACCESS_TOKEN,
            "scope": SCOPE,
            "audience": AUDIENCE,
            "transaction_id": "t-1",
            "event_id": "e-1",
            "event_payload_hash": payload_hash(PAYLOAD),
            "topic": "OrderCreated",
        }
        return {name: value for name, value in (form | changes).items() if value is not ABSENT}

    def post(self, form: Mapping[str, str] | str, **headers: str) -> TestResponse:
        body = form if isinstance(form, str) else urlencode(form)
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.registry.client.post("/oauth2/token", data=body, headers={**kind, **headers})

    def exchanged(self, **changes: Any) -> dict[str, Any]:
        answer = self.post(self.form(**changes))
        assert answer.status_code == 200, answer.data
        found: dict[str, Any] = answer.get_json()
        return found


@pytest.fixture
def client(registry: Driver, issuer: Issuer, clock: Clock) -> Client:
    return Client(registry, issuer, clock)


@pytest.fixture
def trust(registry: Driver, clock: Clock) -> Iterator[TrustStore]:
    store = TrustStore("http://registry.test", pin=registry.pin, limits=QUIET, clock=clock, fetcher=InProcess(registry))
    yield store
    store.stop()


def consumers(trust: TrustStore, clock: Clock, **options: Any) -> EventVerifier:
    allow = options.pop("allow", {"legacy": {SCOPE}, "registry": {SCOPE}})
    return EventVerifier(trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=7), clock=clock, **options)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# ---- what is granted


def test_the_token_is_an_event_of_the_client_for_the_user(client: Client, trust: TrustStore, clock: Clock) -> None:
    answer = client.post(client.form())
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    said = answer.get_json()
    assert {name: said[name] for name in said if name != "access_token"} == {
        "issued_token_type": JWT,
        "token_type": "Bearer",
        "expires_in": 7 * 24 * 3600,
        "scope": SCOPE,
    }
    event = consumers(trust, clock).verify(PAYLOAD, bearer(said["access_token"]), topic="OrderCreated")
    assert (event.issuer, event.user, event.id, event.transaction_id) == (LEGACY, "ada", "e-1", "t-1")
    assert event.authentication["iss"] == client.issuer.url
    with pytest.raises(WrongPayload):
        consumers(trust, clock).verify(b"{}", bearer(said["access_token"]), topic="OrderCreated")


def test_topic_and_payload_may_be_left_out_and_then_bind_nothing(
    client: Client, trust: TrustStore, clock: Clock
) -> None:
    token = client.exchanged(topic=ABSENT, event_payload_hash=ABSENT)["access_token"]
    with pytest.raises(WrongPayload):
        consumers(trust, clock).verify(PAYLOAD, bearer(token), topic="OrderCreated")
    careless = consumers(trust, clock, unsafe_unbound_payload=True)
    assert careless.verify(PAYLOAD, bearer(token), topic="Any").id == "e-1"


def test_it_counts_only_where_the_consumer_names_the_registry(client: Client, trust: TrustStore, clock: Clock) -> None:
    token = client.exchanged()["access_token"]
    for allow in ({"legacy": {SCOPE}}, {"registry": {SCOPE}}, {"*": {SCOPE}}):
        with pytest.raises(CallerNotAllowed):
            consumers(trust, clock, allow=allow).verify(PAYLOAD, bearer(token), topic="OrderCreated")


def test_it_ends_when_the_root_drops_the_key_that_signed_it(
    registry: Driver, client: Client, trust: TrustStore, clock: Clock
) -> None:
    token = client.exchanged()["access_token"]
    ceremony = Ceremony(registry.settings, registry.store, clock)

    def roll(*rolled: Rolled, drop_past: bool = False) -> None:
        request = written(ceremony.requested(rolled, drop_past=drop_past))
        ceremony.put_in_place(ceremony.publish(signed(request, registry.settings.root_key_file)))

    roll(Rolled.SIGNING)
    clock.forward(SETTLED_AFTER)
    trust.refresh()
    assert consumers(trust, clock).verify(PAYLOAD, bearer(token), topic="OrderCreated").id == "e-1"
    roll(drop_past=True)
    clock.forward(60)
    trust.refresh()
    with pytest.raises(PeersealError) as refused:
        consumers(trust, clock).verify(PAYLOAD, bearer(token), topic="OrderCreated")
    assert refused.value.code == "unknown_key"


def test_our_own_assertion_is_as_good_as_a_librarys(registry: Driver, client: Client, clock: Clock) -> None:
    identity = Identity(
        "legacy",
        registry="http://registry.test",
        join_token=registry.join_token("legacy").encode(),
        limits=QUIET,
        alg="ES256",
        clock=clock,
        fetcher=InProcess(registry),
    ).start()
    assert client.exchanged(client_assertion=identity.sign_assertion())["scope"] == SCOPE
    identity.stop()


def test_parameters_that_nobody_knows_are_let_be_and_empty_ones_are_none(client: Client) -> None:
    assert client.exchanged(display="page", client_id="legacy", actor_token="")["scope"] == SCOPE
    assert client.exchanged(client_id=LEGACY, requested_token_type=JWT, subject_token_type=JWT)["scope"] == SCOPE


# ---- what is refused

Form = Callable[[Client], Any]

REFUSED: Mapping[str, tuple[Form, int, str]] = {
    "no grant_type": (lambda c: c.form(grant_type=ABSENT), 400, "invalid_request"),
    "another grant": (lambda c: c.form(grant_type="client_credentials"), 400, "unsupported_grant_type"),
    "no subject_token": (lambda c: c.form() | {"subject_token": ""}, 400, "invalid_request"),
    "no subject_token_type": (lambda c: c.form(subject_token_type=ABSENT), 400, "invalid_request"),
    "a SAML subject": (
        lambda c: c.form(subject_token_type="urn:ietf:params:oauth:token-type:saml2"),
        400,
        "invalid_request",
    ),
    "a refresh token wanted": (
        lambda c: c.form(requested_token_type="urn:ietf:params:oauth:token-type:refresh_token"),
        400,
        "invalid_request",
    ),
    "an actor token": (lambda c: c.form(actor_token="x"), 400, "invalid_request"),
    "no transaction_id": (lambda c: c.form(transaction_id=ABSENT), 400, "invalid_request"),
    "no event_id": (lambda c: c.form(event_id=ABSENT), 400, "invalid_request"),
    "an event_id with a newline": (lambda c: c.form(event_id="e\n1"), 400, "invalid_request"),
    "an endless transaction_id": (lambda c: c.form(transaction_id="t" * 201), 400, "invalid_request"),
    "a hash that is none": (lambda c: c.form(event_payload_hash="00"), 400, "invalid_request"),
    "a topic that is none": (lambda c: c.form(topic="a b"), 400, "invalid_request"),
    "a parameter twice": (lambda c: urlencode(c.form()) + "&scope=x", 400, "invalid_request"),
    "no form": (lambda c: "{}", 400, "invalid_request"),
    "nothing": (lambda c: "", 400, "invalid_request"),
    "no audience": (lambda c: c.form(audience=ABSENT), 400, "invalid_request"),
    "no scope": (lambda c: c.form(scope=ABSENT), 400, "invalid_scope"),
    "two scopes": (lambda c: c.form(scope=f"{SCOPE} trigger_refund"), 400, "invalid_scope"),
    "wider than the user's token": (lambda c: c.form(scope="trigger_refund"), 400, "invalid_scope"),
    "wider than the client's grant": (lambda c: c.form(scope="orders:read"), 400, "invalid_scope"),
    "an audience of no grant": (lambda c: c.form(audience="reports.example.com"), 400, "invalid_target"),
    "a service as audience": (lambda c: c.form(audience=f"{DOMAIN}/callee"), 400, "invalid_target"),
    "a resource": (lambda c: c.form(resource="https://api.example.com"), 400, "invalid_target"),
    "a subject token that is none": (lambda c: c.form(subject_token="rubbish"), 400, "invalid_grant"),
    "an expired user": (lambda c: c.form(subject_token=c.user(exp=int(c.clock()) - 60)), 400, "invalid_grant"),
    "another audience's user": (lambda c: c.form(subject_token=c.user(audience="x")), 400, "invalid_grant"),
    "another issuer's user": (lambda c: c.form(subject_token=c.user(iss="https://evil.example")), 400, "invalid_grant"),
    "a request token as user": (
        lambda c: c.form(subject_token=c.registry.signed(c.key, "legacy", "GET", "/")["Authorization"][7:]),
        400,
        "invalid_grant",
    ),
    "no assertion": (lambda c: c.form() | {"client_assertion": ""}, 401, "invalid_client"),
    "no assertion type": (lambda c: c.form(client_assertion_type=ABSENT), 401, "invalid_client"),
    "an assertion that is none": (lambda c: c.form(client_assertion="rubbish"), 401, "invalid_client"),
    "for another audience": (lambda c: c.form(client_assertion=c.assertion(aud="x")), 401, "invalid_client"),
    "for two audiences": (lambda c: c.form(client_assertion=c.assertion(aud=[REGISTRY, "x"])), 401, "invalid_client"),
    "expired": (
        lambda c: c.form(client_assertion=c.assertion(iat=int(c.clock()) - 120, exp=int(c.clock()) - 60)),
        401,
        "invalid_client",
    ),
    "for too long": (lambda c: c.form(client_assertion=c.assertion(exp=int(c.clock()) + 301)), 401, "invalid_client"),
    "without an end": (lambda c: c.form(client_assertion=c.assertion(exp=ABSENT)), 401, "invalid_client"),
    "without a jti": (lambda c: c.form(client_assertion=c.assertion(jti=ABSENT)), 401, "invalid_client"),
    "from the future": (
        lambda c: c.form(client_assertion=c.assertion(iat=int(c.clock()) + 60, exp=int(c.clock()) + 120)),
        401,
        "invalid_client",
    ),
    "in another's name": (lambda c: c.form(client_assertion=c.assertion(sub=f"{DOMAIN}/other")), 401, "invalid_client"),
    "by another's key": (
        lambda c: c.form(
            client_assertion=c.assertion(c.other, header={"kid": make_kid(LEGACY, c.key.public.thumbprint)})
        ),
        401,
        "invalid_client",
    ),
    "by a key that nobody registered": (
        lambda c: c.form(client_assertion=c.assertion(KeyPair.generate("ES256"))),
        401,
        "invalid_client",
    ),
    "with an embedded key": (
        lambda c: c.form(client_assertion=c.assertion(header={"jwk": dict(c.key.public.jwk)})),
        401,
        "invalid_client",
    ),
    "a request token as assertion": (
        lambda c: c.form(client_assertion=c.registry.signed(c.key, "legacy", "GET", "/")["Authorization"][7:]),
        401,
        "invalid_client",
    ),
    "a proof as assertion": (
        lambda c: c.form(client_assertion=c.registry.proof(c.key, "legacy")),
        401,
        "invalid_client",
    ),
    "a client_id of another": (lambda c: c.form(client_id="other"), 401, "invalid_client"),
    "a client without any grant": (
        lambda c: c.form(client_assertion=c.assertion(c.other, f"{DOMAIN}/other")),
        400,
        "invalid_target",
    ),
}


@pytest.mark.parametrize(("form", "status", "error"), REFUSED.values(), ids=REFUSED)
def test_each_refusal_has_the_rfcs_code_and_echoes_nothing(client: Client, form: Form, status: int, error: str) -> None:
    asked = form(client)
    answer = client.post(asked)
    assert (answer.status_code, answer.get_json()["error"]) == (status, error), answer.data
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(answer.get_json()) == {"error", "error_description"}
    if status == 401:
        assert "WWW-Authenticate" in answer.headers
    for secret in ("ey", "rubbish", "evil"):
        assert secret not in answer.get_json()["error_description"]


def test_an_assertion_is_good_once(client: Client) -> None:
    assertion = client.assertion()
    assert client.exchanged(client_assertion=assertion)
    answer = client.post(client.form(client_assertion=assertion))
    assert (answer.status_code, answer.get_json()["error"]) == (401, "invalid_client")


def test_of_ten_at_once_with_one_assertion_one_is_let_in(client: Client) -> None:
    form = client.form()
    with ThreadPoolExecutor(10) as pool:
        statuses = sorted(
            pool.map(
                lambda _: client.registry.app.test_client().post("/oauth2/token", data=form).status_code, range(10)
            )
        )
    assert statuses == [200] + [401] * 9


def test_an_assertion_opens_nothing_else(client: Client, trust: TrustStore, clock: Clock) -> None:
    verifier = Verifier(trust, audience="registry", allow={"*": ()}, clock=clock)
    with pytest.raises(PeersealError):
        verifier.verify(client.assertion(), method="GET", target="/")
    with pytest.raises(WrongType):
        consumers(trust, clock).verify(PAYLOAD, bearer(client.assertion()), topic="OrderCreated")


def test_a_retired_and_a_revoked_key_prove_nothing(client: Client) -> None:
    assert client.registry.end(client.key, "legacy", "retired").status_code == 204
    client.clock.forward(60)
    assert client.post(client.form()).get_json()["error"] == "invalid_client"
    assert client.registry.operator_ends(client.other, "other").status_code == 204
    answer = client.post(client.form(client_assertion=client.assertion(client.other, f"{DOMAIN}/other")))
    assert answer.get_json()["error"] == "invalid_client"


def test_it_is_off_until_an_operator_says_who_may(client: Client) -> None:
    set_domain(client.registry, client.issuer, None)
    answer = client.post(client.form())
    assert (answer.status_code, answer.get_json()["code"]) == (404, "exchange_off")


def test_a_basic_password_is_no_way_in(client: Client) -> None:
    basic = base64.b64encode(b"legacy:secret").decode()
    answer = client.post(client.form(), Authorization=f"Basic {basic}")
    assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_request")


def test_an_issuer_that_cannot_be_asked_is_no_verdict(client: Client) -> None:
    form = client.form()
    client.issuer.down = True
    answer = client.post(form)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "trust_unavailable")
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    "exchange",
    [
        {"other.domain/x": {AUDIENCE: [SCOPE]}},
        {"legacy": {AUDIENCE: [SCOPE]}, LEGACY: {AUDIENCE: [SCOPE]}},
        {"legacy": {"a/b": [SCOPE]}},
        {"legacy": {AUDIENCE: SCOPE}},
        {"legacy": []},
        "legacy",
    ],
    ids=str,
)
def test_settings_that_grant_nonsense_are_refused(registry: Driver, exchange: Any) -> None:
    body = {"minters": [], "issuers": [], "exchange": exchange}
    answer = registry.client.put("/v1/domain", json=body, headers={**registry.operator, "If-Match": '"0"'})
    assert answer.status_code == 400, answer.data


def test_who_may_exchange_stands_in_the_signed_domain_document_and_the_ledger(
    registry: Driver, client: Client, trust: TrustStore
) -> None:
    assert trust.settings().exchange[LEGACY][AUDIENCE] == {SCOPE, "trigger_refund"}
    entry = strict_json_object(json.dumps(registry.client.get("/v1/domain", headers=registry.operator).get_json()))
    assert entry["exchange"] == {LEGACY: {AUDIENCE: ["trigger_invoicing", "trigger_refund"]}}
