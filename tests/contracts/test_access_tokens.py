"""Client credentials (RFC 6749 section 4.4), on both databases: which access tokens are issued, and each refusal."""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import jsonschema_rs
import jwt
import pytest
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet
from sqlalchemy import update

from peerseal import EventVerifier, TrustStore, UserVerifier, Verifier
from peerseal.errors import TokenError
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from registry.domain.errors import BadRequest
from registry.domain.policy import settings_from
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.recovery.verify import verify
from registry.services.setup.ceremony import SETTLED_AFTER, Ceremony, Rolled, signed, written
from registry.storage.tables import domain_settings
from registry.web.routes.openapi import document
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of, tables_of
from tests.registry.legacy import (
    ABSENT,
    AUDIENCE,
    KAFKA,
    LEGACY,
    OTHER,
    PAYLOAD,
    REGISTRY,
    SCOPE,
    Client,
    assert_all_refused,
    set_domain,
)

BROKER = {"audience": KAFKA, "services": ["legacy"], "scopes": ["topics:write", "topics:read"], "lifetime": 120}
STORE = {"audience": "https://store.acme.internal/v1", "services": ["other"], "scopes": ["put"]}
ALL = "topics:read topics:write"


def grant(client: Client, **access_tokens: Any) -> None:
    """Set these resource servers, with an exchange."""
    exchange = {"legacy": {AUDIENCE: [SCOPE]}}
    set_domain(client.registry, exchange, access_tokens=access_tokens, issuer=client.issuer.url)


@pytest.fixture
def granted(client: Client) -> Client:
    """``legacy`` gets access tokens for a broker, ``other`` for a store."""
    grant(client, kafka=BROKER, store=STORE)
    return client


def issued(client: Client, **changes: Any) -> dict[str, Any]:
    answer = client.post(client.access_form(**changes))
    assert answer.status_code == 200, answer.data
    found: dict[str, Any] = answer.get_json()
    return found


def jwks(registry: Driver) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(registry.got("/.well-known/jwks.json"))
    return found


def by_pyjwt(registry: Driver, token: str, audience: str = KAFKA) -> dict[str, Any]:
    """As a resource server does it with PyJWT: the key by kid, of the registry's JWK Set."""
    key = jwt.PyJWKSet.from_dict(jwks(registry))[jwt.get_unverified_header(token)["kid"]]
    # the tests' clock stands, and the library reads its own
    options: Any = {"verify_exp": False, "verify_iat": False, "require": ["exp", "iat", "sub"]}
    found: dict[str, Any] = jwt.decode(token, key, ["ES256"], audience=audience, issuer=REGISTRY, options=options)
    return found


# ---- what is issued


def test_the_token_is_an_rfc_9068_access_token_of_the_registry_for_the_service(granted: Client) -> None:
    answer = granted.post(granted.access_form())
    said = answer.get_json()
    assert jsonschema_rs.is_valid(document()["components"]["schemas"]["AccessToken"], said)
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")
    assert {name: said[name] for name in said if name != "access_token"} == {
        "token_type": "Bearer",
        "expires_in": 120,
        "scope": ALL,
    }
    token = said["access_token"]
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    claims = by_pyjwt(granted.registry, token)
    assert len(claims.pop("jti")) == 22
    assert claims == {
        "iss": REGISTRY,
        "sub": LEGACY,
        "client_id": LEGACY,
        "aud": KAFKA,
        "scope": ALL,
        "iat": granted.now,
        "exp": granted.now + 120,
    }


def test_stock_libraries_verify_it_with_the_registrys_key_set(granted: Client) -> None:
    token = issued(granted)["access_token"]
    assert by_pyjwt(granted.registry, token)["sub"] == LEGACY
    decoded = joserfc_jwt.decode(token, KeySet.import_key_set(jwks(granted.registry)), algorithms=["ES256"])
    registry = joserfc_jwt.JWTClaimsRegistry(
        now=granted.now, iss={"essential": True, "value": REGISTRY}, aud={"essential": True, "value": KAFKA}
    )
    registry.validate(decoded.claims)
    assert decoded.header["typ"] == "at+jwt"
    with pytest.raises(jwt.InvalidAudienceError):
        by_pyjwt(granted.registry, token, audience="https://store.acme.internal/v1")


def test_each_resource_server_has_services_scopes_and_a_lifetime_of_its_own(granted: Client) -> None:
    narrow = issued(granted, scope="topics:read")
    assert (narrow["scope"], by_pyjwt(granted.registry, narrow["access_token"])["scope"]) == ("topics:read",) * 2
    assertion = granted.assertion(granted.other, OTHER)
    stored = issued(granted, client_assertion=assertion, resource=STORE["audience"], client_id="other")
    assert (stored["scope"], stored["expires_in"]) == ("put", 300)
    claims = by_pyjwt(granted.registry, stored["access_token"], audience=str(STORE["audience"]))
    assert (claims["sub"], claims["aud"]) == (OTHER, STORE["audience"])


def test_a_rolled_signing_key_signs_the_next_token_and_the_last_one_verifies_meanwhile(
    registry: Driver, granted: Client, clock: Clock
) -> None:
    last = issued(granted)["access_token"]
    ceremony = Ceremony(registry.settings, registry.store, clock)
    request = written(ceremony.requested((Rolled.SIGNING,), drop_past=False))
    ceremony.put_in_place(ceremony.publish(signed(request, registry.settings.root_key_file)))
    clock.forward(SETTLED_AFTER)
    following = issued(granted)["access_token"]
    kids = [jwt.get_unverified_header(token)["kid"] for token in (last, following)]
    assert kids[0] != kids[1]
    assert [by_pyjwt(registry, token)["sub"] for token in (last, following)] == [LEGACY, LEGACY]


def test_the_log_says_what_was_issued_and_no_token(granted: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    jti = by_pyjwt(granted.registry, issued(granted)["access_token"])["jti"]
    told = f"issued access token client={LEGACY} audience={KAFKA} scope={ALL} lifetime=120 jti={jti}"
    assert told in caplog.text
    assert "eyJ" not in caplog.text


# ---- what Peerseal itself makes of it


def test_nothing_in_peerseal_accepts_it(granted: Client, registry: Driver, trust: TrustStore, clock: Clock) -> None:
    token = issued(granted)["access_token"]
    bearer = {"authorization": f"Bearer {token}"}
    events = EventVerifier(
        trust, audience=AUDIENCE, allow={"*": {SCOPE}, "registry": {SCOPE}}, max_age=timedelta(days=1), clock=clock
    )
    calls = Verifier(trust, audience="callee", allow={"*": {"a"}, "registry": {"a"}}, clock=clock)
    refused: Mapping[str, Callable[[], Any]] = {
        "a request": lambda: calls.verify(token, method="GET", target="/"),
        "an event": lambda: events.verify(PAYLOAD, bearer, topic="OrderCreated"),
        "a user": lambda: UserVerifier(trust, clock=clock).verify(token),
    }
    for place, present in refused.items():
        with pytest.raises(TokenError) as error:
            present()
        assert error.value.code in ("wrong_type", "wrong_issuer", "malformed_token"), place
    answer = granted.registry.client.delete(
        f"/v1/services/legacy/keys/{granted.key.public.thumbprint}?reason=retired", headers=bearer
    )
    assert answer.status_code == 401
    assert granted.error(granted.access_form(client_assertion=token)) == (401, "invalid_client")
    assert granted.error(granted.form(subject_token=token)) == (400, "invalid_grant")


def test_no_other_token_of_the_registry_passes_at_the_resource_server(granted: Client) -> None:
    """Which checks signature, issuer and audience, and seldom ``typ``: audiences of events have no slash."""
    event = granted.exchanged()["access_token"]
    document = granted.registry.got("/v1/domain.jwt")
    for other in (event, document):
        with pytest.raises(jwt.InvalidTokenError):
            by_pyjwt(granted.registry, other)


# ---- what is refused

REFUSED: Mapping[str, tuple[str, Callable[[Client], Any]]] = {
    "no resource": ("invalid_request", lambda c: c.access_form(resource=ABSENT)),
    "two resources": ("invalid_request", lambda c: urlencode(c.access_form()) + "&resource=x"),
    "an unknown resource": ("invalid_target", lambda c: c.access_form(resource="https://x.acme.internal")),
    "the name in the place of the URI": ("invalid_target", lambda c: c.access_form(resource="kafka")),
    "another service's resource": ("invalid_target", lambda c: c.access_form(resource=STORE["audience"])),
    "a service without a grant": (
        "invalid_target",
        lambda c: c.access_form(client_assertion=c.assertion(c.other, OTHER)),
    ),
    "a wider scope": ("invalid_scope", lambda c: c.access_form(scope=f"{ALL} admin")),
    "a scope twice": ("invalid_scope", lambda c: c.access_form(scope="topics:read topics:read")),
    "two blanks": ("invalid_scope", lambda c: c.access_form(scope="topics:read  topics:write")),
    "no assertion": ("invalid_client", lambda c: c.access_form() | {"client_assertion": ""}),
    "rubbish": ("invalid_client", lambda c: c.access_form(client_assertion="rubbish")),
    "a SAML assertion": ("invalid_client", lambda c: c.access_form(client_assertion_type="saml2")),
    "another client_id": ("invalid_client", lambda c: c.access_form(client_id="other")),
    "another audience": ("invalid_client", lambda c: c.access_form(client_assertion=c.assertion(aud=KAFKA))),
    "a key that was never registered": (
        "invalid_client",
        lambda c: c.access_form(client_assertion=c.assertion(KeyPair.generate("ES256"))),
    ),
    "a key that says it is the registry's": (
        "invalid_client",
        lambda c: c.access_form(client_assertion=c.assertion(owner=REGISTRY)),
    ),
    "a request token": ("invalid_client", lambda c: c.access_form(client_assertion=c.request_token())),
    "a password grant": ("unsupported_grant_type", lambda c: c.access_form(grant_type="password")),
}


def test_each_refusal_has_the_rfcs_code_and_echoes_nothing(granted: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert_all_refused(granted, REFUSED, ("eyJ", "rubbish", "acme"), caplog)


def test_an_assertion_is_good_once_for_both_grants_together(granted: Client) -> None:
    assertion = granted.assertion()
    assert granted.post(granted.access_form(client_assertion=assertion)).status_code == 200
    assert granted.error(granted.access_form(client_assertion=assertion)) == (401, "invalid_client")
    assert granted.error(granted.form(client_assertion=assertion)) == (401, "invalid_client")


@pytest.mark.parametrize("reason", ["compromised", "retired"])
def test_a_key_that_ended_gets_no_further_token(granted: Client, registry: Driver, reason: str) -> None:
    assert issued(granted)
    assert registry.operator_ends(granted.key, "legacy", reason).status_code == 204
    assert granted.error(granted.access_form()) == (401, "invalid_client")


def test_each_grant_is_off_until_an_operator_turns_it_on(client: Client) -> None:
    assert client.error(client.access_form()) == (400, "unsupported_grant_type")
    set_domain(client.registry, None, access_tokens={"kafka": BROKER}, issuer=client.issuer.url)
    assert issued(client)
    assert client.error(client.form()) == (400, "unsupported_grant_type")
    set_domain(client.registry, None, issuer=client.issuer.url)
    answer = client.post(client.access_form())
    assert (answer.status_code, answer.get_json()["code"]) == (404, "exchange_off")


def test_what_an_operator_takes_back_is_refused_at_once(granted: Client) -> None:
    grant(granted, kafka={**BROKER, "services": ["other"], "scopes": ["topics:read"]})
    assert granted.error(granted.access_form()) == (400, "invalid_target")
    assertion = granted.assertion(granted.other, OTHER)
    assert granted.error(granted.access_form(client_assertion=assertion, scope="topics:write")) == (
        400,
        "invalid_scope",
    )


def test_an_address_that_is_refused_too_often_has_to_wait(granted: Client) -> None:
    granted.registry = granted.registry.node(limits=Limits(refusals_per_minute=2))
    refused = granted.access_form(resource="https://x.acme.internal", client_assertion="rubbish")
    assert [granted.post(refused).status_code for _ in range(3)] == [401, 401, 429]
    assert granted.post(granted.access_form()).status_code == 429
    granted.registry.close()


# ---- the settings


def test_they_are_laid_down_signed_entered_and_rebuilt(granted: Client, registry: Driver, clock: Clock) -> None:
    held = {
        "kafka": {"audience": KAFKA, "services": [LEGACY], "scopes": ALL.split(), "lifetime": 120},
        "store": {"audience": STORE["audience"], "services": [OTHER], "scopes": ["put"], "lifetime": 300},
    }
    document = registry.read(DomainDocument, registry.got("/v1/domain.jwt"))
    assert document.settings.to_json()["access_tokens"] == held
    assert entries_of(registry.store)[-1].data["settings"]["access_tokens"] == held
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    assert verify(registry.store, registry.settings.limits, clock=clock).whole


def test_a_grant_that_was_written_into_the_database_issues_nothing_and_is_named(
    granted: Client, registry: Driver, clock: Clock
) -> None:
    settings = entries_of(registry.store)[-1].data["settings"]
    settings["access_tokens"]["kafka"]["services"].append(OTHER)
    with registry.store.write() as connection:
        connection.execute(update(domain_settings).values(body=canonical_json(settings).decode()))
    answer = granted.post(granted.access_form(client_assertion=granted.assertion(granted.other, OTHER)))
    assert (answer.status_code, answer.get_json()["code"]) == (503, "ledger_contradicted")
    found = verify(registry.store, registry.settings.limits, clock=clock).differences
    assert ("domain_settings", "body") in [(difference.table, difference.column) for difference in found]


MALFORMED: Mapping[str, tuple[Any, str]] = {
    "a list": ([], ""),
    "a name in capitals": ({"Kafka": BROKER}, "is no name of lower-case letters"),
    "no object": ({"kafka": []}, "access_tokens.kafka: expected an object"),
    "no audience": ({"kafka": {"services": ["a"], "scopes": ["b"]}}, "access_tokens.kafka"),
    "an unknown member": ({"kafka": {**BROKER, "issuer": "x"}}, "access_tokens.kafka"),
    "a service id as audience": ({"kafka": {**BROKER, "audience": LEGACY}}, "not an absolute URI"),
    "the trust domain as audience": ({"kafka": {**BROKER, "audience": DOMAIN}}, "not an absolute URI"),
    "an audience of events": ({"kafka": {**BROKER, "audience": AUDIENCE}}, "not an absolute URI"),
    "a URI with a fragment": ({"kafka": {**BROKER, "audience": KAFKA + "#a"}}, "not an absolute URI"),
    "a URI with a newline": ({"kafka": {**BROKER, "audience": KAFKA + "\n"}}, "not an absolute URI"),
    "no service": ({"kafka": {**BROKER, "services": []}}, "services is empty, expected one service id"),
    "a service twice": ({"kafka": {**BROKER, "services": ["legacy", LEGACY]}}, "not a list of different service ids"),
    "anyone": ({"kafka": {**BROKER, "services": ["*"]}}, ""),
    "a service elsewhere": ({"kafka": {**BROKER, "services": ["other.internal/a"]}}, "another trust domain"),
    "no scope": ({"kafka": {**BROKER, "scopes": []}}, "scopes has 0 members"),
    "a scope with a blank": ({"kafka": {**BROKER, "scopes": ["a b"]}}, "not a scope"),
    "a lifetime too short": ({"kafka": {**BROKER, "lifetime": 9}}, "lifetime is 9, expected 10 to 3600"),
    "a lifetime too long": ({"kafka": {**BROKER, "lifetime": 3601}}, "lifetime is 3601, expected 10 to 3600"),
    "a lifetime of another type": ({"kafka": {**BROKER, "lifetime": True}}, "lifetime"),
    "one audience, two names": ({"kafka": BROKER, "broker": BROKER}, "one audience has two names"),
}


@pytest.mark.parametrize(("access_tokens", "says"), MALFORMED.values(), ids=MALFORMED)
def test_settings_that_are_not_good_are_refused_and_the_command_line_says_why(
    registry: Driver, access_tokens: Any, says: str
) -> None:
    body = {"minters": [], "issuers": [], "access_tokens": access_tokens}
    before = entries_of(registry.store)
    answer = registry.client.put("/v1/domain", json=body, headers={**registry.operator, "If-Match": '"0"'})
    assert (answer.status_code, answer.get_json()["code"] in ("malformed_body", "foreign_service")) == (400, True)
    assert entries_of(registry.store) == before
    with pytest.raises(BadRequest) as refused:
        settings_from(body, DOMAIN)
    assert says in str(refused.value)
