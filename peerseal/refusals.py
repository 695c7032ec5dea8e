"""What the adapters of all frameworks share: the options of the check before an application, what a call needs there,
and how a refused call is logged and counted."""

import logging
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

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
from peerseal.protocol.encoding import strict_json_object, target_digest
from peerseal.protocol.names import check_scope
from peerseal.protocol.problem_document import Problem, problem_of
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.log_lines import fields
from peerseal.runtime.metrics import Metric, counted
from peerseal.runtime.options import check_flag, check_header_name, check_is, check_whole, shortened
from peerseal.signed_responses import MAX_SIGNED_BODY, ResponseSigning, SignResponses, check_signing
from peerseal.verify.audit_log import AuditLog, OnVerified
from peerseal.verify.context import Transaction, current_request_id, new_request_id
from peerseal.verify.replay.guards import ReplayGuard
from peerseal.verify.request import Peer, Verifier
from peerseal.verify.target import check_external_prefix, is_origin_form
from peerseal.wsgi_environ import MAX_BODY

if TYPE_CHECKING:
    from peerseal.identity.identity import Identity

log = logging.getLogger("peerseal")

REFUSALS: Final = (TokenError, Forbidden, TrustUnavailable, ContentTooLarge, ContentUnreadable)
"""What verification of a request raises."""

AUTHORIZATION: Final = "Authorization"
"""The default header of tokens."""
_ADVICE: Final[Mapping[str, str]] = {
    "missing_token": "does the caller use identity.session, and does a proxy pass Authorization on?",
    "unknown_key": "do both services have the same PEERSEAL_REGISTRY_URL?",
    "wrong_audience": "does the caller's session name this service, and does its URL lead here?",
    "expired": "compare the clocks of both hosts (NTP)",
    "not_yet_valid": "compare the clocks of both hosts (NTP)",
    "wrong_binding": "does a proxy or a middleware alter the method, the body or the headers?",
    "replayed": "does a proxy send requests again?",
    "caller_not_allowed": "name the caller in allow= and in the registry's policy",
    "insufficient_scope": "grant the scope in allow= and in the registry's policy",
    "split_view": "verify the evidence in split-views/ of the cache folder: docs/how-to/split-view.md",
    "trust_unavailable": "run `peerseal doctor` on this host: it checks the registry, the clocks and the replay guard",
}
"""What to look for where a call is refused with that code: docs/reference/errors.md has all causes."""
_MAX_SHOWN = 200  # characters of a value that is not verified


@dataclass(frozen=True, slots=True)
class Need:
    """What a call needs: the scope, if any, and with ``transaction`` a user; or nothing, where it is ``public``."""

    scope: str | None = None
    transaction: bool = False
    public: bool = False


PUBLIC: Final = Need(public=True)
"""Open to all calls; no caller is verified."""
ANY_ALLOWED: Final = Need()
"""Open to each allowed caller."""


def check_need(need: object, where: str) -> Need:
    """The need itself. Raises ConfigurationError for any other value, and for a scope that no caller can have."""
    if not isinstance(need, Need):
        raise ConfigurationError(f"{where} is of type {type(need).__name__}; give a peerseal.asgi.Need")
    check_flag(f"transaction of {where}", need.transaction)
    check_flag(f"public of {where}", need.public)
    if need.scope is not None:
        check_needed_scope(need.scope, where)
    if need.public and (need.scope is not None or need.transaction):
        raise ConfigurationError(f"{where} is public and needs a scope or a user: expected one of both")
    return need


def check_needed_scope(scope: object, where: str) -> None:
    """Raises ConfigurationError for an invalid scope: no caller can have it."""
    try:
        check_scope(scope)
    except MalformedToken as error:
        raise ConfigurationError(f"{where}: {scope!r:.60} is no scope (RFC 6749 section 3.3)") from error


class PeerAuthOptions(TypedDict, total=False):
    """The options of each adapter's ``PeerAuth``; `peerseal.flask.PeerAuth` describes them."""

    allow: Mapping[str, Iterable[str]] | None
    report_only: bool
    header: str
    max_body: int
    external_prefix: str | None
    verifier: Verifier | None
    replay: ReplayGuard | None
    audit: bool | None
    on_verified: OnVerified | None
    sign_responses: SignResponses
    bind_response_headers: Collection[str]
    max_signed_body: int


class Gate:
    """The check before one application. Each framework's adapter does the check itself. Raises ConfigurationError."""

    def __init__(self, identity: "Identity | None", record: "Record", **options: Unpack[PeerAuthOptions]) -> None:
        check_options(identity, **options)
        prefix, verifier = options.get("external_prefix"), options.get("verifier")
        if prefix is None:
            prefix = identity.external_prefix if identity is not None else ""
        self.external_prefix = check_external_prefix(prefix)
        if verifier is None:
            verifier = _verifier_of(identity, options.get("allow"), options.get("replay"))
        self.verifier = verifier
        self.header = options.get("header", AUTHORIZATION).lower()
        self.max_body = options.get("max_body", MAX_BODY)
        self.report_only = options.get("report_only", False)
        self.record = record
        self.audit = _audit_log_of(identity, record, options.get("audit"), options.get("on_verified"))
        self.responses: ResponseSigning | None = None
        if options.get("sign_responses", False):
            self.responses = ResponseSigning(identity, *_signing_options(**options))

    def refused(
        self, error: PeersealError, method: str, target: str, authorization: str | None, *, reported: bool = False
    ) -> str:
        """Count and log a refusal, or one that is only ``reported``. Returns the request id, for the answer."""
        call = RefusedCall(method, target, authorization, self.verifier.audience, self.external_prefix)
        return self.record.add(error, call, reported=reported)


def refusal_answer(error: PeersealError, request_id: str) -> Problem:
    """The answer to a refused call. Its ``X-Request-Id`` finds the line in the log."""
    answer = problem_of(error)
    return answer._replace(headers={**answer.headers, "X-Request-Id": request_id})


def check_options(identity: "Identity | None", **options: Unpack[PeerAuthOptions]) -> None:
    """Raises TypeError for an unknown option, as for any unknown argument, and ConfigurationError for a value of the
    wrong type, an invalid header name and an invalid number of bytes."""
    unknown = options.keys() - PeerAuthOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"PeerAuth has no option {', '.join(sorted(unknown))}")
    if identity is not None and not isinstance(getattr(identity, "external_prefix", None), str):
        raise ConfigurationError(f"identity={shortened(identity)}: expected a peerseal.Identity")
    check_header_name("header", options.get("header", AUTHORIZATION))
    check_whole("max_body", options.get("max_body", MAX_BODY))
    check_flag("report_only", options.get("report_only", False))
    check_signing(*_signing_options(**options))
    if options.get("verifier") is not None:
        check_is("verifier", options["verifier"], Verifier, "a peerseal.Verifier")


def _signing_options(**options: Unpack[PeerAuthOptions]) -> tuple[SignResponses, Collection[str], int]:
    """The options of signed responses, in the order of `ResponseSigning`."""
    mode, bound = options.get("sign_responses", False), options.get("bind_response_headers", ())
    return mode, bound, options.get("max_signed_body", MAX_SIGNED_BODY)


def _verifier_of(
    identity: "Identity | None", allow: Mapping[str, Iterable[str]] | None, replay: ReplayGuard | None
) -> Verifier:
    if identity is None:
        raise ConfigurationError("PeerAuth needs an identity or a verifier")
    return Verifier(
        identity.trust,
        audience=identity.service,
        allow={} if allow is None else allow,
        replay=identity.replay_guard() if replay is None else replay,
        clock=identity.clock,
    )


def _audit_log_of(
    identity: "Identity | None", record: "Record", audit: bool | None, on_verified: OnVerified | None
) -> AuditLog:
    """The audit log; the identity's metrics include its counts and those of ``record``."""
    if identity is None:
        return AuditLog(audit, on_verified=on_verified)
    made = AuditLog(identity.audit if audit is None else audit, on_verified=on_verified, clock=identity.clock)
    identity.add_metrics(record.collect)
    identity.add_metrics(made.collect)
    return made


def lacking(peer: Peer | None, scope: str, transaction: bool) -> PeersealError | None:
    """Why a handler that needs the scope, and with ``transaction`` a user, refuses this caller; None if it does not."""
    if peer is None:
        return MissingToken("the handler was reached without a verified caller")
    return lacking_scope(peer, scope) or (lacking_user(peer) if transaction else None)


def lacking_scope(peer: Peer, scope: str | None) -> PeersealError | None:
    """Why a call that needs the scope, if any, is refused; None where the caller has it."""
    if scope is None or scope in peer.scopes:
        return None
    return InsufficientScope(f"{peer.id} may not use {scope or 'a path that has no entry in needs=, or is ambiguous'}")


def lacking_user(peer: Peer) -> PeersealError | None:
    """Why a call that must be made for a user is refused; None where it is made for one."""
    if peer.transaction is None:
        return BadTransactionToken("this call must be made for a user, and no transaction token came")
    if _is_of_a_service(peer.transaction):
        return BadTransactionToken(f"this call must be made for a user, and {peer.transaction.user} is a service")
    return None


def _is_of_a_service(transaction: Transaction) -> bool:
    """An event that a service publishes for no user has the service's id as its user and no authentication, and so have
    the transactions and events that follow from it."""
    domain = transaction.minter.partition("/")[0]
    own = transaction.user == transaction.workload or transaction.user.startswith(f"{domain}/")
    return own and not transaction.authentication


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """What arrived of a refused call: its method, ``target`` as the server received it, and the header with the token;
    and the ``audience`` and ``external_prefix`` that were expected."""

    method: str
    target: str
    authorization: str | None
    audience: str
    external_prefix: str


class Record:
    """Counts refusals, and logs each with code, method, path, claimed caller, kid and audience, and request id; never a
    token."""

    def __init__(self) -> None:
        self._begin()
        in_each_child(self._begin)

    def _begin(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counter[str]:
        """A copy of the counts of this process, by code."""
        with self._lock:
            return self._counts.copy()

    def collect(self) -> list[Metric]:
        """The same as metrics."""
        return [counted("peerseal_calls_refused_total", "Calls that were refused, by code.", "code", self.counts)]

    def add(self, error: PeersealError, call: RefusedCall, *, reported: bool = False) -> str:
        """The call was refused, or would have been where the refusal is only ``reported``. Returns the id of the
        request, which is in the line of the log."""
        with self._lock:
            self._counts[error.code] += 1
        request_id, claimed = current_request_id() or new_request_id(), _claimed(call.authorization)
        log.warning(
            "%s: %s; %r %r; unverified caller %r, kid %r, audience %r, expected %r; request %s; %r%s",
            "would refuse" if reported else "refused",
            error.code,
            call.method[:_MAX_SHOWN],
            _without_query(call.target)[:_MAX_SHOWN],
            claimed.caller,
            claimed.kid,
            claimed.audience,
            call.audience,
            request_id,
            str(error)[:_MAX_SHOWN],
            _hint(error.code, claimed, call),
            extra=_fields(error, call, claimed, reported, request_id),
        )
        return request_id


@dataclass(frozen=True, slots=True)
class _Claimed:
    """What an unverified token claims, as far as it can be read."""

    caller: str | None = None
    kid: str | None = None
    audience: str | None = None
    target_digest: object = None


def _fields(
    error: PeersealError, call: RefusedCall, claimed: _Claimed, reported: bool, request_id: str
) -> dict[str, Any]:
    """The same for logs in JSON. What the token claims is marked as unverified."""
    return fields(
        code=error.code,
        reported_only=reported,
        method=call.method[:_MAX_SHOWN],
        path=call.target.partition("?")[0][:_MAX_SHOWN],
        unverified_caller=claimed.caller,
        unverified_kid=claimed.kid,
        unverified_audience=claimed.audience,
        request_id=request_id,
    )


def _without_query(target: str) -> str:
    """The target for the log. A query may hold tokens, so it is left out."""
    path, mark, _ = target.partition("?")
    return f"{path}{mark and '?...'}"


def _claimed(authorization: str | None) -> _Claimed:
    kid = None
    try:
        token = jose.parse(bearer_token(authorization))
        kid = token.header.kid[:_MAX_SHOWN]
        claims = strict_json_object(token.payload)
    except TokenError:
        return _Claimed(kid=kid)
    caller, audience = (str(claims.get(name))[:_MAX_SHOWN] for name in ("iss", "aud"))
    return _Claimed(caller, kid, audience, claims.get("target_digest"))


def _hint(code: str, claimed: _Claimed, call: RefusedCall) -> str:
    """What to look for: the prefix, where the token is signed for another target than the one that arrived."""
    expected = call.external_prefix + call.target
    signed = claimed.target_digest if isinstance(claimed.target_digest, str) and is_origin_form(expected) else None
    if signed is not None and signed != target_digest(expected):
        now = f"now {call.external_prefix}" if call.external_prefix else "not set"
        return f"; signed for another target: does a proxy strip a prefix? Set PEERSEAL_EXTERNAL_PREFIX to it ({now})"
    return f"; {_ADVICE[code]}" if code in _ADVICE else ""
