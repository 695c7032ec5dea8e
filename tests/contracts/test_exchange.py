"""Token exchange, on both databases: what is granted, and each refusal as RFC 6749 names it."""

import base64
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

import jsonschema_rs
import pytest
from sqlalchemy import update

from peerseal import EventVerifier, TrustStore
from peerseal.errors import CallerNotAllowed, InsufficientScope, PeersealError, WrongPayload
from peerseal.protocol.encoding import canonical_json
from registry.domain.errors import StorageUnavailable
from registry.domain.exchange import JWT
from registry.limits import Limits
from registry.services.recovery.verify import verify
from registry.services.setup.ceremony import SETTLED_AFTER, Ceremony, Rolled, signed, written
from registry.storage.tables import domain_settings
from registry.storage.unit import Store
from registry.web.metrics import PROCESS
from registry.web.routes.openapi import document
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of
from tests.registry.legacy import (
    ABSENT,
    AUDIENCE,
    LEGACY,
    OTHER,
    PAYLOAD,
    REGISTRY,
    SCOPE,
    Client,
    assert_all_refused,
    set_domain,
)
from tests.support.issuer import JWKS, Issuer, private_ca, running_issuer


def consumers(trust: TrustStore, clock: Clock, **options: Any) -> EventVerifier:
    allow = options.pop("allow", {"legacy": {SCOPE}, "registry": {SCOPE}})
    return EventVerifier(trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=7), clock=clock, **options)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# ---- what is granted


def test_the_token_is_an_event_of_the_client_for_the_user(client: Client, trust: TrustStore, clock: Clock) -> None:
    answer = client.post(client.form(subject_token=client.user(jti="u-1")))
    assert answer.status_code == 200
    assert jsonschema_rs.is_valid(document()["components"]["schemas"]["Exchanged"], answer.get_json())
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
    assert event.authentication == {"iss": client.issuer.url, "jti": "u-1"}
    assert (event.claims["iss"], event.claims["act"]) == (REGISTRY, {"sub": LEGACY})
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


def test_unknown_parameters_are_ignored_and_empty_ones_count_as_missing(client: Client) -> None:
    assert client.exchanged(display="page", client_id="legacy", actor_token="")["scope"] == SCOPE
    assert client.exchanged(client_id=LEGACY, requested_token_type=JWT, subject_token_type=JWT)["scope"] == SCOPE


# ---- what is refused

Form = Callable[[Client], Any]
BROKEN, GRANT, SCOPED, TARGET = "invalid_request", "invalid_grant", "invalid_scope", "invalid_target"
_TYPES = "urn:ietf:params:oauth:token-type"

REFUSED: Mapping[str, tuple[str, Form]] = {
    "no grant_type": (BROKEN, lambda c: c.form(grant_type=ABSENT)),
    "another grant": ("unsupported_grant_type", lambda c: c.form(grant_type="client_credentials")),
    "no subject_token": (BROKEN, lambda c: c.form() | {"subject_token": ""}),
    "no subject_token_type": (BROKEN, lambda c: c.form(subject_token_type=ABSENT)),
    "a SAML subject": (BROKEN, lambda c: c.form(subject_token_type=f"{_TYPES}:saml2")),
    "a refresh token wanted": (BROKEN, lambda c: c.form(requested_token_type=f"{_TYPES}:refresh_token")),
    "an actor token": (BROKEN, lambda c: c.form(actor_token="x")),
    "an actor token's type": (BROKEN, lambda c: c.form(actor_token_type=JWT)),
    "no transaction_id": (BROKEN, lambda c: c.form(transaction_id=ABSENT)),
    "no event_id": (BROKEN, lambda c: c.form(event_id=ABSENT)),
    "an event_id with a newline": (BROKEN, lambda c: c.form(event_id="e\n1")),
    "an endless transaction_id": (BROKEN, lambda c: c.form(transaction_id="t" * 201)),
    "a hash that is none": (BROKEN, lambda c: c.form(event_payload_hash="00")),
    "a hash in capitals": (BROKEN, lambda c: c.form(event_payload_hash="AB" * 32)),
    "a topic that is none": (BROKEN, lambda c: c.form(topic="a b")),
    "a parameter twice": (BROKEN, lambda c: urlencode(c.form()) + f"&event_id={SCOPE}"),
    "two scopes as two": (BROKEN, lambda c: urlencode(c.form()) + "&scope=x"),
    "two audiences": (BROKEN, lambda c: urlencode(c.form()) + "&audience=x"),
    "JSON": (BROKEN, lambda c: "{}"),
    "nothing": (BROKEN, lambda c: ""),
    "no UTF-8": (BROKEN, lambda c: urlencode(c.form()) + "&x=%ff"),
    "hundreds of parameters": (BROKEN, lambda c: urlencode(c.form()) + "".join(f"&x{n}=1" for n in range(200))),
    "no audience": (BROKEN, lambda c: c.form(audience=ABSENT)),
    "no scope": (SCOPED, lambda c: c.form(scope=ABSENT)),
    "two scopes": (SCOPED, lambda c: c.form(scope=f"{SCOPE} trigger_refund")),
    "wider than the user's token": (SCOPED, lambda c: c.form(scope="trigger_refund")),
    "wider than the client's grant": (SCOPED, lambda c: c.form(scope="orders:read")),
    "a user's token without scopes": (SCOPED, lambda c: c.form(subject_token=c.user(scope=None))),
    "an audience of no grant": (TARGET, lambda c: c.form(audience="reports.example.com")),
    "a client without any grant": (TARGET, lambda c: c.form(client_assertion=c.assertion(c.other, OTHER))),
    "a service as audience": (TARGET, lambda c: c.form(audience=f"{DOMAIN}/callee")),
    "a resource": (TARGET, lambda c: c.form(resource="https://api.example.com")),
    "a subject token that is none": (GRANT, lambda c: c.form(subject_token="rubbish")),
    "an expired user": (GRANT, lambda c: c.form(subject_token=c.user(exp=c.now - 60))),
    "a user from the future": (GRANT, lambda c: c.form(subject_token=c.user(iat=c.now + 60, exp=c.now + 120))),
    "another audience's user": (GRANT, lambda c: c.form(subject_token=c.user(audience="x"))),
    "another issuer's user": (GRANT, lambda c: c.form(subject_token=c.user(iss="https://evil.example"))),
    "an altered user": (GRANT, lambda c: c.form(subject_token=c.user()[:-8] + "AAAAAAAA")),
    "a request token as user": (GRANT, lambda c: c.form(subject_token=c.request_token())),
    "an assertion as user": (GRANT, lambda c: c.form(subject_token=c.assertion())),
    "an event token as user": (GRANT, lambda c: c.form(subject_token=c.exchanged()["access_token"])),
    "a client_id of another": ("invalid_client", lambda c: c.form(client_id="other")),
    "a client_id that is none": ("invalid_client", lambda c: c.form(client_id="evil client")),
}


def test_each_refusal_has_the_rfcs_code_and_echoes_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert_all_refused(client, REFUSED, ("eyJ", "rubbish", "evil"), caplog)


def test_the_log_says_who_exchanged_and_no_token_and_no_user(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    user = "ada.lovelace"  # so long that no id in the log has it by chance
    client.exchanged(subject_token=client.issuer.token(user, "edge", now=client.clock(), scope=SCOPE))
    assert f"exchanged client={LEGACY} audience={AUDIENCE} scope={SCOPE}" in caplog.text
    assert "eyJ" not in caplog.text
    assert user not in caplog.text


def test_what_is_refused_is_counted_by_its_code(client: Client) -> None:
    def counted() -> dict[str, float]:
        codes = ("invalid_client", BROKEN)
        return {code: PROCESS.get_sample_value("registry_refusals_total", {"code": code}) or 0.0 for code in codes}

    before = counted()
    client.exchanged()
    client.post(client.form(client_assertion="rubbish"))
    client.post("")
    assert counted() == {code: count + 1 for code, count in before.items()}


def test_it_is_off_until_an_operator_says_who_may(client: Client) -> None:
    set_domain(client.registry, None, issuer=client.issuer.url)
    for answer in (client.post(client.form()), client.post("{}", **{"Content-Type": "application/json"})):
        assert (answer.status_code, answer.get_json()["code"]) == (404, "exchange_off")
        assert answer.content_type == "application/problem+json"


def test_a_grant_that_an_operator_takes_back_is_gone_at_once(client: Client) -> None:
    assert client.exchanged()["scope"] == SCOPE
    set_domain(client.registry, {"other": {AUDIENCE: [SCOPE]}}, issuer=client.issuer.url)
    assert client.error(client.form()) == (400, TARGET)
    set_domain(client.registry, {"legacy": {AUDIENCE: [SCOPE]}}, issuer="https://login.example.com")
    assert client.error(client.form()) == (400, GRANT), "nor is its issuer believed"


def test_a_basic_password_is_no_way_in(client: Client) -> None:
    basic = {"Authorization": "Basic " + base64.b64encode(b"legacy:secret").decode()}
    assert client.error(client.form(client_assertion_type=ABSENT), **basic) == (401, "invalid_client")
    assert client.error(client.form(), **basic) == (400, BROKEN), "two ways at once"


def test_what_the_users_token_says_must_fit_into_an_event(client: Client) -> None:
    named = "https://login.example.com/" + "x" * 470
    keys = client.issuer.url + JWKS
    set_domain(client.registry, {"legacy": {AUDIENCE: [SCOPE]}}, issuer=named, jwks_url=keys)
    assert client.exchanged(subject_token=client.user(iss=named))
    assert client.error(client.form(subject_token=client.user(iss=named, jti="\u2603" * 200))) == (400, GRANT)
    wordy = {"event_id": "e" * 200, "transaction_id": "t" * 200, "topic": "t" * 249}
    subject = client.user(iss=named, sub="\x01" * 512, jti="\u2603" * 150)
    assert client.error(client.form(subject_token=subject, **wordy)) == (400, GRANT)


def test_an_issuer_that_cannot_be_asked_is_no_verdict(client: Client) -> None:
    form = client.form()
    client.issuer.down = True
    answer = client.post(form)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "trust_unavailable")
    assert "Retry-After" in answer.headers


def test_a_database_that_cannot_be_had_is_no_verdict(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> NoReturn:
        raise StorageUnavailable("down")

    form = client.form()
    for way in ("read", "look", "write"):
        with monkeypatch.context() as broken:
            broken.setattr(Store, way, down)
            answer = client.post(form)
        assert (answer.status_code, answer.headers["Retry-After"].isdigit()) == (503, True), way
    assert client.post(form).status_code == 200, "the assertion was not spent"


def test_an_address_that_is_refused_too_often_has_to_wait(client: Client) -> None:
    strict = client.registry.node(limits=Limits(refusals_per_minute=2))
    client.registry = strict
    assert [client.post("").status_code for _ in range(3)] == [400, 400, 429]
    assert client.post(client.form()).status_code == 429
    strict.close()


# ---- derived scopes

GRANT_OF_LEGACY = {"legacy": {AUDIENCE: [SCOPE, "trigger_refund"], "reports.example.com": ["orders:read"]}}
DERIVED = {"minter": "legacy", "from": "orders:write", "to": [SCOPE, "trigger_shipping"]}
LOGIN = "openid profile orders:write"


def derive(client: Client, *derived_scopes: Any, **issuer: Any) -> None:
    """Set these derivations with the grants of ``legacy``; ``other`` is granted a scope, too."""
    exchange = {**GRANT_OF_LEGACY, "other": {AUDIENCE: [SCOPE]}}
    issuer = issuer or {"issuer": client.issuer.url}
    set_domain(client.registry, exchange, derived_scopes=derived_scopes or [DERIVED], **issuer)


def test_a_login_token_is_exchanged_for_an_event_of_the_derived_scope(
    client: Client, trust: TrustStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    derive(client)
    caplog.set_level(logging.INFO)
    said = client.exchanged(subject_token=client.user(scope=LOGIN, jti="u-1"))
    assert said["scope"] == SCOPE
    event = consumers(trust, clock).verify(PAYLOAD, bearer(said["access_token"]), topic="OrderCreated")
    assert (event.issuer, event.user, event.scope) == (LEGACY, "ada", SCOPE)
    assert event.authentication == {"iss": client.issuer.url, "jti": "u-1", "derived_from": "orders:write"}
    assert f"exchanged client={LEGACY} audience={AUDIENCE} scope={SCOPE} derived_from=orders:write" in caplog.text
    own = consumers(trust, clock).verify(PAYLOAD, bearer(client.exchanged()["access_token"]), topic="OrderCreated")
    assert "derived_from" not in own.authentication, "the user's own scope is derived from nothing"


NOT_DERIVED: Mapping[str, Form] = {
    "of a user without the source": lambda c: c.form(subject_token=c.user(scope="openid profile")),
    "of a user without any scope": lambda c: c.form(subject_token=c.user(scope=None)),
    "granted and not derived": lambda c: c.form(subject_token=c.user(scope=LOGIN), scope="trigger_refund"),
    "derived and not granted": lambda c: c.form(subject_token=c.user(scope=LOGIN), scope="trigger_shipping"),
    "granted for another audience": lambda c: c.form(
        subject_token=c.user(scope=LOGIN), scope=SCOPE, audience="reports.example.com"
    ),
    "the source itself, which is not granted": lambda c: c.form(
        subject_token=c.user(scope=LOGIN), scope="orders:write"
    ),
    "derived for another client": lambda c: c.form(
        subject_token=c.user(scope=LOGIN), client_assertion=c.assertion(c.other, OTHER)
    ),
    "source and derived scope": lambda c: c.form(subject_token=c.user(scope=LOGIN), scope=f"orders:write {SCOPE}"),
    "two derived scopes": lambda c: c.form(subject_token=c.user(scope=LOGIN), scope=f"{SCOPE} trigger_shipping"),
}


@pytest.mark.parametrize("form", NOT_DERIVED.values(), ids=NOT_DERIVED)
def test_the_exchange_derives_nothing_wider(client: Client, form: Form) -> None:
    derive(client)
    assert client.error(form(client)) == (400, SCOPED)


def test_a_derivation_that_an_operator_takes_back_is_gone_at_once_also_from_tokens_on_their_way(
    client: Client, trust: TrustStore, clock: Clock
) -> None:
    derive(client)
    token = client.exchanged(subject_token=client.user(scope=LOGIN))["access_token"]
    assert consumers(trust, clock).verify(PAYLOAD, bearer(token), topic="OrderCreated").scope == SCOPE
    derive(client, {**DERIVED, "from": "orders:refund"})
    trust.refresh()
    assert client.error(client.form(subject_token=client.user(scope=LOGIN))) == (400, SCOPED)
    with pytest.raises(InsufficientScope):
        consumers(trust, clock).verify(PAYLOAD, bearer(token), topic="OrderCreated")


def test_an_issuers_keys_in_the_settings_are_fetched_from_nowhere(client: Client) -> None:
    named = "https://login.example.com"
    derive(client, DERIVED, issuer=named, jwks=client.issuer.jwks)
    form = client.form(subject_token=client.user(iss=named, scope=LOGIN))
    assert client.post(form).status_code == 200
    stranger = Issuer(named).token("ada", "edge", now=client.clock(), scope=LOGIN)
    assert client.error(client.form(subject_token=stranger)) == (400, GRANT)
    assert client.issuer.fetched == {}


def test_an_issuers_https_is_checked_with_its_certificates_in_the_settings(client: Client, tmp_path: Path) -> None:
    with running_issuer(tls=private_ca(tmp_path)) as issuer:
        client.issuer = issuer
        derive(client)
        assert client.post(client.form()).status_code == 503
        derive(client, DERIVED, issuer=issuer.url, ca=(tmp_path / "ca.pem").read_text())
        assert client.exchanged()["scope"] == SCOPE


# ---- what operators lay down


NONSENSE: tuple[Any, ...] = (
    {"other.domain/x": {AUDIENCE: [SCOPE]}},
    {"legacy": {AUDIENCE: [SCOPE]}, LEGACY: {AUDIENCE: [SCOPE]}},
    {"legacy": {"a/b": [SCOPE]}},
    {"legacy": {AUDIENCE: SCOPE}},
    {"legacy": {AUDIENCE: [SCOPE, SCOPE]}},
    {"legacy": {AUDIENCE: ["two scopes"]}},
    {"legacy": {}},
    {"legacy": []},
    {"Legacy": {AUDIENCE: [SCOPE]}},
    "legacy",
    None,
)


def test_settings_that_grant_nonsense_are_refused(registry: Driver) -> None:
    for exchange in NONSENSE:
        body = {"minters": [], "issuers": [], "exchange": exchange}
        answer = registry.client.put("/v1/domain", json=body, headers={**registry.operator, "If-Match": '"0"'})
        assert answer.status_code == 400, exchange


def test_who_may_exchange_stands_in_the_signed_domain_document_and_the_ledger(
    registry: Driver, client: Client, trust: TrustStore
) -> None:
    assert trust.settings().exchange[LEGACY][AUDIENCE] == {SCOPE, "trigger_refund"}
    granted = {LEGACY: {AUDIENCE: [SCOPE, "trigger_refund"]}}
    assert registry.client.get("/v1/domain", headers=registry.operator).get_json()["exchange"] == granted
    assert entries_of(registry.store)[-1].data["settings"]["exchange"] == granted
    audited = registry.client.get("/v1/audit", headers=registry.operator).get_json()["audit"]
    assert audited[-1]["act"] == "domain_set"


def test_a_grant_that_was_written_into_the_database_gives_nothing_and_is_named(client: Client) -> None:
    registry = client.registry
    assert verify(registry.store, registry.settings.limits, clock=registry.clock).whole
    body = entries_of(registry.store)[-1].data["settings"] | {"exchange": {OTHER: {AUDIENCE: [SCOPE]}}}
    with registry.store.write() as connection:
        connection.execute(update(domain_settings).values(body=canonical_json(body).decode()))
    answer = client.post(client.form(client_assertion=client.assertion(client.other, OTHER)))
    assert (answer.status_code, answer.get_json()["code"]) == (503, "ledger_contradicted")
    found = verify(registry.store, registry.settings.limits, clock=registry.clock).differences
    assert [(difference.table, difference.column) for difference in found] == [("domain_settings", "body")]


def test_the_lifetime_is_the_operators_and_a_year_at_most(client: Client, trust: TrustStore, clock: Clock) -> None:
    year = 365 * 24 * 3600
    client.registry = client.registry.node(limits=Limits(exchanged_token_lifetime=year))
    said = client.exchanged()
    assert said["expires_in"] == year
    clock.forward(6 * 24 * 3600)
    trust.refresh()
    event = consumers(trust, clock).verify(PAYLOAD, bearer(said["access_token"]), topic="OrderCreated")
    assert event.expires_at - event.issued_at == year
    client.registry.close()
