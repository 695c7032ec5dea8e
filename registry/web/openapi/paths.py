"""Every call, by path and method."""

from registry.web.openapi.parts import (
    AFTER,
    AFTER_NAME,
    AS_OF,
    BODY,
    IF_MATCH,
    IF_NONE_MATCH,
    LIMIT,
    OF_KEY,
    OF_SERVICE,
    OF_TOKEN,
    OPERATOR,
    READ,
    WRITE,
    answer,
    empty,
    in_path,
    in_query,
    oauth,
    operation,
    problems,
    published,
    setting,
    shown,
)
from registry.web.openapi.schemas import JWS, KID, LARGEST, NOTE, Json, natural, ref, text

_JWT = "application/jwt"
_SET = "application/jwk-set+json"
_BYTES: Json = {"type": "string", "format": "binary"}
_REASON = in_query("reason", {"enum": ["retired", "compromised", "rejected"]}, "Why.", required=True)
_OWN_CALL: list[Json] = [{}, {"requestToken": []}]
_OWN_OR_OPERATOR: list[Json] = [{"requestToken": []}, {"operatorToken": []}]
_STATEMENT = {status: answer("The key statement.", _JWT, JWS, made=True) for status in ("200", "201")}
_WAITING = shown("The key waits for an operator. Only where the registry takes applicants.", "Waiting", 202)
_DONE = {"204": empty("Done.")}
_PLACE = in_path("place", text(r"^([0-9]{3}|x[0-9]{3}/.+)(\.p/[0-9]+)?$"), "C2SP tlog-tiles: x001/234 or 005.p/17.")
_LEVEL = in_path("level", natural(maximum=7), "The tile's level.")
_SINCE = in_query("since", natural(maximum=LARGEST), "The newest entry that the asker knows of.")
_WAIT = in_query(
    "wait",
    natural(maximum=20),
    "Seconds to wait for the first change. The answer may come before that, and name none, where too many wait.",
)
_OF_KID = in_query("kid", KID, "The key whose admission is to be proven.")
_FOR = in_query("for", {"const": "write"}, "Write: the node must be able to sign and write, too.")
_FROM = in_query("from", natural(maximum=LARGEST), "The smaller size.")
_TO = in_query("to", natural(maximum=LARGEST), "The larger size.")

WELL_KNOWN: Json = {
    "/.well-known/peerseal-registry": {
        "get": operation(
            "getRegistryKeys",
            "The root-signed document: domain, signing keys, ledger key, URLs",
            published("The document.", _JWT, JWS),
            problems(*READ),
            parameters=(IF_NONE_MATCH,),
        )
    },
    "/.well-known/jwks.json": {
        "get": operation(
            "getRegistryJwks",
            "The registry's own signing keys (not the services')",
            published("A JWK Set (RFC 7517).", _SET, ref("JwkSet")),
            problems(*READ),
            parameters=(IF_NONE_MATCH,),
        )
    },
}

KEYS: Json = {
    "/v1/services/{service}/keys": {
        "post": operation(
            "registerKey",
            "Registers the key that proves itself",
            _STATEMENT,
            _WAITING,
            problems(*WRITE, 409, *BODY),
            who=_OWN_CALL,
            parameters=(OF_SERVICE,),
            body="Registration",
        ),
        "get": operation(
            "listKeys",
            "A service's keys, past ones too",
            shown("A page.", "Keys"),
            problems(400, 404, *READ),
            parameters=(OF_SERVICE, AFTER, LIMIT),
        ),
    },
    "/v1/services/{service}/keys/{thumbprint}": {
        "get": operation(
            "getKey",
            "One key's record",
            shown("The record, with what its entry commits to.", "KeyWithEvidence"),
            problems(400, 404, *READ),
            parameters=(OF_SERVICE, OF_KEY),
        ),
        "delete": operation(
            "endKey",
            "Ends a key: an operator any, a service's key only itself; or turns an applicant away",
            _DONE,
            problems(*WRITE, 409),
            who=_OWN_OR_OPERATOR,
            parameters=(OF_SERVICE, OF_KEY, _REASON),
        ),
    },
    "/v1/services/{service}/keys/{thumbprint}.jwt": {
        "get": operation(
            "getKeyStatement",
            "The signed key statement",
            published("The statement.", _JWT, JWS),
            problems(400, 404, *READ),
            parameters=(OF_SERVICE, OF_KEY, AS_OF, IF_NONE_MATCH),
        )
    },
    "/v1/services/{service}/keys/{thumbprint}/approve": {
        "post": operation(
            "approveKey",
            "Admits an applicant",
            _STATEMENT,
            problems(*WRITE, 409),
            who=OPERATOR,
            parameters=(OF_SERVICE, OF_KEY),
        )
    },
}

SERVICES: Json = {
    "/v1/services/{service}/jwks.jwt": {
        "get": operation(
            "getSignedJwks",
            "A service's current keys, signed",
            published("The signed JWK Set.", _JWT, JWS),
            problems(400, 404, *READ),
            parameters=(OF_SERVICE, AS_OF, IF_NONE_MATCH),
        )
    },
    "/v1/services/{service}/jwks.json": {
        "get": operation(
            "getJwks",
            "A service's current keys, for any JWT library",
            published("A JWK Set (RFC 7517).", _SET, ref("JwkSet")),
            problems(400, 404, *READ),
            parameters=(OF_SERVICE, AS_OF, IF_NONE_MATCH),
        )
    },
    "/v1/services": {
        "get": operation(
            "listServices",
            "All services",
            shown("A page.", "Services"),
            problems(400, 401, 403, *READ),
            who=OPERATOR,
            parameters=(AFTER_NAME, LIMIT),
        )
    },
    "/v1/changes": {
        "get": operation(
            "getChanges",
            "Which services changed after an entry, signed",
            published("The changes.", _JWT, JWS),
            problems(400, *READ),
            parameters=(_SINCE, _WAIT, IF_NONE_MATCH),
        )
    },
}

POLICIES: Json = {
    "/v1/services/{service}/policy.jwt": {
        "get": operation(
            "getSignedPolicy",
            "Who may call the service, signed",
            published("The policy.", _JWT, JWS),
            problems(400, 401, 403, 404, *READ),
            who=_OWN_CALL,
            parameters=(OF_SERVICE, AS_OF, IF_NONE_MATCH),
        )
    },
    "/v1/services/{service}/policy": {
        "get": operation(
            "getPolicy",
            "Who may call the service, with the ETag that a change of it names",
            setting("The policy.", "Policy"),
            problems(400, 401, 403, 404, *READ),
            who=OPERATOR,
            parameters=(OF_SERVICE,),
        ),
        "put": operation(
            "setPolicy",
            "Says who may call the service",
            setting("The policy as it is now.", "Policy"),
            problems(*WRITE, 412, 428, *BODY),
            who=OPERATOR,
            parameters=(OF_SERVICE, IF_MATCH),
            body="Policy",
        ),
    },
    "/v1/domain.jwt": {
        "get": operation(
            "getSignedDomain",
            "Who may mint transaction tokens, and the issuers of users' tokens, signed",
            published("The domain document.", _JWT, JWS),
            problems(400, 404, *READ),
            parameters=(AS_OF, IF_NONE_MATCH),
        )
    },
    "/v1/domain": {
        "get": operation(
            "getDomain",
            "The domain's settings, with the ETag that a change of them names",
            setting("The settings.", "Domain"),
            problems(401, 403, 404, *READ),
            who=OPERATOR,
        ),
        "put": operation(
            "setDomain",
            "Replaces the domain's settings",
            setting("The settings as they are now.", "Domain"),
            problems(*WRITE, 412, 428, *BODY),
            who=OPERATOR,
            parameters=(IF_MATCH,),
            body="Domain",
        ),
    },
}

EXCHANGE: Json = {
    "/oauth2/token": {
        "post": operation(
            "issueToken",
            "An event token for a user's token (RFC 8693), or an access token for a foreign resource server (RFC 6749 "
            "section 4.4); only where the domain's settings say who may",
            shown("The token.", "Issued"),
            oauth(400, 401),
            problems(404, 413, 429, 500, 503),
            body="TokenWanted",
            media="application/x-www-form-urlencoded",
        )
    },
}

OPERATORS: Json = {
    "/v1/join-tokens": {
        "post": operation(
            "createJoinToken",
            "Makes a join token; it stands in this answer and nowhere else",
            shown("The token.", "NewJoinToken", 201, made=True),
            problems(*WRITE, *BODY),
            who=OPERATOR,
            body="JoinTokenWanted",
        ),
        "get": operation(
            "listJoinTokens",
            "All join tokens, past ones too, without their secrets",
            shown("A page.", "JoinTokens"),
            problems(400, 401, 403, *READ),
            who=OPERATOR,
            parameters=(AFTER_NAME, LIMIT),
        ),
    },
    "/v1/join-tokens/{token_id}": {
        "delete": operation(
            "withdrawJoinToken",
            "Makes a join token useless; keys that it let in stay",
            _DONE,
            problems(*WRITE),
            who=OPERATOR,
            parameters=(OF_TOKEN,),
        )
    },
    "/v1/operator-tokens": {
        "post": operation(
            "createOperatorToken",
            "Makes an operator token (admins); it stands in this answer and nowhere else",
            shown("The token.", "NewOperatorToken", 201, made=True),
            problems(*WRITE, *BODY),
            who=OPERATOR,
            body="OperatorTokenWanted",
        ),
        "get": operation(
            "listOperatorTokens",
            "All operator tokens, past ones too, without their secrets (admins)",
            shown("A page.", "OperatorTokens"),
            problems(400, 401, 403, *READ),
            who=OPERATOR,
            parameters=(AFTER_NAME, LIMIT),
        ),
    },
    "/v1/operator-tokens/{token_id}": {
        "delete": operation(
            "revokeOperatorToken",
            "Makes an operator token useless (admins)",
            _DONE,
            problems(*WRITE),
            who=OPERATOR,
            parameters=(OF_TOKEN,),
        )
    },
    "/v1/applicants": {
        "get": operation(
            "listApplicants",
            "Keys that wait for an operator",
            shown("A page.", "Applicants"),
            problems(400, 401, 403, *READ),
            who=OPERATOR,
            parameters=(AFTER_NAME, LIMIT),
        )
    },
    "/v1/audit": {
        "get": operation(
            "listActs",
            "What operators did, oldest first",
            shown("A page.", "Audit"),
            problems(400, 401, 403, *READ),
            who=OPERATOR,
            parameters=(AFTER, LIMIT),
        )
    },
}

LEDGER: Json = {
    "/ledger/checkpoint": {
        "get": operation(
            "getCheckpoint",
            "The signed head of the ledger (C2SP tlog-checkpoint)",
            published("The checkpoint.", "text/plain; charset=utf-8", NOTE),
            problems(*READ),
            parameters=(IF_NONE_MATCH,),
        )
    },
    "/ledger/tile/{level}/{place}": {
        "get": operation(
            "getTile",
            "A tile of hashes (C2SP tlog-tiles)",
            published("Hashes of 32 bytes each.", "application/octet-stream", _BYTES),
            problems(404, *READ),
            parameters=(_LEVEL, _PLACE, IF_NONE_MATCH),
        )
    },
    "/ledger/tile/entries/{place}": {
        "get": operation(
            "getEntries",
            "A bundle of entries (C2SP tlog-tiles)",
            published("Entries, each behind its length in two bytes.", "application/octet-stream", _BYTES),
            problems(404, *READ),
            parameters=(_PLACE, IF_NONE_MATCH),
        )
    },
    "/ledger/proof": {
        "get": operation(
            "getProof",
            "Where the ledger holds a key (kid), or that one tree begins with another (from, to)",
            {"200": answer("The proof.", "application/json", {"oneOf": [ref("Inclusion"), ref("Consistency")]})},
            problems(400, 404, *READ),
            parameters=(_OF_KID, _FROM, _TO),
        )
    },
}

ABOUT: Json = {
    "/healthz": {"get": operation("isAlive", "This process answers", shown("It does.", "Health"), problems(500))},
    "/readyz": {
        "get": operation(
            "isReady",
            "This node can answer calls that read; with for=write, all calls",
            shown("It can.", "Readiness"),
            shown("It cannot.", "Readiness", 503),
            problems(400, 500),
            parameters=(_FOR,),
        )
    },
    "/metrics": {
        "get": operation(
            "getMetrics",
            "Counts for Prometheus; not for the public",
            {"200": answer("The counts.", "text/plain; version=1.0.0; charset=utf-8", text())},
            problems(500),
        )
    },
    "/openapi.json": {
        "get": operation(
            "getOpenapi",
            "This description",
            published("OpenAPI 3.1.", "application/json", {"type": "object"}),
            problems(500),
            parameters=(IF_NONE_MATCH,),
        )
    },
    "/docs": {
        "get": operation(
            "getDocs",
            "This description, to be read",
            published("A page without scripts.", "text/html; charset=utf-8", text()),
            problems(500),
            parameters=(IF_NONE_MATCH,),
        )
    },
}

GROUPS: dict[str, Json] = {
    "The registry's own keys": WELL_KNOWN,
    "Keys": KEYS,
    "Services": SERVICES,
    "Policies": POLICIES,
    "Token exchange": EXCHANGE,
    "Operators": OPERATORS,
    "Ledger": LEDGER,
    "About this server": ABOUT,
}
