"""What the token endpoint is asked for, read strictly, and its refusals (RFC 6749 section 5.2): the form of every
grant, and what a token exchange asks for (RFC 8693 section 2.1)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl

from peerseal.errors import CodedError, MalformedToken
from peerseal.protocol.policies import check_audience, check_scope
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.protocol.tokens.event import PAYLOAD_HASH, TOPIC
from peerseal.protocol.tokens.transaction import ID

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"

_PARAMETERS = 30


class ExchangeRefused(CodedError):
    """A token that is not issued. Codes are RFC 6749's: ``invalid_request``, ``invalid_client``, ``invalid_grant``,
    ``invalid_scope``, ``invalid_target`` (RFC 8693 section 2.2.2), ``unsupported_grant_type``."""

    status = 400


class ClientRefused(ExchangeRefused):
    """The client did not prove which service it is. One answer for every reason; the log knows it."""

    status = 401

    def __init__(self, detail: str) -> None:
        super().__init__("invalid_client", detail)


@dataclass(frozen=True, slots=True)
class Issued:
    """The token of the answer, and what is said of it. ``expires_in`` is in seconds."""

    token: str = field(repr=False)
    expires_in: int
    scope: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """An event token for a user's, in the name of the client that the assertion proves."""

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
            transaction_id=_shaped(form, "transaction_id", ID),
            event_id=_shaped(form, "event_id", ID),
            topic=_shaped(form, "topic", TOPIC) if "topic" in form else None,
            payload_hash=_shaped(form, "event_payload_hash", PAYLOAD_HASH) if "event_payload_hash" in form else None,
        )


def _check_kinds(form: Mapping[str, str]) -> None:
    if "actor_token" in form or "actor_token_type" in form:
        raise ExchangeRefused("invalid_request", "the client is the actor, and no other")
    if needed(form, "subject_token_type") not in (ACCESS_TOKEN, ID_TOKEN, JWT):
        raise ExchangeRefused("invalid_request", "subject_token_type is not of a JWT")
    if form.get("requested_token_type", JWT) not in (JWT, ACCESS_TOKEN):
        raise ExchangeRefused("invalid_request", "requested_token_type is not of a JWT")
    if "resource" in form:
        raise ExchangeRefused("invalid_target", "consumers are named by audience")


def read_form(body: bytes) -> dict[str, str]:
    """The parameters (``application/x-www-form-urlencoded``), each once; one without a value is as good as none, and
    those that nobody here knows are let be (RFC 6749 section 3.2). Raises ExchangeRefused."""
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=_PARAMETERS
        )
    except ValueError as error:
        raise ExchangeRefused("invalid_request", "not a form") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise ExchangeRefused("invalid_request", "a parameter is given twice")
    return {name: value for name, value in form.items() if value}


def asserted(form: Mapping[str, str]) -> str:
    """The client's assertion, unverified. Raises ClientRefused where there is none."""
    if "client_assertion" not in form or form.get("client_assertion_type") != CLIENT_ASSERTION_TYPE:
        raise ClientRefused("no client assertion")
    return form["client_assertion"]


def needed(form: Mapping[str, str], name: str) -> str:
    """The parameter of that name. Raises ExchangeRefused."""
    if name not in form:
        raise ExchangeRefused("invalid_request", f"{name} is missing")
    return form[name]


def _shaped(form: Mapping[str, str], name: str, shape: re.Pattern[str]) -> str:
    value = needed(form, name)
    if not shape.fullmatch(value):
        raise ExchangeRefused("invalid_request", f"{name} is none")
    return value


def _scope(form: Mapping[str, str]) -> str:
    """Exactly one: an event has one purpose."""
    if "scope" not in form:
        raise ExchangeRefused("invalid_scope", "scope is missing")
    try:
        return check_scope(form["scope"])
    except MalformedToken as error:
        raise ExchangeRefused("invalid_scope", "not exactly one scope") from error


def _audience(form: Mapping[str, str]) -> str:
    if "audience" not in form:
        raise ExchangeRefused("invalid_request", "audience is missing")
    try:
        return check_audience(form["audience"])
    except MalformedToken as error:
        raise ExchangeRefused("invalid_target", "not an audience of consumers") from error
