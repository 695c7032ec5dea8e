"""Commands for tokens. ``peerseal inspect`` says what a token, a document, a checkpoint or the evidence of a split view
holds: nothing is verified, and no key is needed. ``peerseal sign`` prints the Authorization header of one request, for
programs without the SDK."""

import argparse
import json
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.own_identity import own_identity
from peerseal.commands.plain_words import note_to_json, of_evidence, of_jws, of_note
from peerseal.errors import ConfigurationError, DocumentRefused, MalformedToken, printable
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.frame import MAX_DOCUMENT
from peerseal.protocol.documents.history_statement import HISTORY_TYP
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import HTTP_TOKEN, b64url_decode, strict_json_object
from peerseal.protocol.hosts import has_one_host, is_valid_host
from peerseal.protocol.join import JoinToken
from peerseal.protocol.ledger.split_view import Evidence
from peerseal.protocol.plain import plain_text
from peerseal.protocol.tokens.assertion import ACCESS_TYP, ASSERTION_TYP
from peerseal.protocol.tokens.claims import LATEST_TIME
from peerseal.protocol.tokens.event import EVENT_TYP
from peerseal.protocol.tokens.introspection import SIGNED_TYP
from peerseal.protocol.tokens.proof import PROOF_TYP
from peerseal.protocol.tokens.request import REQUEST_LIFETIME, REQUEST_TYP
from peerseal.protocol.tokens.response import RESPONSE_TYP
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP
from peerseal.runtime.settings import read_bytes
from peerseal.runtime.terminal import say, say_json
from peerseal.runtime.times import in_words, utc
from peerseal.wsgi_environ import MAX_BODY

KINDS: Mapping[str, str] = {
    REQUEST_TYP: "request token",
    RESPONSE_TYP: "response token",
    EVENT_TYP: "event token",
    TRANSACTION_TYP: "transaction token",
    PROOF_TYP: "proof of possession",
    ASSERTION_TYP: "client assertion",
    ACCESS_TYP: "access token",
    SIGNED_TYP: "signed introspection",
    KeySetDocument.TYP: "signed JWK Set",
    KeySetPart.TYP: "part of a signed JWK Set",
    KeyStatement.TYP: "key statement",
    PolicyDocument.TYP: "policy document",
    DomainDocument.TYP: "domain document",
    FederationDocument.TYP: "federation document",
    RegistryKeys.TYP: "registry keys document",
    Changes.TYP: "list of changes",
    CurrentServices.TYP: "list of current services",
    HISTORY_TYP: "history statement",
}
"""What each ``typ`` is called."""
OTHER = "JWS of another kind"
JOIN_TOKEN = "join token"
CHECKPOINT = "checkpoint"
EVIDENCE = "evidence of a split view"

_TIMES = frozenset(("iat", "nbf", "exp", "auth_time", "active_from", "expires_at", "created_at", "time"))
_WIDTH = 80
_LONGEST_START = 24
"""Columns before a text that are kept free below; the names of our claims need 18."""
_MOST_SHOWN = 4096
"""Characters of a value; its whole text is for ``--json``."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a token or document says, unverified. ``header`` is empty for what is no JWS; ``words`` are sentences about
    what is hard to read."""

    kind: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    words: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """``{"kind", "verified": false, "words", "header", "claims"}``."""
        told = {"kind": self.kind, "verified": False, "words": list(self.words)}
        return {**told, "header": dict(self.header), "claims": dict(self.claims)}


def add_inspect(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "inspect",
        _print_inspected,
        summary="decode a token, a signed document or a checkpoint, without verifying it",
        description="Prints what a token, a signed document, a checkpoint or the evidence of a split view says. Nothing"
        " is verified.",
        examples=(
            "peerseal inspect eyJhbGciOiJSUzI1NiIs...",
            "curl -s $REGISTRY/v1/services/billing/jwks.jwt | peerseal inspect --json",
        ),
        exit_codes="0 done, 2 not readable as a token or document",
    )
    parser.add_argument(
        "token", nargs="?", default="-", metavar="TOKEN", help="the token, @FILE, or - for standard input [-]"
    )


def _print_inspected(arguments: argparse.Namespace) -> int:
    """Prints what was given. Raises ConfigurationError for what cannot be read."""
    found = inspect(given_text(arguments.token))
    if arguments.as_json:
        say_json(found.to_json(), indent=2)
    else:
        say(*lines_of(found, time.time()))
    return 0


def given_text(argument: str) -> str:
    """The text of the argument, a file or standard input. Raises OSError, or ConfigurationError, also for no text."""
    source = "@-" if argument == "-" else argument
    try:
        text = given_content(source[1:], MAX_DOCUMENT).decode() if source.startswith("@") else argument
    except UnicodeDecodeError as error:
        raise ConfigurationError("tokens and documents are text in UTF-8") from error
    if not text.strip():
        where = {"@-": "standard input", "": "the argument TOKEN"}.get(source.strip(), source[1:])
        raise ConfigurationError(f"{where} is empty: expected a token or a document")
    return text


def inspect(text: str) -> Inspected:
    """What a compact JWS, a join token, a checkpoint or the evidence of a split view says. An ``Authorization`` header
    and ``Bearer`` in front are passed over.

    Raises ConfigurationError, which names the part that cannot be read, and never quotes a secret.
    """
    token = bare_token(text)
    if token.startswith("{"):
        return _evidence(token)
    if "\n— " in token:
        return _checkpoint(f"{token}\n")
    if token.startswith("psj1."):
        join = JoinToken.parse(token)
        return Inspected(JOIN_TOKEN, {}, {"id": join.id, "pin": join.pin})
    segments = token.split(".")
    if len(segments) != 3:
        raise ConfigurationError(
            f"this has {len(segments)} segments: a token or document has three, with dots in between (RFC 7515)"
        )
    header, claims = _object(segments[0], "header"), _object(segments[1], "payload")
    _bytes(segments[2], "signature")
    typ = plain_text(header.get("typ"))
    return Inspected(KINDS.get(typ or "", OTHER), header, claims, tuple(of_jws(typ, claims)))


def _evidence(text: str) -> Inspected:
    try:
        evidence = Evidence.decode(text.encode("utf-8", "surrogateescape"))
    except DocumentRefused as error:
        raise ConfigurationError(f"this is JSON, and no evidence of a split view: {error}") from error
    return Inspected(EVIDENCE, {}, json.loads(text), tuple(of_evidence(evidence)))


def _checkpoint(note: str) -> Inspected:
    try:
        return Inspected(CHECKPOINT, {}, note_to_json(note), tuple(of_note(note)))
    except DocumentRefused as error:
        raise ConfigurationError(f"this has the lines of a checkpoint, and is none: {error}") from error


def bare_token(text: str) -> str:
    """The token without blanks around it, and without ``Authorization:`` and ``Bearer`` in front."""
    token = text.strip()
    for prefix in ("authorization:", "bearer "):
        if token[: len(prefix)].lower() == prefix:
            token = token[len(prefix) :].strip()
    return token


def _object(segment: str, name: str) -> dict[str, Any]:
    try:
        return strict_json_object(_bytes(segment, name))
    except MalformedToken as error:
        raise ConfigurationError(f"the {name} is no JSON object: {error}") from error


def _bytes(segment: str, name: str) -> bytes:
    try:
        return b64url_decode(segment)
    except MalformedToken as error:
        raise ConfigurationError(f"the {name} is not base64url: {error}") from error


def lines_of(found: Inspected, now: float) -> Iterator[str]:
    """What the command prints at the time ``now`` (seconds since the epoch), for a terminal of 80 columns."""
    yield f"{found.kind}, NOT VERIFIED"
    if found.words:
        yield "in words"
        for sentence in found.words:
            yield from wrapped("  ", _beginning(printable(sentence)))
        if not found.header:
            return  # the words say all that the claims do
    for title, members in (("header", found.header), ("claims", found.claims)):
        if members:
            yield title
            width = min(max(map(len, members)), _LONGEST_START - 4)
            for name, value in sorted(members.items()):
                yield from wrapped(f"  {name:{width}}  ", _beginning(_shown(name, value, now)))


def wrapped(start: str, text: str) -> Iterator[str]:
    """The text after ``start`` in lines of 80 columns, continued below itself where a line is full. A long
    ``start`` has a line of its own: below it, each line of the text would have that many blanks."""
    if len(start) > _LONGEST_START:
        yield start.rstrip()
        start = "    "
    for part in text.split("\n"):
        below = " " * len(start)
        # a name is easier to copy where it is not divided at a hyphen
        yield from textwrap.wrap(
            part, _WIDTH, initial_indent=start, subsequent_indent=below, break_on_hyphens=False
        ) or [start]
        start = below


def _beginning(text: str) -> str:
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[:_MOST_SHOWN]}... ({len(text)} characters in all; --json shows them)"


def _shown(name: str, value: object, now: float) -> str:
    if isinstance(value, str) and name not in _TIMES:
        return value
    if name in _TIMES and isinstance(value, int | float) and 0 <= value <= LATEST_TIME:
        return f"{value}  {utc(value)}, {in_words(value - now)}"
    return json.dumps(value, ensure_ascii=False)


# ---- peerseal sign

_CHANGED_ON_THE_WAY = re.compile(r"[^?]*/\.{1,2}(?:[/?]|\Z)|.*?[^!-~]|.*[#\[\]{}]", re.DOTALL)
"""What curl changes before it sends the target: dot segments, blanks and other characters, fragments, and the brackets
and braces of its globbing."""


def add_sign(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "sign",
        _print_header,
        summary="print the Authorization header of one request",
        description="Prints the Authorization header with which AUDIENCE accepts one request, once, within a minute.",
        examples=(
            'curl -H "$(peerseal sign billing GET http://billing:8080/a)" \\\n  http://billing:8080/a',
            "peerseal sign billing POST http://billing:8080/invoices \\\n  --data @new.json --type application/json",
        ),
        exit_codes="0 done, 1 the key is refused, 2 wrong usage or settings, 3 registry not reached, 5 the key waits"
        " for an operator",
        as_json="as JSON, with the lifetime in seconds",
    )
    parser.add_argument("audience", metavar="AUDIENCE", help="the service that is called")
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("url", metavar="URL", help="as it is called; the scheme and the host are not signed")
    parser.add_argument(
        "--data", default="", metavar="TEXT", help="the body: the text, @FILE, or @- for standard input"
    )
    parser.add_argument("--type", dest="content_type", metavar="TYPE", help="the Content-Type that is sent with it")


def _print_header(arguments: argparse.Namespace) -> int:
    """Prints the header. Raises as `own_identity` does, and ConfigurationError or UnsignableRequest for a request that
    cannot be signed."""
    method, target, body = method_of(arguments.method), target_of(arguments.url), given_body(arguments.data)
    headers = {} if arguments.content_type is None else {"content-type": arguments.content_type}
    with own_identity() as identity:
        token = identity.sign_request(arguments.audience, method=method, target=target, body=body, headers=headers)
    if arguments.as_json:
        say_json({"Authorization": f"Bearer {token}", "expires_in": REQUEST_LIFETIME})
    else:
        say(f"Authorization: Bearer {token}")
    return 0


def method_of(text: str) -> str:
    """The method in upper case. Raises ConfigurationError."""
    if not re.fullmatch(HTTP_TOKEN, text):
        raise ConfigurationError(f"{text!r} is no method: expected one such as GET")
    return text.upper()


def target_of(url: str) -> str:
    """The request-target (origin form, RFC 9112 section 3.2.1) that a client sends for the URL. Raises
    ConfigurationError for a URL that clients change before they send it. The error does not show a password."""
    if not _has_origin(url):
        raise ConfigurationError(
            f"{shown_url(url)}: no URL of a service: expected http(s)://host[:port]/path, without a user name"
        )
    target = url.split("://", 1)[1].removeprefix(urlsplit(url).netloc) or "/"
    target = f"/{target}" if target.startswith("?") else target
    if _CHANGED_ON_THE_WAY.match(target):
        raise ConfigurationError(
            f"clients change the target {target!r} before they send it: leave out dot segments and the fragment, and"
            " write blanks, brackets, braces and other characters with percent signs"
        )
    return target


def shown_url(url: str) -> str:
    """A URL for an error. One with a user's name is not shown: it may hold a password."""
    return "URL" if "@" in url else f"URL={url!r:.100}"


def _has_origin(url: str) -> bool:
    """Whether the URL begins with http(s), a host and, at most, a port."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and has_one_host(parts.netloc)
            and is_valid_host(parts.hostname, parts.port)
        )
    except ValueError:
        return False


def given_body(data: str) -> bytes:
    """The bytes of a body: of the text as the shell gave it, of ``@FILE``, or of standard input for ``@-``. Raises
    ConfigurationError."""
    return given_content(data[1:], MAX_BODY) if data.startswith("@") else data.encode("utf-8", "surrogateescape")


def given_content(file: str, largest: int) -> bytes:
    """The bytes of a file, or of standard input for ``-``. Raises ConfigurationError for more than ``largest``,
    and for a standard input that is closed."""
    if file != "-":
        return read_bytes(Path(file), file, largest)
    if sys.stdin is None:
        raise ConfigurationError("standard input is closed: give a file instead")
    content = sys.stdin.buffer.read(largest + 1)
    if len(content) > largest:
        raise ConfigurationError(f"standard input holds more than {largest} bytes")
    return content
