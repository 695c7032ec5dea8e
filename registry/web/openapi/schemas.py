"""The shapes of what goes over the wire, as JSON Schema 2020-12 (OpenAPI 3.1 components)."""

from typing import Any

from peerseal.protocol.issuer_trust import MAX_CA, MAX_GIVEN_KEYS
from peerseal.protocol.policies import ACCESS_LIFETIMES, MAX_ACCESS_SCOPES, MAX_DERIVATIONS, MAX_DERIVED
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE

Json = dict[str, Any]

_NAME = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
_ID = r"^[A-Za-z0-9_-]{1,32}$"
_THUMBPRINT = r"^[A-Za-z0-9_-]{43}$"
_HASH = r"^[A-Za-z0-9_-]{43}$"
_SCOPE = r"^[!#-\[\]-~]{1,100}$"
_RESOURCE = r"^[a-z][a-z0-9+.-]{1,30}://[A-Za-z0-9\[][!$&-;=?-Z\[\]_a-z~%]{0,160}$"
_EVENT_ID = r"^[!-~]{1,200}$"

LARGEST = 10**18 - 1
"""The largest number that a query parameter may be."""

SET_BY = {
    "type": "integer",
    "minimum": 0,
    "maximum": LARGEST,
    "description": "The entry that set it, as in the ETag. In a change it says nothing: If-Match does.",
}


def ref(name: str) -> Json:
    """A schema of below, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def exactly(members: Json, optional: tuple[str, ...] = ()) -> Json:
    """An object with these members and no others."""
    required = [name for name in members if name not in optional]
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


def text(pattern: str | None = None, **more: Any) -> Json:
    """A string."""
    return {"type": "string", **({"pattern": pattern} if pattern else {}), **more}


def natural(**more: Any) -> Json:
    """0, 1, 2, …"""
    return {"type": "integer", "minimum": 0, **more}


def each(items: Json, **more: Any) -> Json:
    """An array."""
    return {"type": "array", "items": items, **more}


def page(member: str, row: str, after: Json, **more: Json) -> Json:
    """A page of rows; ``next`` is what to give as ``after`` for the next page, null at the end."""
    return exactly({**more, member: each(ref(row)), "next": {"oneOf": [after, {"type": "null"}]}})


TIME = natural(description="Seconds since the epoch.")
ENTRY = natural(minimum=1, description="The number of a ledger entry.")
SERVICE = text(_NAME, maxLength=100, description="A service's short name: DNS labels joined by dots.")
THUMBPRINT = text(_THUMBPRINT, description="RFC 7638 SHA-256 thumbprint of a key.")
KID = text(maxLength=400, description="<trust domain>/<service>/<thumbprint>")
TOKEN_ID = text(_ID)
BY = {
    "type": "object",
    "additionalProperties": text(),
    "description": "Who or what: ids and hashes, nothing about persons.",
}
JWS = text(r"^[\w-]+\.[\w-]+\.[\w-]+$")
ALG: Json = {"enum": ["RS256", "ES256"]}
ROLE: Json = {"enum": ["viewer", "operator", "admin"]}
PROOF = each(text(_HASH), description="Hashes of an RFC 9162 proof, base64url.")
NOTE = text(description="A checkpoint: C2SP signed note.")
_CLIENT: Json = {
    "client_assertion_type": {"const": CLIENT_ASSERTION_TYPE},
    "client_assertion": {**JWS, "description": "By a registered key of the client, for the registry, once."},
    "client_id": text(),
}

SCHEMAS: Json = {
    "Problem": exactly(
        {
            "type": {"const": "about:blank"},
            "title": text(),
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": text(r"^[a-z0-9_]+$", description="Stable: programs decide by it."),
            "request_id": text(r"^[0-9a-f]{32}$", description="Stands in the registry's log with more words."),
        }
    ),
    "Jwk": {
        "type": "object",
        "properties": {"kty": {"enum": ["RSA", "EC"]}},
        "required": ["kty"],
        "additionalProperties": text(),
        "not": {"required": ["d"]},
    },
    "JwkSet": exactly({"keys": each(ref("Jwk"))}),
    "Registration": {
        **exactly(
            {
                "proof": text(description="JWS by the new key (typ peerseal-proof+jwt) over its public half."),
                "join": exactly({"id": text(), "mac": text()}),
                "oidc": text(description="A platform's token for this registry."),
            },
            optional=("join", "oidc"),
        ),
        "description": "The key's proof of possession, and at most one right: a join token's MAC over the proof, or a "
        "platform token. A rotation carries its right in the Authorization header.",
    },
    "Waiting": exactly({"kid": KID, "state": {"const": "pending"}, "expires_at": TIME}),
    "Applicant": exactly(
        {
            "kid": KID,
            "state": {"const": "pending"},
            "expires_at": TIME,
            "service": SERVICE,
            "alg": ALG,
            "jwk": ref("Jwk"),
            "created_at": TIME,
        }
    ),
    "Applicants": page("applicants", "Applicant", THUMBPRINT),
    "Key": exactly(
        {
            "kid": KID,
            "alg": ALG,
            "state": {"enum": ["pending", "active", "retired", "revoked"]},
            "active_from": TIME,
            "active_until": TIME,
            "revoked_at": {"oneOf": [TIME, {"type": "null"}]},
            "admitted_by": BY,
            "index": natural(description="The place of the key's entry in the ledger, from 0."),
            "jwk": ref("Jwk"),
            "publicKey": text(r"^[\w-]+$", description="X.509 SubjectPublicKeyInfo, base64url of its DER."),
        }
    ),
    "Keys": page("keys", "Key", ENTRY, service=SERVICE),
    "Service": exactly({"service": SERVICE, "seq": ENTRY, "active_keys": natural()}),
    "Services": page("services", "Service", SERVICE),
    "JoinTokenWanted": exactly(
        {"service": SERVICE, "ttl": natural(minimum=1, maximum=604_800), "uses": natural(minimum=1, maximum=10_000)},
        optional=("ttl", "uses"),
    ),
    "JoinToken": exactly(
        {
            "id": TOKEN_ID,
            "service": SERVICE,
            "created_at": TIME,
            "expires_at": TIME,
            "uses": natural(minimum=1),
            "used": natural(),
            "withdrawn": {"type": "boolean"},
        }
    ),
    "JoinTokens": page("join_tokens", "JoinToken", TOKEN_ID),
    "OperatorTokenWanted": exactly({"role": ROLE, "ttl": natural(minimum=1, maximum=34_560_000)}),
    "OperatorToken": exactly(
        {"id": TOKEN_ID, "role": ROLE, "created_at": TIME, "expires_at": TIME, "revoked": {"type": "boolean"}}
    ),
    "OperatorTokens": page("operator_tokens", "OperatorToken", TOKEN_ID),
    "Act": exactly(
        {
            "id": natural(),
            "time": TIME,
            "by": BY,
            "act": text(maxLength=40),
            "subject": text(),
            "seq": {"oneOf": [ENTRY, {"type": "null"}]},
            "service": {"oneOf": [text(_NAME), {"type": "null"}]},
        }
    ),
    "Audit": page("audit", "Act", natural()),
    "Policy": exactly(
        {
            "allow": {
                "type": ["object", "null"],
                "propertyNames": {"pattern": r"^(\*|[a-z0-9.-]+(/[a-z0-9.-]+)?)$"},
                "additionalProperties": each(text(r"^[!#-\[\]-~]{1,100}$"), uniqueItems=True),
                "description": "Services of the domain, or * for any, each with its scopes; null: there is no policy.",
            },
            "entry": SET_BY,
            "restricted": {"type": "boolean", "description": "Told only to those that it names."},
            "warning": {"type": "string", "description": "In an answer: what may be a mistake in the change."},
        },
        optional=("restricted", "entry", "warning"),
    ),
    "Domain": exactly(
        {
            "entry": SET_BY,
            "minters": each(text(), uniqueItems=True, description="Ids of services that may mint transaction tokens."),
            "issuers": each(
                exactly(
                    {
                        "issuer": text(format="uri"),
                        "audience": text(minLength=1, maxLength=300),
                        "jwks_url": {"oneOf": [text(format="uri"), {"type": "null"}]},
                        "jwks": {
                            **exactly({"keys": each({"type": "object"}, minItems=1, maxItems=MAX_GIVEN_KEYS)}),
                            "description": "The issuer's public keys (RFC 7517), so that none are fetched.",
                        },
                        "ca": text(maxLength=MAX_CA, description="Certificates (PEM) to check its https with."),
                        "introspection_url": {"oneOf": [text(format="uri"), {"type": "null"}]},
                        "introspection_signed": {"type": "boolean", "description": "Only answers of RFC 9701 count."},
                        "introspect_jwts": {"type": "boolean", "description": "The issuer is asked about JWTs, too."},
                    },
                    optional=(
                        "jwks_url",
                        "jwks",
                        "ca",
                        "introspection_url",
                        "introspection_signed",
                        "introspect_jwts",
                    ),
                )
            ),
            "exchange": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": each(text(_SCOPE), uniqueItems=True),
                },
                "description": "By client's id and consumers' audience: scopes of event tokens it may exchange for.",
            },
            "derived_scopes": each(
                exactly(
                    {
                        "minter": text(description="Id of a minter, or of a client of the exchange."),
                        "from": text(_SCOPE),
                        "to": each(text(_SCOPE), uniqueItems=True, minItems=1, maxItems=MAX_DERIVED),
                    }
                ),
                maxItems=MAX_DERIVATIONS,
                description="Scopes that events may have where the user's token has another one.",
            ),
            "access_tokens": {
                "type": "object",
                "additionalProperties": exactly(
                    {
                        "audience": text(_RESOURCE, description="The resource server: an absolute URI."),
                        "services": each(text(description="Id of a service."), uniqueItems=True, minItems=1),
                        "scopes": each(text(_SCOPE), uniqueItems=True, minItems=1, maxItems=MAX_ACCESS_SCOPES),
                        "lifetime": natural(minimum=ACCESS_LIFETIMES[0], maximum=ACCESS_LIFETIMES[-1]),
                    },
                    optional=("lifetime",),
                ),
                "description": "By a resource server's name: which services get access tokens for it.",
            },
        },
        optional=("exchange", "derived_scopes", "access_tokens", "entry"),
    ),
    "TokenWanted": {
        "oneOf": [ref("ExchangeWanted"), ref("AccessWanted")],
        "description": "ExchangeWanted or AccessWanted, by grant_type.",
    },
    "AccessWanted": {
        "type": "object",
        "properties": {
            "grant_type": {"const": "client_credentials"},
            **_CLIENT,
            "resource": text(_RESOURCE, description="The resource server, as in the domain's settings."),
            "scope": text(description="Some of those in the domain's settings; without it all of them."),
        },
        "required": ["grant_type", "client_assertion_type", "client_assertion", "resource"],
    },
    "ExchangeWanted": {
        "type": "object",
        "properties": {
            "grant_type": {"const": "urn:ietf:params:oauth:grant-type:token-exchange"},
            **_CLIENT,
            "subject_token": {**JWS, "description": "A user's, of an issuer in the domain's settings."},
            "subject_token_type": text(),
            "requested_token_type": text(),
            "scope": text(_SCOPE, description="Exactly one."),
            "audience": text(description="The consumers."),
            "transaction_id": text(_EVENT_ID),
            "event_id": text(_EVENT_ID),
            "event_payload_hash": text(r"^[0-9a-f]{64}$", description="SHA-256 of the payload."),
            "topic": text(r"^[A-Za-z0-9._-]{1,249}$"),
        },
        "required": [
            *("grant_type", "client_assertion_type", "client_assertion", "subject_token", "subject_token_type"),
            *("scope", "audience", "transaction_id", "event_id"),
        ],
    },
    "Exchanged": exactly(
        {
            "access_token": JWS,
            "issued_token_type": {"const": "urn:ietf:params:oauth:token-type:jwt"},
            "token_type": {"const": "Bearer"},
            "expires_in": natural(),
            "scope": text(_SCOPE),
        }
    ),
    "AccessToken": exactly(
        {"access_token": JWS, "token_type": {"const": "Bearer"}, "expires_in": natural(), "scope": text()}
    ),
    "Issued": {
        "oneOf": [ref("Exchanged"), ref("AccessToken")],
        "description": "Exchanged or AccessToken, by grant_type.",
    },
    "OAuthError": exactly({"error": text(), "error_description": text()}),
    "Inclusion": exactly(
        {"kid": KID, "index": natural(), "size": ENTRY, "leaf": text(_HASH), "proof": PROOF, "checkpoint": NOTE}
    ),
    "Consistency": exactly({"from": ENTRY, "to": ENTRY, "proof": PROOF}),
    "Health": exactly({"status": {"const": "ok"}}),
    "Histories": exactly({"statements": {"type": "array", "items": text(), "maxItems": 64}}),
    "Readiness": {
        "type": "object",
        "required": ["ready", "can_read", "can_write", "database", "schema", "keys"],
        "additionalProperties": {"type": "boolean"},
        "description": "ready is the answer to the question; of the named checks, those that fail are false.",
    },
}
SCHEMAS["KeyWithEvidence"] = exactly(
    {
        **SCHEMAS["Key"]["properties"],
        "evidence": {
            "type": ["object", "null"],
            "additionalProperties": text(),
            "description": "What the key's entry commits to by digest: its proof of possession, and the voucher's "
            "request token if it had one.",
        },
    }
)
for _kind, _prefix in (("JoinToken", "psj1"), ("OperatorToken", "pso1")):  # with the secret, which is told once
    SCHEMAS[f"New{_kind}"] = exactly({"token": text(rf"^{_prefix}\."), **SCHEMAS[_kind]["properties"]})
