"""``peerseal verify``: the steps of verifying a request, an event, a transaction token or a signed document, each with
its result. The verifiers of services do the work. No token is used up: step 11 is not tried.

The arguments determine the kind that a token must have: a method means a request token, and a topic means an event
token. Without both, the token's header determines the kind.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.raw_request import MAX_HEAD, RawRequest, headers_of
from peerseal.commands.step_report import (
    ASCII_MARKS,
    DOCUMENT,
    EVENT,
    MARKS,
    REQUEST,
    TRANSACTION,
    Facts,
    Report,
    report,
)
from peerseal.commands.tokens import EVIDENCE, KINDS, bare_token, given_body, given_content, given_text, inspect
from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.identity.environment import settings_of, trust_options_in
from peerseal.identity.identity import Identity
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.history_statement import HISTORY_TYP, read_history
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import digest_header
from peerseal.protocol.names import REGISTRY, SCOPE, qualify
from peerseal.protocol.plain import plain_text
from peerseal.protocol.policies import ANYONE
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.protocol.tokens.event import EVENT_LIFETIME_CAP, EVENT_TYP, payload_hash
from peerseal.protocol.tokens.request import ALWAYS_BOUND, REQUEST_TYP
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP
from peerseal.runtime.options import check_pin
from peerseal.runtime.terminal import REGISTRY_UNREACHABLE, say, say_json, takes
from peerseal.runtime.times import utc
from peerseal.transport.fetch import check_urls
from peerseal.trust.beliefs import KeySource
from peerseal.trust.store import TrustStore
from peerseal.verify.event import EventVerifier
from peerseal.verify.received import value_of
from peerseal.verify.request import Verifier
from peerseal.verify.transaction import read_transaction
from peerseal.wsgi_environ import MAX_BODY

REFUSED = 1

Allow = Mapping[str, frozenset[str]]
"""Scopes by caller, as verifiers take them."""

_LEDGER_OF_DOMAIN = (DomainDocument, FederationDocument, Changes, CurrentServices)
_IN_LEDGER = {kind.TYP: kind for kind in (KeySetDocument, KeySetPart, KeyStatement, PolicyDocument, *_LEDGER_OF_DOMAIN)}
_OF_DOMAIN = (*(kind.TYP for kind in _LEDGER_OF_DOMAIN), RegistryKeys.TYP, HISTORY_TYP)
_DOCUMENTS = {*_IN_LEDGER, *_OF_DOMAIN}
_OF_SERVICE = _DOCUMENTS.difference(_OF_DOMAIN)
_NO_ALLOW: Final = "any service, no --allow"


def add_verify(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "verify",
        _show_verification,
        summary="show each step of verifying a request, a token or a document",
        description="Shows each step of verifying a request, an event, a transaction token or a signed document. The"
        " token is not used up.",
        examples=(
            "peerseal verify --http request.txt --audience billing --scope invoices:read",
            'peerseal verify "$TOKEN" --audience billing --method GET \\\n'
            "  --target /invoices/7 --allow shop=invoices:read",
        ),
        exit_codes="0 all steps hold, 1 refused, 2 wrong usage, 3 registry not reached",
    )
    parser.add_argument("token", nargs="?", metavar="TOKEN", help="the token, @FILE, or - for standard input")
    parser.add_argument("--http", metavar="FILE", help="the whole request (RFC 9112), or - for standard input")
    parser.add_argument("--audience", metavar="NAME", help="who is called [PEERSEAL_SERVICE]; for events required")
    parser.add_argument("--scope", help="the scope that the route needs")
    parser.add_argument(
        "--allow", action="append", metavar="CALLER=SCOPES", help="who may call, scopes joined by commas; repeatable"
    )
    parser.add_argument("--data", default="", metavar="TEXT", help="body or payload: the text, @FILE, or @- for stdin")
    request = parser.add_argument_group("a request")
    request.add_argument("--method", metavar="M")
    request.add_argument("--target", metavar="T", help="path and query as they were sent")
    request.add_argument("--header", action="append", default=[], metavar="'Name: value'", help="repeatable")
    event = parser.add_argument_group("an event")
    event.add_argument("--topic", help="where the event came from")
    event.add_argument("--event-id", metavar="ID", help="what the message says of itself, as --transaction-id")
    event.add_argument("--transaction-id", metavar="ID")
    document = parser.add_argument_group("a document")
    document.add_argument("--subject", metavar="SERVICE", help="the service that it must be about")


def _show_verification(arguments: argparse.Namespace) -> int:
    """Prints the steps. Raises ConfigurationError or InvalidName for what cannot be tried."""
    verify = _verification(arguments)
    with _trust_store() as trust:
        found = verify(trust)
    if arguments.as_json:
        say_json(found.to_json(), indent=2)
    else:
        say(*found.lines(MARKS if takes("".join(MARKS.values())) else ASCII_MARKS))
    if found.error is None:
        return 0
    return REGISTRY_UNREACHABLE if found.unreachable else REFUSED


@contextmanager
def _trust_store() -> Iterator[TrustStore]:
    """The trust store of the service in the environment, with its pin and copies; without PEERSEAL_SERVICE that of a
    reader without keys. Raises ConfigurationError."""
    settings = settings_of(os.environ)
    if settings.text("PEERSEAL_SERVICE") is not None:
        trust = Identity.from_env().trust  # not started: no key is made or registered
    else:
        urls = settings.checked("PEERSEAL_REGISTRY_URL", check_urls) or settings.required("PEERSEAL_REGISTRY_URL")
        pin, copies = settings.checked("PEERSEAL_REGISTRY_PIN", check_pin), settings.path("PEERSEAL_CACHE_DIR")
        trust = TrustStore(urls, pin=pin, cache_dir=copies, **trust_options_in(settings))
    try:
        yield trust
    finally:
        trust.stop()


def _verification(arguments: argparse.Namespace) -> Callable[[TrustStore], Report]:
    """What is to be verified, and how. Raises ConfigurationError."""
    if (arguments.http is None) == (arguments.token is None):
        raise ConfigurationError("give either a token or --http FILE")
    apart = arguments.method, arguments.target, arguments.data, *arguments.header
    if arguments.http is not None and any(apart):
        raise ConfigurationError("--http has the whole request: leave out --method, --target, --header and --data")
    of_request = arguments.http is not None or arguments.method is not None or arguments.target is not None
    of_event = [name for name in ("topic", "event_id", "transaction_id") if getattr(arguments, name) is not None]
    if of_request and of_event:
        raise ConfigurationError("a token is good for a request or for an event: leave out --topic, or the request")
    if arguments.subject is not None and (of_request or of_event):
        raise _no_subject(f"{'a request' if of_request else 'an event'} token")
    if of_request:
        return _request(arguments)
    token = bare_token(given_text(arguments.token))
    return _event(arguments, token) if of_event else _by_typ(token, arguments.subject)


def _request(arguments: argparse.Namespace) -> Callable[[TrustStore], Report]:
    if arguments.http is not None:
        request = RawRequest.parse(given_content(arguments.http, MAX_HEAD + MAX_BODY))
    elif arguments.method is None or arguments.target is None:
        raise ConfigurationError("a request has both: --method and --target")
    else:
        token = bare_token(given_text(arguments.token))
        headers = {**headers_of(arguments.header), "authorization": f"Bearer {token}"}
        request = RawRequest(arguments.method, arguments.target, headers, given_body(arguments.data))
    audience = arguments.audience or settings_of(os.environ).text("PEERSEAL_SERVICE")
    if audience is None:
        raise ConfigurationError(
            "--audience is missing, and PEERSEAL_SERVICE is not set: name the service that is called"
        )
    allow, scope = allowed(arguments.allow), arguments.scope
    return lambda trust: verify_request(trust, request, audience=audience, allow=allow, scope=scope)


def _event(arguments: argparse.Namespace, token: str) -> Callable[[TrustStore], Report]:
    if arguments.audience is None or arguments.topic is None:
        raise ConfigurationError("an event needs --topic, and --audience: the audience of its consumers")
    payload, ids = given_body(arguments.data), (arguments.event_id, arguments.transaction_id)
    message = Message(token, payload, arguments.topic, *ids)
    audience, allow, scope = arguments.audience, allowed(arguments.allow), arguments.scope
    return lambda trust: verify_event(trust, message, audience=audience, allow=allow, scope=scope)


def _by_typ(token: str, subject: str | None) -> Callable[[TrustStore], Report]:
    found = inspect(token)
    typ = plain_text(found.header.get("typ"))
    if subject is not None and typ not in _OF_SERVICE:
        raise _no_subject(f"a {found.kind}")
    if typ == TRANSACTION_TYP:
        return lambda trust: verify_transaction(trust, token)
    if typ in _DOCUMENTS:
        return lambda trust: verify_document(trust, token, typ, subject)
    if typ == REQUEST_TYP:
        raise ConfigurationError("a request token needs --method and --target, or the whole request with --http")
    if typ == EVENT_TYP:
        raise ConfigurationError("an event token needs --topic, --audience, and the payload with --data")
    if found.kind == EVIDENCE:
        raise ConfigurationError("the evidence of a split view is checked by: peerseal evidence verify FILE")
    raise ConfigurationError(
        f"a {found.kind} has no steps here: expected a request, event or transaction token, or a document"
    )


def _no_subject(kind: str) -> ConfigurationError:
    return ConfigurationError(f"--subject is for documents about a service, not for {kind}: leave it out")


def allowed(options: Iterable[str] | None) -> Allow | None:
    """The callers and scopes in options such as ``shop=invoices:read,invoices:write``; None without options."""
    if options is None:
        return None
    found: dict[str, frozenset[str]] = {}
    for option in options:
        caller, _, scopes = option.partition("=")
        found[caller] = found.get(caller, frozenset()) | frozenset(filter(None, scopes.split(",")))
    return found


# ---- each kind


def verify_request(
    trust: KeySource,
    request: RawRequest,
    *,
    audience: str,
    allow: Allow | None = None,
    scope: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Steps 1 to 10 of `peerseal.verify.request`, with the token in the request's Authorization header. Without
    ``allow`` any service of the domain may use the scope. Raises ConfigurationError or InvalidName."""
    token = bare_token(request.headers.get("authorization", ""))
    claims, notes = _claims(token), {}
    if allow is None:
        allow, notes[3] = {ANYONE: frozenset(filter(None, (scope,)))}, _NO_ALLOW
    notes[9] = "present" if "tth" in claims else "none"
    notes[10] = scope or "none needed, no --scope"
    verifier = Verifier(trust, audience=audience, allow=allow, clock=clock)

    parts: dict[str, Any] = {"method": request.method, "target": request.target, "body": request.body}

    def verify() -> Facts:
        unverified = verifier.read(bearer_token(request.headers.get("authorization")))
        peer = verifier.check(unverified, headers=request.headers, scope=scope, **parts).peer
        facts = {"caller": peer.id, "kid": peer.kid, "scopes": _joined(peer.scopes)}
        if peer.transaction is None:
            return facts
        return {**facts, "transaction": peer.transaction.id, "user": peer.transaction.user}

    return report(REQUEST, verify, notes=notes, differences=lambda: _differences(claims, request))


def _differences(claims: Mapping[str, Any], request: RawRequest) -> dict[str, tuple[str, str]]:
    """Each bound part of the request that differs from what the token (of a good signature) binds."""
    found = {}
    if claims["method"] != request.method:
        found["method"] = claims["method"], request.method
    for name, digest, content, shown in (
        ("target", digest_header(request.target.encode("utf-8", "surrogateescape")), "target_digest", request.target),
        ("body", digest_header(request.body), "content_digest", f"{len(request.body)} bytes"),
    ):
        if claims[content] != digest:
            found[name] = claims[content], f"{digest} ({shown})"
    for name in sorted({*ALWAYS_BOUND, *claims["headers"]}):
        signed, received = value_of(claims["headers"], name), value_of(request.headers, name)
        if signed != received:
            found[f"header {name}"] = signed or "none", received or "none"
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """The message of an event: its token and payload, the topic that it came from, and the ids that it gives elsewhere,
    if it does."""

    token: str = field(repr=False)
    payload: bytes = field(repr=False)
    topic: str
    event_id: str | None = None
    transaction_id: str | None = None

    def differences(self, claims: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Each part that differs from what the token binds."""
        received = {
            "topic": self.topic,
            "event_payload_hash": payload_hash(self.payload),
            "event_id": self.event_id,
            "transaction_id": self.transaction_id,
        }
        pairs = {name: (claims.get(name, "none"), got) for name, got in received.items() if got is not None}
        return {name: (signed, got) for name, (signed, got) in pairs.items() if signed != got}


def verify_event(
    trust: KeySource,
    message: Message,
    *,
    audience: str,
    allow: Allow | None = None,
    scope: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """The steps of `peerseal.verify.event`. Without ``allow`` any service of the domain, also by the registry's
    exchange, may send the scope that the token names. Raises ConfigurationError or InvalidName."""
    claims, notes = _claims(message.token), {7: "of any age"}
    if allow is None:
        allow, notes[3] = _allow_scope_of(claims), _NO_ALLOW
    oldest = timedelta(seconds=EVENT_LIFETIME_CAP)
    try:
        verifier = EventVerifier(trust, audience=audience, allow=allow, max_age=oldest, audit=False, clock=clock)
    except MalformedToken as error:
        raise ConfigurationError(f"--audience: {error}") from error
    ids = {"event_id": message.event_id, "transaction_id": message.transaction_id}

    def verify() -> Facts:
        headers = {"authorization": f"Bearer {message.token}"}
        event = verifier.verify(message.payload, headers, topic=message.topic, scope=scope, **ids)
        proven = {"publisher": event.issuer, "kid": event.kid, "user": event.user, "scope": event.scope}
        return {**proven, "event": event.id, "transaction": event.transaction_id}

    return report(EVENT, verify, notes=notes, differences=lambda: message.differences(claims))


def _allow_scope_of(claims: Mapping[str, Any]) -> Allow:
    scope = claims.get("scope")
    scopes = frozenset((scope,) if isinstance(scope, str) and SCOPE.fullmatch(scope) else ())
    return {ANYONE: scopes, REGISTRY: scopes}


def verify_transaction(trust: KeySource, token: str, *, clock: Callable[[], float] = time.time) -> Report:
    """The steps of `peerseal.verify.transaction.read_transaction`."""

    def verify() -> Facts:
        transaction = read_transaction(trust, token, now=clock(), leeway=LEEWAY)
        return {
            "minter": transaction.minter,
            "user": transaction.user,
            "transaction": transaction.id,
            "scopes": _joined(transaction.scopes),
            "asked for by": transaction.workload,
        }

    return report(TRANSACTION, verify)


def verify_document(trust: TrustStore, jws: str, typ: str, subject: str | None = None) -> Report:
    """The checks of the trust store for a document of one of the kinds that the registry or its root signs. A document
    about a service must be about ``subject``, where that is given. Raises InvalidName."""
    of_service = typ in _OF_SERVICE
    untried = {5: "no --subject"} if of_service and subject is None else {}

    def verify() -> Facts:
        root = trust.reader.registry_keys()
        if typ == HISTORY_TYP:
            statement = read_history(jws, root.root, domain=root.subject, now=time.time())
            return {"sub": statement.domain, "signed": utc(statement.issued_at)}
        expected = root.subject if not of_service else subject and qualify(subject, root.subject)
        document = (
            trust.reader.newer_root(jws) or root
            if typ == RegistryKeys.TYP
            else trust.reader.read(_IN_LEDGER[typ], jws, expected)
        )
        times = {"signed": utc(document.issued_at), "ends": utc(document.expires_at)}
        return {"sub": document.subject, **times, "root": root.root.thumbprint}

    return report(replace(DOCUMENT, name=KINDS[typ], untried=untried), verify)


def _claims(token: str) -> Mapping[str, Any]:
    """The claims, not verified; none where the token cannot be read."""
    try:
        return inspect(token).claims
    except ConfigurationError:
        return {}


def _joined(scopes: Iterable[str]) -> str:
    return " ".join(sorted(scopes)) or "none"
