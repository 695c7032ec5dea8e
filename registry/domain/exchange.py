"""What a token exchange asks for (RFC 8693 section 2.1), read strictly, and its refusals (RFC 6749 section 5.2)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl

from peerseal.errors import CodedError, MalformedToken
from peerseal.protocol.events import PAYLOAD_HASH, TOPIC
from peerseal.protocol.policies import check_audience, check_scope
from peerseal.protocol.transactions import ID

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ASSERTED: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"

_PARAMETERS = 30


class ExchangeRefused(CodedError):
    """An exchange that is not made. Codes are RFC 6749's: ``invalid_request``, ``invalid_client``, ``invalid_grant``,
    ``invalid_scope``, ``invalid_target`` (RFC 8693 section 2.2.2), ``unsupported_grant_type``."""

    status = 400


class ClientRefused(ExchangeRefused):
    """The client did not prove which service it is. One answer for every reason; the log knows it."""

    status = 401

    def __init__(self, detail: str) -> None:
        super().__init__("invalid_client", detail)


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
    def read(cls, body: bytes) -> Self:
        """From a form (``application/x-www-form-urlencoded``), each parameter once; one without a value is as good as
        none, and those that nobody here knows are let be (RFC 6749 section 3.2). Raises ExchangeRefused."""
        form = _parameters(body)
        if _needed(form, "grant_type") != GRANT:
            raise ExchangeRefused("unsupported_grant_type", "only the token exchange")
        if "client_assertion" not in form or form.get("client_assertion_type") != ASSERTED:
            raise ClientRefused("no client assertion")
        _check_kinds(form)
        return cls(
            assertion=form["client_assertion"],
            client_id=form.get("client_id"),
            subject_token=_needed(form, "subject_token"),
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
    if _needed(form, "subject_token_type") not in (ACCESS_TOKEN, ID_TOKEN, JWT):
        raise ExchangeRefused("invalid_request", "subject_token_type is not of a JWT")
    if form.get("requested_token_type", JWT) not in (JWT, ACCESS_TOKEN):
        raise ExchangeRefused("invalid_request", "requested_token_type is not of a JWT")
    if "resource" in form:
        raise ExchangeRefused("invalid_target", "consumers are named by audience")


def _parameters(body: bytes) -> dict[str, str]:
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


def _needed(form: Mapping[str, str], name: str) -> str:
    if name not in form:
        raise ExchangeRefused("invalid_request", f"{name} is missing")
    return form[name]


def _shaped(form: Mapping[str, str], name: str, shape: re.Pattern[str]) -> str:
    value = _needed(form, name)
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
