"""What operations are put together from: parameters, answers, and who may call."""

from typing import Any

from registry.web.openapi.schemas import LARGEST, SERVICE, THUMBPRINT, TOKEN_ID, Json, natural, ref, text

ANYONE: list[Json] = []
OPERATOR: list[Json] = [{"operatorToken": []}]
SECURITY_SCHEMES: Json = {
    "operatorToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "An operator's token, pso1.<id>.<secret>, of role viewer, operator or admin.",
    },
    "requestToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWS",
        "description": "A request token (typ peerseal-request+jwt) by a key of the service, bound to this very call, "
        "with audience <trust domain>/registry.",
    },
}

CODES: dict[int, tuple[str, str]] = {
    400: ("Not understood", "invalid_name, invalid_parameter, malformed_body, …"),
    401: ("Not proven", "missing_token, malformed_token, join_refused, oidc_refused, operator_refused, replayed, …"),
    403: ("Not allowed", "caller_not_allowed, role_insufficient"),
    404: ("Not there", "not_found, service_not_found, key_not_found, …"),
    405: ("No such method here", "method_not_allowed"),
    409: ("Taken", "key_of_another_service, key_revoked, key_retired, too_many_keys, …"),
    412: ("Changed meanwhile", "precondition_failed"),
    413: ("Too large", "body_too_large"),
    415: ("Not JSON", "unsupported_media_type"),
    428: ("If-Match is missing", "precondition_required"),
    429: ("Refused too often", "too_many_refusals; Retry-After says when to come back"),
    500: ("Failed", "internal_error; the log knows more, by the request_id"),
    503: ("Not now", "storage_unavailable, behind, ledger_contradicted, trust_unavailable, …; Retry-After"),
}

READ = (500, 503)
"""What every call that looks something up may be answered with."""
WRITE = (400, 401, 403, 404, 429, 500, 503)
"""What every call that changes something may be answered with, 405 aside."""
BODY = (413, 415)
"""And if it takes a body."""


def header(description: str, **schema: Any) -> Json:
    """A header of an answer."""
    return {"description": description, "schema": {"type": "string", **schema}}


_ID = header("The request's id in the registry's log.", pattern="^[0-9a-f]{32}$")
_NOSNIFF = header("Always nosniff.", const="nosniff")
_POLICY = header("Nothing in an answer is to be run or framed.")
_SAFE = {
    "X-Content-Type-Options": {**_NOSNIFF, "required": True},
    "Content-Security-Policy": {**_POLICY, "required": True},
    "Cache-Control": {**header("no-store, or how long a cache may keep it."), "required": True},
}
_KEPT = {**_SAFE, "ETag": {**header("Names these very bytes.", pattern='^".+"$'), "required": True}}


def problems(*statuses: int) -> Json:
    """Refusals, as ``application/problem+json`` (RFC 9457)."""
    found = {}
    for status in statuses:
        title, codes = CODES[status]
        headers = {**_SAFE, "X-Request-Id": {**_ID, "required": True}}
        if status == 401:
            headers["WWW-Authenticate"] = {**header("Bearer (RFC 6750)."), "required": True}
        if status in (429, 503):
            headers["Retry-After"] = {**header("Seconds.", pattern="^[0-9]+$"), "required": True}
        content = {"application/problem+json": {"schema": ref("Problem")}}
        found[str(status)] = {"description": f"{title}: {codes}.", "headers": headers, "content": content}
    return found


def oauth(*statuses: int) -> Json:
    """Refusals as OAuth has them (RFC 6749 section 5.2), or as all are, where they come from elsewhere."""
    found = problems(*statuses)
    for status in statuses:
        if status in (400, 401):
            found[str(status)]["description"] = "error says which, as RFC 6749 section 5.2 has it."
            found[str(status)]["content"]["application/json"] = {"schema": ref("OAuthError")}
    return found


def answer(description: str, media: str, schema: Json, *, made: bool = False, kept: bool = False) -> Json:
    """An answer with a body; ``made`` with the Location of what was made, ``kept`` if caches may keep it."""
    headers = _KEPT if kept else _SAFE
    if made:
        headers = {**headers, "Location": {**header("The path of what was made."), "required": True}}
    return {"description": description, "headers": headers, "content": {media: {"schema": schema}}}


def empty(description: str, *, kept: bool = False) -> Json:
    """An answer without a body."""
    return {"description": description, "headers": _KEPT if kept else _SAFE}


def shown(description: str, schema: str, status: int = 200, *, made: bool = False) -> Json:
    """An answer in JSON, for this asker only."""
    return {str(status): answer(description, "application/json", ref(schema), made=made)}


def setting(description: str, schema: str) -> Json:
    """An answer in JSON with the ETag that a change of it has to name."""
    found = answer(description, "application/json", ref(schema))
    return {"200": {**found, "headers": _KEPT}}


def published(description: str, media: str, schema: Json) -> Json:
    """An answer that caches may keep, and that an asker may have already."""
    return {
        "200": answer(description, media, schema, kept=True),
        "304": empty("The asker has it: If-None-Match named its ETag.", kept=True),
    }


def operation(
    name: str,
    summary: str,
    *answers: Json,
    who: list[Json] = ANYONE,
    parameters: tuple[Json, ...] = (),
    body: str | None = None,
    media: str = "application/json",
) -> Json:
    """One method of one path; ``media`` is the type of its body."""
    described: Json = {"operationId": name, "summary": summary, "security": who, "responses": {}}
    for found in answers:
        described["responses"].update(found)
    described["responses"] = dict(sorted(described["responses"].items()))
    if parameters:
        described["parameters"] = list(parameters)
    if body is not None:
        described["requestBody"] = {"required": True, "content": {media: {"schema": ref(body)}}}
    return described


def in_path(name: str, schema: Json, description: str) -> Json:
    """A parameter of the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def in_query(name: str, schema: Json, description: str, *, required: bool = False) -> Json:
    """A parameter of the query."""
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def in_header(name: str, description: str, *, required: bool = False) -> Json:
    """A header of the request."""
    return {"name": name, "in": "header", "required": required, "schema": text(), "description": description}


OF_SERVICE = in_path("service", SERVICE, "The service's short name.")
OF_KEY = in_path("thumbprint", THUMBPRINT, "The key's RFC 7638 SHA-256 thumbprint.")
OF_TOKEN = in_path("token_id", TOKEN_ID, "The token's id.")
AS_OF = in_query("seq", natural(maximum=LARGEST), "As of this entry or a later one; 503 behind where it is not here.")
AFTER = in_query("after", natural(maximum=LARGEST), "Only what comes behind: the last page's next.")
AFTER_NAME = in_query(
    "after", text(r"^[^\u0000-\u001f\u007f-\u009f]*$"), "Only what comes behind: the last page's next."
)
LIMIT = in_query("limit", natural(maximum=LARGEST), "Rows of a page, 1000 at most.")
IF_NONE_MATCH = in_header("If-None-Match", "ETags that the asker has.")
IF_MATCH = in_header("If-Match", "The ETag of what is to be replaced.", required=True)
