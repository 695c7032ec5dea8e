"""Vectors for the other tokens: transactions, events, proofs of possession and client assertions."""

import hashlib
from typing import Any, Final

from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.assertion import ASSERTION_TYP
from peerseal.protocol.tokens.event import EVENT_TYP
from peerseal.protocol.tokens.proof import PROOF_TYP
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP, transaction_hash
from tests.vectors.requests import BILLING, HEADERS, SCOPE, believed, callee, token
from tests.vectors.world import (
    ABSENT,
    CALLER,
    DAY,
    DOMAIN,
    MINTER,
    NOW,
    REGISTRY,
    STRANGER,
    Vectors,
    changed,
    ec_key,
    header_of,
    jti,
    jws,
    listed,
    object_of,
    rsa_key,
)

TOPIC: Final = "OrderCreated"
PAYLOAD: Final = b'{"orderID": 1}'
PURPOSE: Final = "trigger_invoicing"
AUDIENCE: Final = "jobs.example.com"
DERIVED: Final = [{"minter": MINTER, "from": SCOPE, "to": [PURPOSE]}]
"""What the settings of the transactions derive."""


def transactions() -> Vectors:
    """Requests that carry a transaction token, in the header ``txn-token``."""
    keys = [*believed(), listed(MINTER, ec_key("edge")), listed(MINTER, ec_key("lost"), "revoked")]
    keys.append(listed(MINTER, ec_key("past"), "retired", until=NOW - 120))
    keys.append(listed(MINTER, ec_key("distant"), "unavailable"))
    made = Vectors("transaction", "Transaction tokens, with the requests that carry them.", keys)
    made.defaults = callee() | {"minters": [MINTER], "derived_scopes": DERIVED}
    made.good("honest", "a transaction of a user", transaction_claims(), **carried(transaction()))
    made.good("two-scopes", "scopes in any order", **carried(transaction(scope=f"profile {SCOPE}")))
    made.good("no-facts", "without facts", **carried(transaction(tctx={}, rctx={})))
    made.good("longest-life", "900 s", **carried(transaction(exp=NOW + 900)))
    made.good("by-a-past-key", "minted while the key was active", **carried(transaction(ec_key("past"), iat=NOW - 200)))
    made.good("longest-user", "512 characters", **carried(transaction(sub="u" * 512)))
    made.good("user-beyond-ascii", "letters of any language", **carried(transaction(sub="Zoë 李 𠮷")))
    made.good("longest-id", "200 characters", **carried(transaction(txn="t" * 200)))
    made.good("longest-scope", "100 characters", **carried(transaction(scope=f"{SCOPE} {'s' * 100}")))
    made.good("longest-facts", "1,024 bytes of canonical JSON", **carried(transaction(tctx={"a": "b" * 1016})))
    made.good("longest-facts-with-escapes", "the same size", **carried(transaction(tctx=object_of(1024))))
    honest = carried(transaction())
    padded = {**HEADERS, "txn-token": f" {honest['headers']['txn-token']}\t"}
    made.good("blanks", "blanks around the header's value", token=honest["token"], headers=padded)
    comment = "both the caller's scopes and the transaction's are needed"
    made.bad("empty-scope", "insufficient_scope", comment, **carried(transaction(scope="")))
    made.bad("other-scope", "insufficient_scope", comment, **carried(transaction(scope="orders:read")))
    _bad_transactions(made)
    _bad_transaction_headers(made)
    other = carried(transaction())
    other["token"] = token(tth=transaction_hash(transaction(sub="mallory")))
    made.bad("other-hash", "bad_transaction_token", "the request token binds another one", **other)
    comment = "the signer is no minter"
    made.bad("no-minter", "bad_transaction_token", comment, **carried(transaction()), minters=[])
    comment = "the registry cannot be asked for the minter's key now: nothing is said about the token"
    made.bad("unavailable-key", "trust_unavailable", comment, **carried(transaction(ec_key("distant"))))
    _derived_transactions(made)
    return made


def _bad_transactions(made: Vectors) -> None:
    edge = ec_key("edge")
    for name in transaction_claims():
        _bad_transaction(made, f"no-{name}", f"the claim {name} is missing", transaction(**{name: ABSENT}))
    _bad_transaction(made, "unknown-claim", "an unknown claim", transaction(nbf=NOW))
    _bad_transaction(made, "typ", "another typ", jws(header_of(edge, MINTER, "JWT"), transaction_claims(), edge.sign))
    stranger = jws(header_of(ec_key("caller"), CALLER, TRANSACTION_TYP), transaction_claims(), ec_key("caller").sign)
    _bad_transaction(made, "of-another", "signed by a service that is no minter", stranger)
    forged = jws(header_of(edge, MINTER, TRANSACTION_TYP), transaction_claims(), ec_key("caller").sign)
    _bad_transaction(made, "forged", "signed with another key", forged)
    _bad_transaction(made, "revoked-key", "the minter's key was revoked", transaction(ec_key("lost")))
    _bad_transaction(made, "unknown-key", "a key that is not known", transaction(ec_key("ghost")))
    _bad_transaction(made, "past-key", "minted after the end of the key", transaction(ec_key("past")))
    changes: dict[str, dict[str, Any]] = {
        "issuer": {"iss": CALLER},
        "audience": {"aud": "other.internal"},
        "audience-service": {"aud": CALLER},
        "expired": {"iat": NOW - 400, "exp": NOW - 40},
        "from-the-future": {"iat": NOW + 40},
        "too-long": {"exp": NOW + 901},
        "repeated-scope": {"scope": f"{SCOPE} {SCOPE}"},
        "scope-list": {"scope": [SCOPE]},
        "two-blanks": {"scope": f"{SCOPE}  profile"},
        "empty-user": {"sub": ""},
        "long-user": {"sub": "u" * 513},
        "line-feed-in-user": {"sub": "a\nb"},
        "blank-in-txn": {"txn": "a b"},
        "long-txn": {"txn": "t" * 201},
        "empty-txn": {"txn": ""},
        "txn-beyond-ascii": {"txn": "tränsaction"},
        "no-break-space-in-user": {"sub": "ada\u00a0lovelace"},
        "invisible-sign-in-user": {"sub": "ada\u200b"},
        "turned-writing-in-user": {"sub": "\u202eada"},
        "user-number": {"sub": 7},
        "tab-in-scope": {"scope": f"{SCOPE}\tprofile"},
        "quote-in-scope": {"scope": f'{SCOPE} "'},
        "blank-before-scope": {"scope": f" {SCOPE}"},
        "long-scope": {"scope": f"{SCOPE} {'s' * 101}"},
        "long-facts": {"tctx": {"a": "b" * 1017}},
        "long-facts-with-escapes": {"tctx": object_of(1025)},
        "long-authentication": {"rctx": {"a": "b" * 1017}},
        "facts-text": {"tctx": "a"},
        "iat-text": {"iat": str(NOW)},
        "no-end": {"exp": NOW},
    }
    for name, change in changes.items():
        _bad_transaction(made, name, "the claims are wrong", transaction(**change))


def _bad_transaction_headers(made: Vectors) -> None:
    edge, good = ec_key("edge"), transaction()
    heads: dict[str, dict[str, Any]] = {"alg-crossed": {"alg": "RS256"}, "alg-none": {"alg": "none"}}
    heads |= {"crit": {"crit": ["exp"]}, "short-kid": {"kid": edge.public.thumbprint}}
    for name, change in heads.items():
        head = header_of(edge, MINTER, TRANSACTION_TYP, **change)
        _bad_transaction(made, name, "the header is wrong", jws(head, transaction_claims(), edge.sign))
    _bad_transaction(made, "request-token", "a request token of the minter", token(edge, MINTER))
    _bad_transaction(made, "two-values", "the header came twice", f"{good}, {good}")
    _bad_transaction(made, "padding", "base64url with padding", f"{good}==")
    _bad_transaction(made, "empty-header", "no text", "")
    fraction = canonical_json(transaction_claims()).replace(b'"iat":%d' % NOW, b'"iat":%d.0' % NOW)
    text = jws(header_of(edge, MINTER, TRANSACTION_TYP), fraction, edge.sign)
    _bad_transaction(made, "iat-with-fraction", "1800000000.0 is no JSON integer", text)
    _bad_transaction(made, "too-long-token", "more than 6 KiB", f"{good}{'A' * 6144}")
    code, comment = "bad_transaction_token", "the request token binds none"
    made.bad("not-bound", code, comment, token=token(), headers={**HEADERS, "txn-token": good})
    comment = "the request token binds one, and none was sent"
    made.bad("not-sent", code, comment, token=token(tth=transaction_hash(good)), headers=HEADERS)


def _bad_transaction(made: Vectors, name: str, comment: str, text: str, **given: Any) -> None:
    made.bad(name, "bad_transaction_token", comment, **carried(text), **given)


def _derived_transactions(made: Vectors) -> None:
    def derived(source: Any = SCOPE, scope: str = PURPOSE, **changes: Any) -> str:
        return transaction(**{"scope": scope, "rctx": _derived_from(source), **changes})

    route: dict[str, Any] = {"allow": {CALLER: [PURPOSE]}, "scope": PURPOSE}
    made.good("derived", "the settings derive its scope from the user's", **carried(derived()), **route)
    cases = {
        "derived-for-another": ("another service asked for it", derived(req_wl=BILLING)),
        "derived-from-another": ("another source than the settings name", derived("profile")),
        "derived-and-more": ("a derived scope is the only one", derived(scope=f"{PURPOSE} {SCOPE}")),
        "derived-to-another": ("the settings derive another scope", derived(scope="notify")),
        "derived-from-number": ("no scope", derived(7)),
        "derived-for-no-user": ("no user was authenticated", derived(rctx={"derived_from": SCOPE})),
    }
    for name, (comment, text) in cases.items():
        _bad_transaction(made, name, comment, text, **route)
    comment = "an operator took the derivation away"
    _bad_transaction(made, "derived-no-more", comment, derived(), **route, derived_scopes=[])


def transaction_claims(**changes: Any) -> dict[str, Any]:
    """The claims of an honest transaction token, changed."""
    honest = {
        "iss": MINTER,
        "aud": DOMAIN,
        "sub": "ada@example.com",
        "txn": "3f0e9c",
        "scope": SCOPE,
        "tctx": {"order": "7"},
        "rctx": {"iss": "https://login.example.com", "jti": "a1"},
        "req_wl": MINTER,
        "iat": NOW,
        "exp": NOW + 300,
    }
    return changed(honest, changes)


def transaction(key: KeyPair | None = None, **changes: Any) -> str:
    """A transaction token with changed claims, signed like an honest one."""
    key = key or ec_key("edge")
    return jws(header_of(key, MINTER, TRANSACTION_TYP), transaction_claims(**changes), key.sign)


def carried(text: str) -> dict[str, Any]:
    """The input of a request that carries this transaction token, which its own token binds."""
    return {"token": token(tth=transaction_hash(text)), "headers": {**HEADERS, "txn-token": text}}


# ---- events


def events() -> Vectors:
    """Events: the payload, and the one token among its headers."""
    retired = listed(CALLER, ec_key("retired"), "retired", since=NOW - 9 * DAY, until=NOW - 2 * DAY)
    keys = [listed(CALLER, ec_key("caller"), since=NOW - 9 * DAY), listed(CALLER, rsa_key("caller")), retired]
    keys += [listed(CALLER, ec_key("revoked"), "revoked"), listed(STRANGER, ec_key("stranger"))]
    made = Vectors("event", "Event tokens and the messages that carry them.", keys)
    made.defaults = _consumer()
    made.good("es256", "an honest event by an EC key", event_claims(), token=event())
    made.good("rs256", "an honest event by an RSA key", token=event(rsa_key("caller")))
    made.good("named", "the message names event and transaction", token=event(), event_id="e1", transaction_id="t1")
    old = event(ec_key("retired"), iat=NOW - 3 * DAY, exp=NOW + 4 * DAY)
    made.good("by-a-past-key", "signed while the key was active", token=old)
    made.good("oldest", "as old as the consumer accepts", token=event(iat=NOW - 7 * DAY, exp=NOW + 60))
    _bad_events(made)
    _bad_event_claims(made)
    return made


def _consumer() -> dict[str, Any]:
    """The consumer that verifies, and the message that it has received."""
    return {
        "now": NOW,
        "domain": DOMAIN,
        "audience": AUDIENCE,
        "allow": {CALLER: [PURPOSE]},
        "max_age": 7 * DAY,
        "topic": TOPIC,
        "payload": b64url(PAYLOAD),
        "event_id": None,
        "transaction_id": None,
        "scope": None,
    }


def _bad_events(made: Vectors) -> None:
    def by(name: str) -> str:
        return event(ec_key(name))

    made.bad("stranger", "caller_not_allowed", "no publisher here", token=event(ec_key("stranger"), STRANGER))
    made.bad("unknown-key", "unknown_key", "a key that is not known", token=by("ghost"))
    made.bad("revoked-key", "revoked_key", "revoked, whenever it signed", token=by("revoked"))
    made.bad("past-key", "expired", "signed after the end of the key", token=by("retired"))
    forged = jws(header_of(ec_key("caller"), CALLER, EVENT_TYP), event_claims(), ec_key("ghost").sign)
    made.bad("forged", "bad_signature", "signed with another key", token=forged)
    made.bad("request-token", "wrong_type", "a request token on a topic", token=token())
    made.bad("issuer", "wrong_issuer", "another issuer than the key's owner", token=event(iss=BILLING))
    made.bad("audience", "wrong_audience", "for other consumers", token=event(aud="reports.example.com"))
    made.bad("expired", "expired", "its life is over", token=event(iat=NOW - 90, exp=NOW - 30))
    made.bad("too-old", "expired", "older than the consumer accepts", token=event(iat=NOW - 7 * DAY - 30, exp=NOW + 60))
    made.bad("from-the-future", "not_yet_valid", "beyond leeway", token=event(iat=NOW + 31))
    made.bad("too-long", "lifetime_too_long", "more than 365 days", token=event(exp=NOW + 365 * DAY + 1))
    made.bad("topic", "wrong_topic", "read from another topic", token=event(), topic="OrderCancelled")
    made.bad("payload", "wrong_payload", "another payload", token=event(), payload=b64url(b'{"orderID": 2}'))
    made.bad("empty-payload", "wrong_payload", "no payload", token=event(), payload="")
    made.bad("event-id", "wrong_event", "the message names another event", token=event(), event_id="e2")
    comment = "the message names another transaction"
    made.bad("transaction-id", "wrong_transaction", comment, token=event(), transaction_id="t2")
    made.bad("scope", "insufficient_scope", "a purpose that it may not send", token=event(scope="delete_orders"))
    made.bad("scope-here", "insufficient_scope", "another purpose is served here", token=event(), scope="notify")
    order = event(aud="reports.example.com", topic="OrderCancelled")
    made.bad("order-6-8", "wrong_audience", "other consumers, another topic", token=order)


def _bad_event_claims(made: Vectors) -> None:
    for name in event_claims():
        made.bad(f"no-{name}", "malformed_token", f"the claim {name} is missing", token=event(**{name: ABSENT}))
    changes: dict[str, dict[str, Any]] = {
        "unknown-claim": {"nbf": NOW},
        "audience-with-slash": {"aud": "jobs/example"},
        "audience-list": {"aud": [AUDIENCE]},
        "two-scopes": {"scope": f"{PURPOSE} notify"},
        "upper-case-hash": {"event_payload_hash": hashlib.sha256(PAYLOAD).hexdigest().upper()},
        "short-hash": {"event_payload_hash": "00"},
        "topic-with-slash": {"topic": "a/b"},
        "long-topic": {"topic": "t" * 250},
        "empty-event-id": {"event_id": ""},
        "line-feed-in-user": {"sub": "a\nb"},
        "iat-text": {"iat": str(NOW)},
        "rctx-text": {"rctx": "a"},
        "jti-short": {"jti": "AAAA"},
        "actor-of-a-service": {"act": {"sub": CALLER}},
    }
    for name, change in changes.items():
        made.bad(name, "malformed_token", "the shape of the claims is wrong", token=event(**change))


def event_claims(**changes: Any) -> dict[str, Any]:
    """The claims of an honest event token, changed."""
    honest = {
        "iss": CALLER,
        "sub": "ada@example.com",
        "aud": AUDIENCE,
        "scope": PURPOSE,
        "event_id": "e1",
        "transaction_id": "t1",
        "topic": TOPIC,
        "event_payload_hash": hashlib.sha256(PAYLOAD).hexdigest(),
        "rctx": {"iss": "https://login.example.com", "jti": "a1"},
        "iat": NOW,
        "exp": NOW + 7 * DAY,
        "jti": jti("event"),
    }
    return changed(honest, changes)


def event(key: KeyPair | None = None, owner: str = CALLER, **changes: Any) -> str:
    """An event token with changed claims, signed like an honest one."""
    key = key or ec_key("caller")
    return jws(header_of(key, owner, EVENT_TYP), event_claims(**{"iss": owner, **changes}), key.sign)


# ---- events of the exchange


def exchanged_events() -> Vectors:
    """Event tokens that the registry's token endpoint issues in exchange for a user's token."""
    keys = [listed(REGISTRY, ec_key("signing")), listed(CALLER, ec_key("caller"))]
    made = Vectors("exchanged-event", "Event tokens that the registry issues in exchange for a user's token.", keys)
    allow = {CALLER: [PURPOSE, "notify"], REGISTRY: [PURPOSE]}
    derived = [{"minter": CALLER, "from": SCOPE, "to": [PURPOSE]}]
    made.defaults = {**_consumer(), "allow": allow, "derived_scopes": derived, "unbound_payload": False}
    honest = changed(event_claims(), {"iss": REGISTRY, "act": {"sub": CALLER}})
    made.good("honest", "for this topic and payload", honest, token=exchanged())
    made.good("any-topic", "it may leave the topic open", token=exchanged(topic=ABSENT))
    unbound = exchanged(event_payload_hash=ABSENT)
    made.good("any-payload", "the consumer takes any payload", token=unbound, unbound_payload=True)
    made.good("derived", "the settings derive its scope", token=exchanged(rctx=_derived_from(SCOPE)))
    made.bad("unbound-payload", "wrong_payload", "it binds no payload", token=unbound)
    other = b64url(b"{}")
    comment = "a payload that is bound is compared"
    made.bad("other-payload", "wrong_payload", comment, token=exchanged(), payload=other, unbound_payload=True)
    made.bad("other-topic", "wrong_topic", "of another topic", token=exchanged(topic="OrderCancelled"))
    _bad_exchanged(made)
    return made


def _bad_exchanged(made: Vectors) -> None:
    code = "caller_not_allowed"
    made.bad("no-exchange-here", code, "registry is not named", token=exchanged(), allow={CALLER: [PURPOSE]})
    made.bad("star", code, "the star does not name registry", token=exchanged(), allow={"*": [PURPOSE]})
    made.bad("stranger", code, "its client may not publish here", token=exchanged(act={"sub": STRANGER}))
    comment = "registry may not send this purpose"
    made.bad("scope", "insufficient_scope", comment, token=exchanged(scope="notify"))
    comment = "the settings derive it from another scope"
    made.bad("derived-from-another", "insufficient_scope", comment, token=exchanged(rctx=_derived_from("profile")))
    token, comment = exchanged(rctx=_derived_from(SCOPE)), "an operator took the derivation away"
    made.bad("derived-no-more", "insufficient_scope", comment, token=token, derived_scopes=[])
    self_made = event(act={"sub": CALLER})
    made.bad("self-made", "malformed_token", "only the registry names an actor", token=self_made)
    made.bad("no-actor", "malformed_token", "the registry publishes nothing itself", token=exchanged(act=ABSENT))
    claims = event_claims(iss=REGISTRY, act={"sub": CALLER})
    forged = jws(header_of(ec_key("signing"), REGISTRY, EVENT_TYP), claims, ec_key("caller").sign)
    made.bad("forged", "bad_signature", "signed with another key", token=forged)
    actors = {"text": CALLER, "short": {"sub": "client-service"}, "more": {"sub": CALLER, "act": {}}, "empty": {}}
    for name, actor in actors.items():
        made.bad(f"actor-{name}", "malformed_token", "no actor", token=exchanged(act=actor))


def _derived_from(source: Any) -> dict[str, Any]:
    return {"iss": "https://login.example.com", "derived_from": source}


def exchanged(**changes: Any) -> str:
    """An event token of the exchange with changed claims, signed like an honest one."""
    return event(ec_key("signing"), REGISTRY, **{"act": {"sub": CALLER}, **changes})


# ---- proofs and assertions


def proofs() -> Vectors:
    """Proofs of possession, as the registry reads them."""
    made = Vectors("proof", "Proofs of possession of the key that is registered.")
    made.defaults = {"now": NOW, "issuer": CALLER, "audience": REGISTRY}
    made.good("es256", "an EC key", proof_claims(ec_key("caller")), proof=proof())
    made.good("rs256", "an RSA key", proof_claims(rsa_key("caller")), proof=proof(rsa_key("caller")))
    made.good("in-leeway", "29 s after its end", proof=proof(iat=NOW - 89, exp=NOW - 29))
    key, other = ec_key("caller"), ec_key("billing")
    head = header_of(key, CALLER, PROOF_TYP)
    made.bad("forged", "bad_signature", "signed with another key", proof=jws(head, proof_claims(key), other.sign))
    swapped = jws(head, proof_claims(key, jwk=dict(other.public.jwk)), key.sign)
    made.bad("other-key", "bad_signature", "the payload names another key", proof=swapped)
    kid = jws(header_of(other, CALLER, PROOF_TYP), proof_claims(key), key.sign)
    made.bad("other-kid", "wrong_issuer", "the kid is of another key", proof=kid)
    owner = jws(header_of(key, BILLING, PROOF_TYP), proof_claims(key), key.sign)
    made.bad("other-owner", "wrong_issuer", "the kid is of another service", proof=owner)
    typ = jws(header_of(key, CALLER, "peerseal-request+jwt"), proof_claims(key), key.sign)
    made.bad("typ", "wrong_type", "another kind of token", proof=typ)
    made.bad("issuer", "wrong_issuer", "for another service", proof=proof(iss=BILLING))
    made.bad("audience", "wrong_audience", "for another registry", proof=proof(aud="other.internal/registry"))
    made.bad("expired", "expired", "its life is over", proof=proof(iat=NOW - 90, exp=NOW - 30))
    made.bad("from-the-future", "not_yet_valid", "beyond leeway", proof=proof(iat=NOW + 31, exp=NOW + 91))
    made.bad("too-long", "lifetime_too_long", "61 s", proof=proof(exp=NOW + 61))
    for name in proof_claims(key):
        made.bad(f"no-{name}", "malformed_token", f"the claim {name} is missing", proof=proof(**{name: ABSENT}))
    made.bad("unknown-claim", "malformed_token", "an unknown claim", proof=proof(nbf=NOW))
    private = {**key.public.jwk, "d": b64url(bytes(32))}
    made.bad("private-key", "key_private_members", "a key with its private half", proof=proof(jwk=private))
    crossed = jws({**head, "alg": "RS256"}, proof_claims(key), key.sign)
    made.bad("alg", "key_alg_mismatch", "RS256 with an EC key", proof=crossed)
    made.bad("jti", "malformed_token", "a short jti", proof=proof(jti="AAAA"))
    return made


def proof_claims(key: KeyPair, **changes: Any) -> dict[str, Any]:
    """The claims of an honest proof, changed."""
    times = {"iat": NOW, "exp": NOW + 60}
    honest = {"iss": CALLER, "aud": REGISTRY, **times, "jti": jti("proof"), "jwk": dict(key.public.jwk)}
    return changed(honest, changes)


def proof(key: KeyPair | None = None, **changes: Any) -> str:
    """A proof with changed claims, signed like an honest one."""
    key = key or ec_key("caller")
    return jws(header_of(key, CALLER, PROOF_TYP), proof_claims(key, **changes), key.sign)


def assertions() -> Vectors:
    """Client assertions, as the registry's token endpoint reads them before it looks the key up."""
    keys = [listed(CALLER, ec_key("caller")), listed(CALLER, rsa_key("caller"))]
    keys += [
        listed(CALLER, ec_key("revoked"), "revoked"),
        listed(CALLER, ec_key("retired"), "retired", until=NOW - 120),
    ]
    made = Vectors("assertion", "Client assertions (private_key_jwt) for the registry's token endpoint.", keys)
    made.defaults = {"now": NOW, "domain": DOMAIN, "audience": REGISTRY}
    made.good("es256", "an EC key", assertion_claims(), assertion=assertion())
    made.good("rs256", "an RSA key", assertion=assertion(rsa_key("caller")))
    made.good("audience-list", "a list of one", assertion=assertion(aud=[REGISTRY]))
    made.good("further-claims", "any JWT library may add some", assertion=assertion(nbf=NOW, azp="x"))
    made.good("uuid", "a jti of another form", assertion=assertion(jti="6ba7b810-9dad-11d1-80b4-00c04fd430c8"))
    key = ec_key("caller")
    made.good("typ-jwt", "typ JWT", assertion=jws(header_of(key, CALLER, "JWT"), assertion_claims(), key.sign))
    typ = jws(header_of(key, CALLER, "at+jwt"), assertion_claims(), key.sign)
    made.bad("typ", "wrong_type", "an access token", assertion=typ)
    made.bad("request-token", "wrong_type", "a request token", assertion=token())
    made.bad("issuer", "wrong_issuer", "iss is not the key's owner", assertion=assertion(iss=BILLING))
    made.bad("subject", "wrong_issuer", "sub is not the key's owner", assertion=assertion(sub=BILLING))
    made.bad("audience", "wrong_audience", "for another registry", assertion=assertion(aud="other.internal/registry"))
    made.bad("two-audiences", "malformed_token", "two audiences", assertion=assertion(aud=[REGISTRY, CALLER]))
    made.bad("expired", "expired", "its life is over", assertion=assertion(iat=NOW - 90, exp=NOW - 30))
    made.bad("not-before", "not_yet_valid", "nbf is beyond leeway", assertion=assertion(nbf=NOW + 31))
    made.bad("too-long", "lifetime_too_long", "301 s", assertion=assertion(exp=NOW + 301))
    made.bad("revoked-key", "revoked_key", "a revoked key", assertion=assertion(ec_key("revoked")))
    made.bad("unknown-key", "unknown_key", "a key that is not known", assertion=assertion(ec_key("ghost")))
    made.bad("past-key", "expired", "signed after the end of the key", assertion=assertion(ec_key("retired")))
    forged = jws(header_of(key, CALLER, ASSERTION_TYP), assertion_claims(), ec_key("ghost").sign)
    made.bad("forged", "bad_signature", "signed with another key", assertion=forged)
    for name in assertion_claims():
        made.bad(f"no-{name}", "malformed_token", f"the claim {name} is missing", assertion=assertion(**{name: ABSENT}))
    made.bad("empty-jti", "malformed_token", "an empty jti", assertion=assertion(jti=""))
    return made


def assertion_claims(**changes: Any) -> dict[str, Any]:
    """The claims of an honest assertion, changed."""
    times = {"iat": NOW, "exp": NOW + 60}
    return changed({"iss": CALLER, "sub": CALLER, "aud": REGISTRY, **times, "jti": jti("assertion")}, changes)


def assertion(key: KeyPair | None = None, **changes: Any) -> str:
    """An assertion with changed claims, signed like an honest one."""
    key = key or ec_key("caller")
    return jws(header_of(key, CALLER, ASSERTION_TYP), assertion_claims(**changes), key.sign)
