"""The questions of local programs: the JSON of ``POST /sign`` and ``POST /verify``.

A question describes a request. Its body is one of ``body`` (text, sent as UTF-8), ``body_base64``, or
``content_digest``, the SHA-256 as RFC 9530 writes it; none of them is an empty body.
"""

import binascii
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pybase64

from peerseal.errors import CodedError, MalformedToken
from peerseal.protocol.encoding import HTTP_TOKEN, strict_json_object
from peerseal.protocol.tokens.bearer import BLANKS

_REQUEST = ("method", "target", "headers", "body", "body_base64", "content_digest")
_BODIES = _REQUEST[3:]
_METHOD = re.compile(HTTP_TOKEN)


class QuestionRefused(CodedError, status=400):
    """The agent cannot read a question. The detail is for the local program that asks."""


class DescribedRequest(NamedTuple):
    """A request, as a question describes it. ``headers`` has lower-case names. ``content_digest`` is None where the
    question has the ``body`` itself."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    content_digest: str | None


class SignQuestion(NamedTuple):
    """``POST /sign``: a token for this request to ``audience``."""

    audience: str
    request: DescribedRequest
    ctx: Mapping[str, Any] | None


class VerifyQuestion(NamedTuple):
    """``POST /verify``: who made this request, and may it use ``scope``? With ``transaction`` it must be made for a
    user. Without ``token`` the token is in the request's header Authorization."""

    token: str | None
    request: DescribedRequest
    scope: str | None
    transaction: bool


def read_sign(data: bytes) -> SignQuestion:
    """Raises QuestionRefused."""
    members = _Members(data, (*_REQUEST, "audience", "ctx"))
    return SignQuestion(members.required("audience"), members.request(), members.member("ctx", dict))


def read_verify(data: bytes) -> VerifyQuestion:
    """Raises QuestionRefused."""
    members = _Members(data, (*_REQUEST, "token", "scope", "transaction"))
    token, scope = members.member("token", str), members.member("scope", str)
    return VerifyQuestion(token, members.request(), scope, bool(members.member("transaction", bool)))


class _Members:
    """The members of a question."""

    def __init__(self, data: bytes, known: tuple[str, ...]) -> None:
        try:
            self._given = strict_json_object(data)
        except MalformedToken as error:
            raise _refused(str(error)) from error
        if unknown := sorted(self._given.keys() - set(known)):
            raise _refused(f"unknown member {unknown[0]!r}; known are {', '.join(known)}")

    def member(self, name: str, kind: type) -> Any:
        """The value; None where there is none, or null."""
        value = self._given.get(name)
        if value is not None and type(value) is not kind:
            raise _refused(f"{name} is of type {type(value).__name__}, expected {kind.__name__}")
        return value

    def required(self, name: str) -> str:
        """A text that must be there."""
        value: str | None = self.member(name, str)
        if not value:
            raise _refused(f"{name} is missing")
        return value

    def request(self) -> DescribedRequest:
        """The request that the question is about."""
        if len(given := [name for name in _BODIES if self.member(name, str) is not None]) > 1:
            raise _refused(f"{' and '.join(given)} are given, expected one of them")
        digest: str | None = self.member("content_digest", str)
        return DescribedRequest(self._method(), self.required("target"), self._headers(), self._body(), digest)

    def _method(self) -> str:
        method = self.required("method")
        if not _METHOD.fullmatch(method):
            raise _refused(f"method is {method!r:.60}, expected a token such as GET (RFC 9110 section 9.1)")
        return method

    def _body(self) -> bytes:
        encoded: str | None = self.member("body_base64", str)
        if encoded is None:
            return str(self.member("body", str) or "").encode("utf-8")
        try:
            return pybase64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refused("body_base64 is not base64 (RFC 4648 section 4)") from error

    def _headers(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name, value in (self.member("headers", dict) or {}).items():
            if type(value) is not str:
                raise _refused(f"the header {name!r:.60} is of type {type(value).__name__}, expected str")
            if name.lower() in found:
                raise _refused(f"the header {name!r:.60} is given twice: names have no case")
            found[name.lower()] = value.strip(BLANKS)
        return found


def _refused(detail: str) -> QuestionRefused:
    return QuestionRefused("malformed_body", detail)
