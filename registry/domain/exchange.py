"""Requests to the token endpoint, read strictly, and its refusals (RFC 6749 section 5.2): token exchange (RFC 8693
section 2.1), and client credentials (RFC 6749 section 4.4)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl

from peerseal.errors import CodedError, MalformedToken
from peerseal.protocol.names import check_audience, check_scope
from peerseal.protocol.policies import check_resource, scopes_from
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.protocol.tokens.event import PAYLOAD_HASH, TOPIC
from peerseal.protocol.tokens.transaction import ID_PATTERN

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"
CLIENT_CREDENTIALS: Final = "client_credentials"

_PARAMETERS = 30


class ExchangeRefused(CodedError):
    """The token is not issued. Codes are RFC 6749's: ``invalid_request``, ``invalid_client``, ``invalid_grant``,
    ``invalid_scope``, ``invalid_target`` (RFC 8693 section 2.2.2), ``unsupported_grant_type``."""

    status = 400


class ClientRefused(ExchangeRefused):
    """The client is not identified. The answer is the same for every reason; the log names it."""

    status = 401

    def __init__(self, detail: str) -> None:
        super().__init__("invalid_client", detail)


@dataclass(frozen=True, slots=True)
class Issued:
    """An issued token, with its lifetime in seconds and its scope."""

    token: str = field(repr=False)
    expires_in: int
    scope: str


@dataclass(frozen=True, slots=True)
class ExchangeWanted:
    """A request for an event token in exchange for a user's token. The assertion identifies the client."""

    assertion: str = field(repr=False)
    client_id: str | None
    subject_token: str = field(repr=False)
    scope: str
    audience: str
    transaction_id: str
    event_id: str
    topic: str | None
    payload_hash: str | None

    @classmethod
    def read(cls, form: Mapping[str, str]) -> Self:
        """From a form. Raises ExchangeRefused."""
        assertion = asserted(form)
        _check_kinds(form)
        return cls(
            assertion=assertion,
            client_id=form.get("client_id"),
            subject_token=needed(form, "subject_token"),
            scope=_scope(form),
            audience=_audience(form),
            transaction_id=_shaped(form, "transaction_id", ID_PATTERN),
            event_id=_shaped(form, "event_id", ID_PATTERN),
            topic=_shaped(form, "topic", TOPIC) if "topic" in form else None,
            payload_hash=_shaped(form, "event_payload_hash", PAYLOAD_HASH) if "event_payload_hash" in form else None,
        )


@dataclass(frozen=True, slots=True)
class AccessWanted:
    """A request for an access token in a service's own name, for the resource server with the URI ``resource``. With
    ``scopes`` None all granted scopes are wanted."""

    assertion: str = field(repr=False)
    client_id: str | None
    resource: str
    scopes: frozenset[str] | None

    @classmethod
    def read(cls, form: Mapping[str, str]) -> Self:
        """From a form. Raises ExchangeRefused."""
        assertion = asserted(form)
        try:
            resource = check_resource(needed(form, "resource"))
        except MalformedToken as error:
            raise ExchangeRefused("invalid_target", str(error)) from error
        return cls(assertion, form.get("client_id"), resource, _scopes(form))


def _check_kinds(form: Mapping[str, str]) -> None:
    if "actor_token" in form or "actor_token_type" in form:
        raise ExchangeRefused("invalid_request", "actor_token is not supported: the client is the actor")
    if needed(form, "subject_token_type") not in (types := (ACCESS_TOKEN, ID_TOKEN, JWT)):
        raise ExchangeRefused("invalid_request", f"subject_token_type must be one of {', '.join(types)}")
    if form.get("requested_token_type", JWT) not in (JWT, ACCESS_TOKEN):
        raise ExchangeRefused("invalid_request", f"requested_token_type must be {JWT} or {ACCESS_TOKEN}")
    if "resource" in form:
        raise ExchangeRefused("invalid_target", "resource is not supported: name the consumer by audience")


def read_form(body: bytes) -> dict[str, str]:
    """The parameters (``application/x-www-form-urlencoded``), each once. Parameters without a value are dropped, and
    unknown ones are ignored later (RFC 6749 section 3.2). Raises ExchangeRefused."""
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=_PARAMETERS
        )
    except ValueError as error:
        raise ExchangeRefused("invalid_request", "the body is not application/x-www-form-urlencoded") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise ExchangeRefused("invalid_request", "a parameter is given more than once")
    return {name: value for name, value in form.items() if value}


def asserted(form: Mapping[str, str]) -> str:
    """The client's assertion, unverified. Raises ClientRefused where there is none."""
    if "client_assertion" not in form or form.get("client_assertion_type") != CLIENT_ASSERTION_TYPE:
        raise ClientRefused(f"client_assertion, with client_assertion_type {CLIENT_ASSERTION_TYPE}, is missing")
    return form["client_assertion"]


def needed(form: Mapping[str, str], name: str) -> str:
    """The parameter of that name. Raises ExchangeRefused."""
    if name not in form:
        raise ExchangeRefused("invalid_request", f"{name} is missing")
    return form[name]


def _shaped(form: Mapping[str, str], name: str, shape: re.Pattern[str]) -> str:
    value = needed(form, name)
    if not shape.fullmatch(value):
        raise ExchangeRefused("invalid_request", f"{name} does not match {shape.pattern}")
    return value


def _scope(form: Mapping[str, str]) -> str:
    """Exactly one scope: an event has one purpose."""
    if "scope" not in form:
        raise ExchangeRefused("invalid_scope", "scope is missing")
    try:
        return check_scope(form["scope"])
    except MalformedToken as error:
        raise ExchangeRefused("invalid_scope", "scope must hold exactly one scope") from error


def _audience(form: Mapping[str, str]) -> str:
    if "audience" not in form:
        raise ExchangeRefused("invalid_request", "audience is missing")
    try:
        return check_audience(form["audience"])
    except MalformedToken as error:
        raise ExchangeRefused("invalid_target", "audience is not the name of an audience of consumers") from error


def _scopes(form: Mapping[str, str]) -> frozenset[str] | None:
    if "scope" not in form:
        return None
    try:
        return scopes_from(form["scope"].split(" "))
    except MalformedToken as error:
        raise ExchangeRefused("invalid_scope", str(error)) from error
