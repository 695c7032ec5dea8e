"""Audit of accepted calls and events and of minted transactions: one JSON line each on the logger ``peerseal.audit``.

A record names the caller, the action and the user by ids only: no token, no body, no query, and the route's pattern
instead of the path. The audit never changes an answer: the failure of a hook or a log is logged and counted, and the
call goes on: an attacker who can break a log cannot stop a service.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeVar

from peerseal.errors import ConfigurationError
from peerseal.protocol import jose
from peerseal.runtime.metrics import Metric, Tally
from peerseal.runtime.options import check_callable, check_flag
from peerseal.runtime.settings import SettingsReader
from peerseal.verify.context import Transaction, current_request_id

if TYPE_CHECKING:
    from peerseal.verify.event import Event
    from peerseal.verify.request import Peer

T = TypeVar("T")

AUDIT: Final = "PEERSEAL_AUDIT"
"""The setting that turns the lines off."""

log = logging.getLogger("peerseal")
_lines = logging.getLogger("peerseal.audit")


@dataclass(frozen=True, slots=True)
class Accepted:
    """One accepted call or event, or one minted transaction. A member that does not apply is None.

    ``kind`` is ``call``, ``event`` or ``transaction`` (a minted one). ``time`` is in seconds since the epoch.
    ``caller`` is the service id that called, published or minted, ``kid`` the key that signed, ``jti`` the token's id
    (of a minted transaction, the transaction's). ``user`` is the user's name at ``user_issuer``, ``scope`` what was
    asked for; ``route`` is the pattern of the route, ``topic`` and ``event_id`` are an event's. ``request_id`` may be
    chosen by the client: it connects lines and proves nothing.
    """

    kind: str
    time: float
    caller: str
    kid: str
    jti: str
    audience: str
    scope: str | None = None
    user: str | None = None
    user_issuer: str | None = None
    transaction: str | None = None
    method: str | None = None
    route: str | None = None
    topic: str | None = None
    event_id: str | None = None
    request_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The members that are not None, with the time in UTC as in RFC 3339."""
        members = {name: getattr(self, name) for name in _MEMBERS}
        at = datetime.fromtimestamp(self.time, UTC).replace(tzinfo=None)
        members["time"] = f"{at.isoformat(timespec='milliseconds')}Z"
        return {name: value for name, value in members.items() if value is not None}


_MEMBERS: Final = tuple(field.name for field in fields(Accepted))

OnVerified = Callable[[Accepted], object]
"""The application's hook for each record. The call is served after it, so it must not wait."""


def audit_by_default(environ: Mapping[str, str] | None = None) -> bool:
    """The value of ``PEERSEAL_AUDIT``, by default on. Raises ConfigurationError."""
    return SettingsReader(os.environ if environ is None else environ).flag(AUDIT, True)


class AuditLog:
    """Writes the lines, calls the hook, and counts what was accepted and what failed.

    ``enabled`` turns the lines on or off; None leaves it to ``PEERSEAL_AUDIT``. Raises ConfigurationError.
    """

    def __init__(
        self,
        enabled: bool | None = None,
        *,
        on_verified: OnVerified | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        enabled = audit_by_default() if enabled is None else enabled
        check_flag("audit", enabled)
        if on_verified is not None:
            check_callable("on_verified", on_verified)
            if iscoroutinefunction(on_verified):
                raise ConfigurationError("on_verified is a coroutine function: give a plain one, which does not wait")
        self._enabled = enabled
        self._on_verified = on_verified
        self._clock = clock
        self._calls = Tally("peerseal_calls_accepted_total", "Calls that were verified.", "caller", "scope")
        self._events = Tally("peerseal_events_accepted_total", "Events that were verified.", "caller", "scope")
        self._minted = Tally("peerseal_transactions_minted_total", "Transactions that were minted for users.")
        self._failures = Tally("peerseal_audit_failures_total", "Failures of the audit log or of on_verified.", "part")

    @property
    def enabled(self) -> bool:
        """Whether lines are written."""
        return self._enabled

    def call(self, peer: "Peer", *, scope: str | None, method: str, route: Callable[[], str | None]) -> None:
        """A call was accepted for that scope. ``route`` gives the pattern of its route, if any."""
        self._calls.add(peer.id, scope or "")

        def record() -> Accepted:
            jti, audience = peer.claims["jti"], peer.claims["aud"]
            members = _of_transaction(peer.transaction) | {"method": method, "route": route()}
            return self._accepted("call", peer.id, peer.kid, jti, audience, scope, members)

        self._note(record)

    def event(self, event: "Event") -> None:
        """An event was accepted."""
        self._events.add(event.issuer, event.scope)

        def record() -> Accepted:
            jti, audience = event.claims["jti"], event.claims["aud"]
            user = {"user": event.user, "user_issuer": event.authentication.get("iss")}
            members = user | {"transaction": event.transaction_id, "topic": event.topic, "event_id": event.id}
            return self._accepted("event", event.issuer, event.kid, jti, audience, event.scope, members)

        self._note(record)

    def minted(self, transaction: Transaction) -> None:
        """A transaction was minted for a user."""
        self._minted.add()

        def record() -> Accepted:
            kid = jose.parse(transaction.carry()).header.kid
            minter, scopes, members = transaction.minter, sorted(transaction.scopes), _of_transaction(transaction)
            domain = minter.partition("/")[0]
            return self._accepted("transaction", minter, kid, transaction.id, domain, " ".join(scopes), members)

        self._note(record)

    def collect(self) -> list[Metric]:
        """What was accepted, and what failed, in this process."""
        found = [tally.metric() for tally in (self._calls, self._events, self._minted, self._failures)]
        return [metric for metric in found if metric.samples]

    def _accepted(
        self, kind: str, caller: str, kid: str, jti: str, audience: str, scope: str | None, members: dict[str, Any]
    ) -> Accepted:
        now, request_id = self._clock(), current_request_id()
        return Accepted(kind, now, caller, kid, jti, audience, scope, **members, request_id=request_id)

    def _note(self, record: Callable[[], Accepted]) -> None:
        written = self._enabled and _lines.isEnabledFor(logging.INFO)
        hook = self._on_verified
        if not written and hook is None:
            return
        accepted = self._attempt("record", record)
        if accepted is not None and written:
            self._attempt("log", lambda: _lines.info(json.dumps(accepted.to_json(), separators=(",", ":"))))
        if accepted is not None and hook is not None:
            self._attempt("hook", lambda: hook(accepted))

    def _attempt(self, part: str, do: Callable[[], T]) -> T | None:
        """The result of ``do``; None where it failed."""
        try:
            return do()
        except Exception:
            self._failures.add(part)
            with suppress(Exception):  # the same handler may fail again
                log.exception("the audit failed (%s); the call goes on", part)
            return None


def _of_transaction(transaction: Transaction | None) -> dict[str, Any]:
    if transaction is None:
        return {}
    issuer = transaction.authentication.get("iss")
    return {"user": transaction.user, "user_issuer": issuer, "transaction": transaction.id}
