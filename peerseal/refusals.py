"""What stands before an application, whatever its framework: what a call needs there, what a refused caller is answered
(RFC 9457, RFC 6750 section 3), and what is logged and counted of it."""

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from peerseal.errors import (
    BadTransactionToken,
    ConfigurationError,
    ContentTooLarge,
    ContentUnreadable,
    Forbidden,
    InsufficientScope,
    MalformedToken,
    MissingToken,
    PeersealError,
    TokenError,
    TrustUnavailable,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.policies import check_scope
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.metrics import Metric, counted
from peerseal.runtime.options import check_flag, check_header_name, check_is, check_whole, shortened
from peerseal.verify.audit_log import AuditLog, OnVerified
from peerseal.verify.context import Transaction, current_request_id, new_request_id
from peerseal.verify.replay.guards import ReplayGuard
from peerseal.verify.request import Peer, Verifier

if TYPE_CHECKING:
    from peerseal.identity.identity import Identity

log = logging.getLogger("peerseal")

REFUSALS: Final = (TokenError, Forbidden, TrustUnavailable, ContentTooLarge, ContentUnreadable)
"""What verification of a request raises."""

_LONGEST = 200  # characters of anything unverified
ODD: Final = re.compile(r"//|/\.\.?(?:/|$)|[\\\0-\x1f\x7f]")
"""What applications read as another path than it says: Starlette's pattern for ``/admin`` takes a newline after it."""
PATTERN: Final = re.compile(r"[{}<>*?%#]")
"""Of patterns, queries and escapes: a path with one of these would stand for nothing that is meant by it."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a call needs: the scope, if any, and with ``transaction`` a user behind it; or nothing at all."""

    scope: str | None = None
    transaction: bool = False
    public: bool = False


PUBLIC: Final = Need(public=True)
"""Open to everybody; nobody is verified there."""
ANY_ALLOWED: Final = Need()
"""Open to every allowed caller."""


def check_need(need: object, where: str) -> Need:
    """The need itself. Raises ConfigurationError for what is none, or names a scope that no caller can have."""
    if not isinstance(need, Need):
        raise ConfigurationError(f"{where} is of type {type(need).__name__}; give a peerseal.asgi.Need")
    check_flag(f"transaction of {where}", need.transaction)
    check_flag(f"public of {where}", need.public)
    if need.scope is not None:
        check_needed_scope(need.scope, where)
    if need.public and (need.scope is not None or need.transaction):
        raise ConfigurationError(f"{where} is public, and needs something as well")
    return need


def check_needed_scope(scope: object, where: str) -> None:
    """Raises ConfigurationError for what is no scope: no caller could have it."""
    try:
        check_scope(scope)
    except MalformedToken as error:
        raise ConfigurationError(f"{where}: {scope!r:.60} is no scope (RFC 6749 section 3.3)") from error


def check_paths(needs: object) -> dict[str, Need]:
    """What paths need, each once. Raises ConfigurationError also for a path that no request can have."""
    if not isinstance(needs, Mapping):
        raise ConfigurationError(f"needs maps paths to what they need; it is of type {type(needs).__name__}")
    trunks: set[str] = set()
    for path, need in needs.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigurationError(f"{shortened(path)} in needs is no path; paths begin with a slash")
        if PATTERN.search(path):
            raise ConfigurationError(f"{path!r} in needs: paths stand for themselves; for patterns give a function")
        if ODD.search(path) or path != path.strip():
            raise ConfigurationError(f"{path!r} in needs: no request is served at such a path")
        if path.rstrip("/") in trunks:
            raise ConfigurationError(f"{path!r} in needs stands there twice, with and without a slash at its end")
        trunks.add(path.rstrip("/"))
        check_need(need, f"needs[{path!r}]")
    return dict(needs)


def check_options(header: object, max_body: object, report_only: object, verifier: object, identity: object) -> None:
    """Raises ConfigurationError for the name of no header, no number of bytes, no truth value, no verifier, no
    identity."""
    if identity is not None and not isinstance(getattr(identity, "external_prefix", None), str):
        raise ConfigurationError(f"identity={shortened(identity)}: expected a peerseal.Identity")
    check_header_name("header", header)
    check_whole("max_body", max_body)
    check_flag("report_only", report_only)
    if verifier is not None:
        check_is("verifier", verifier, Verifier, "a peerseal.Verifier")


def verifier_of(
    identity: "Identity | None", allow: Mapping[str, Iterable[str]] | None, replay: ReplayGuard | None
) -> Verifier:
    """Verifies the callers of that service. Raises ConfigurationError without one."""
    if identity is None:
        raise ConfigurationError("PeerAuth needs an identity or a verifier")
    guard = replay if replay is not None else identity.replay_guard()
    return Verifier(
        identity.trust,
        audience=identity.service,
        allow={} if allow is None else allow,
        replay=guard,
        clock=identity.clock,
    )


def audit_log_of(
    identity: "Identity | None", record: "Record", audit: bool | None, on_verified: OnVerified | None
) -> AuditLog:
    """The audit log of an adapter, in whose metrics the identity has a part from now on, as in those of ``record``.
    Without an ``audit`` of its own it is on or off as the identity's. Raises ConfigurationError."""
    if identity is None:
        return AuditLog(audit, on_verified=on_verified)
    made = AuditLog(identity.audit if audit is None else audit, on_verified=on_verified, clock=identity.clock)
    identity.add_metrics(record.collect)
    identity.add_metrics(made.collect)
    return made


def lacking(peer: Peer | None, scope: str, transaction: bool) -> PeersealError | None:
    """What a handler refuses that caller with, if it needs the scope, and a user."""
    if peer is None:
        return MissingToken("the handler was reached without a verified caller")
    if scope not in peer.scopes:
        return InsufficientScope(f"{peer.id} may not use {scope}")
    return lacking_user(peer) if transaction else None


def lacking_user(peer: Peer) -> PeersealError | None:
    """What a call is refused with where a user must stand behind it, and none does."""
    if peer.transaction is None:
        return BadTransactionToken("this is done for users only, and no transaction token came")
    if _is_a_services_own(peer.transaction):
        return BadTransactionToken("this is done for users only, and a service stands behind the transaction")
    return None


def _is_a_services_own(transaction: Transaction) -> bool:
    """An event that a service publishes for no user is in its own name, and so are the transaction that is minted for
    it, and events and transactions that follow: an id of the domain's, and nobody authenticated it."""
    domain = transaction.minter.partition("/")[0]
    own = transaction.user == transaction.workload or transaction.user.startswith(f"{domain}/")
    return own and not transaction.authentication


class Refused(NamedTuple):
    """An answer, before a framework makes its own of it."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(error: PeersealError) -> Refused:
    """The answer to a refused call. It says the code and nothing of the request."""
    status = error.status
    members = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": error.code}
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    if isinstance(error, TokenError):
        proven = "" if isinstance(error, MissingToken) else ' error="invalid_token"'
        headers["WWW-Authenticate"] = f"Bearer{proven}"
    elif isinstance(error, Forbidden):
        headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
    elif isinstance(error, TrustUnavailable):
        headers["Retry-After"] = str(error.retry_after)
    return Refused(status, headers, json.dumps(members).encode("ascii"))


class Record:
    """Counts refusals, and logs each with code, caller and kid as claimed, and request id; never a token."""

    def __init__(self) -> None:
        self._begin()
        in_each_child(self._begin)

    def _begin(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counter[str]:
        """How many there were in this process, by code: a copy."""
        with self._lock:
            return self._counts.copy()

    def collect(self) -> list[Metric]:
        """The same as metrics."""
        return [counted("peerseal_calls_refused_total", "Calls that were refused, by code.", "code", self.counts)]

    def add(self, what: str, error: PeersealError, authorization: str | None) -> None:
        """``what`` was done, within the current request."""
        with self._lock:
            self._counts[error.code] += 1
        caller, kid = _claimed(authorization)
        log.warning(
            "%s: %s; unverified caller %r, kid %r; request %s; %r",
            what,
            error.code,
            caller,
            kid,
            current_request_id() or new_request_id(),
            str(error)[:_LONGEST],
        )


def _claimed(authorization: str | None) -> tuple[str | None, str | None]:
    """Whom an unverified token claims to come from, and the kid that it names, as far as they can be read."""
    kid = None
    try:
        token = jose.parse(bearer_token(authorization))
        kid = token.header.kid[:_LONGEST]
        return str(strict_json_object(token.payload).get("iss"))[:_LONGEST], kid
    except TokenError:
        return None, kid
