"""Watches the ledger for the owner of a service: every key that is admitted under its name, and every other change.

The registry cannot sign in a service's name, but it could admit a key that the owner never made. It cannot do so
without an entry in its ledger, and the monitor reads that entry.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from peerseal.audit.entry_words import in_words
from peerseal.audit.ledger_reader import TELLS_OF_A_LOSS, LedgerReader, LedgerUpdate
from peerseal.audit.monitor_state import MonitorState
from peerseal.errors import DocumentRefused, FetchError, PeersealError
from peerseal.protocol.documents.history_statement import Continuation, Head
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.entries import (
    FEDERATION_SET,
    HISTORY_DECLARED,
    JOIN_TOKEN_CREATED,
    KEY_ADMITTED,
    KEY_RETIRED,
    KEY_REVOKED,
    POLICY_SET,
    REGISTRY_KEYS_ISSUED,
    REGISTRY_RESTORED,
    Entry,
    evidence_digest,
)
from peerseal.protocol.ledger.evidence import PROOF, VOUCH, past_proof, past_request, read_evidence, vouches_for
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.names import registry_id, service_id, split_kid
from peerseal.protocol.tokens.claims import claim
from peerseal.transport.fetch import Fetcher, no_larger_than

UNKNOWN_KEY: Final = "unknown_key"
KEY_ENDED: Final = "key_ended"
INCONSISTENT: Final = "inconsistent_ledger"
BAD_CHECKPOINT: Final = "bad_checkpoint"
UNREACHABLE: Final = "unreachable"
GRACE = 60.0
"""Seconds for which the registry may be unreachable, or withhold evidence, before the monitor reports it."""

MAX_RECORD: Final = 256 * 1024
"""Bytes of a key's record, at most: its evidence holds a proof and a voucher, which fit into one request."""

_OF_ALL_SERVICES: Final = (FEDERATION_SET, HISTORY_DECLARED, REGISTRY_KEYS_ISSUED, REGISTRY_RESTORED)

_OF_LATE_MIRRORS: Final = ("document_rolled_back", "document_not_in_ledger")
"""The codes of refusals that a mirror causes which is late or damaged: they count as no answer."""

ALERT: Final = "alert"
INFO: Final = "info"


@dataclass(frozen=True, slots=True)
class Alert:
    """One report to the owner. ``kind`` is a stable name; ``level`` is ``alert``, or ``info`` for what is expected;
    ``entry`` is the ledger entry that it is about, if any."""

    kind: str
    service: str
    detail: str
    at: int
    level: str = ALERT
    entry: Entry | None = None

    def to_json(self) -> dict[str, Any]:
        """``{"event", "level", "service", "detail", "at"}``, and of the entry ``seq``, ``index``, ``time``, ``kid``,
        ``by``."""
        members: dict[str, Any] = {"event": self.kind, "level": self.level, "service": self.service}
        members |= {"detail": self.detail, "at": self.at}
        if self.entry is not None:
            entry = self.entry
            members |= {
                "seq": entry.seq,
                "index": entry.index,
                "time": entry.time,
                "kid": entry.kid,
                "by": dict(entry.by),
            }
        return members


class Monitor:
    """Looks at the ledger on each call of `look`. Keep ``state``, and begin with it after a restart."""

    def __init__(
        self,
        fetcher: Fetcher,
        state: MonitorState,
        *,
        own_keys: Callable[[], frozenset[str]] = frozenset,
        clock: Callable[[], float] = time.time,
        grace: float = GRACE,
    ) -> None:
        """``own_keys`` gives the kids that the owner holds now, in addition to those in the state."""
        self.state = state
        self._fetcher = fetcher
        self._reader = LedgerReader(fetcher, state.pin, clock)
        self._own_keys = own_keys
        self._clock = clock
        self._grace = grace
        self._failing_since: float | None = None
        self._reported: str | None = None

    def look(self) -> list[Alert]:
        """What is new since the last look. A failure of the registry is an alert too, reported once until it ends."""
        try:
            alerts, self.state = self._new()
        except (DocumentRefused, FetchError) as error:
            if isinstance(error, DocumentRefused) and error.code not in _OF_LATE_MIRRORS:
                kind = INCONSISTENT if error.code == "document_inconsistent" else BAD_CHECKPOINT
                return self._trouble(kind, str(error))
            return self._no_answer(error)
        self._failing_since = self._reported = None
        return alerts

    def _no_answer(self, error: PeersealError) -> list[Alert]:
        if self._failing_since is None:
            self._failing_since = self._clock()
        waited = self._clock() - self._failing_since
        return self._trouble(UNREACHABLE, str(error)) if waited >= self._grace else []

    def _trouble(self, kind: str, detail: str) -> list[Alert]:
        if self._reported == kind:
            return []
        self._reported = kind
        return [self._alert(kind, detail)]

    def _new(self) -> tuple[list[Alert], MonitorState]:
        state, domain = self.state, self._reader.domain()
        if state.domain not in (None, domain):
            raise DocumentRefused("document_wrong_subject", f"the registry of {domain}, not of {state.domain}")
        try:
            update, excused = self._reader.read(state.edge, self._concerns), None
        except DocumentRefused as error:
            update, excused = self._after_loss(error)
        alerts, known, revoked = self._loss_alerts(excused), state.known | self._own_keys(), state.revoked
        for entry in update.entries:
            kid = entry.kid or ""
            if entry.type == KEY_ADMITTED:
                reason = None if kid in known else self._why_unknown(entry, known - revoked, domain)
                if reason is None:
                    known |= {kid}
                else:
                    alerts.append(self._alert(UNKNOWN_KEY, reason, entry))
                continue
            alerts.extend(self._other(entry, known))
            if entry.type == KEY_REVOKED:
                revoked |= {kid}
        seen_at = state.seen_at if update.edge == state.edge else max(int(self._clock()), state.seen_at)
        if excused is not None:
            seen_at = max(seen_at, excused.seen_at)
        read_to = replace(state, edge=update.edge, domain=domain, pin=self._reader.pin, seen_at=seen_at)
        return alerts, replace(read_to, known=known, revoked=revoked)

    def _after_loss(self, error: DocumentRefused) -> tuple[LedgerUpdate, Continuation]:
        """The ledger from its first entry on, with the entries that are new here, where the root declared that it goes
        on from another head. Raises the error where the root declared nothing."""
        state = self.state
        excused = self._reader.excused(state.edge, state.seen_at) if error.code in TELLS_OF_A_LOSS else None
        if excused is None:
            raise error
        common = excused.common.size
        new = self._reader.read(
            Frontier(), lambda entry: entry.seq > common and self._concerns(entry), (excused.common, excused.new)
        )
        return new, excused

    def _loss_alerts(self, excused: Continuation | None) -> list[Alert]:
        if excused is None:
            return []
        lost = Head(self.state.edge.size, self.state.edge.root)
        gone = f"the root declared lost what was seen here ({lost}): the entries after {excused.common} are gone"
        return [self._alert(HISTORY_DECLARED, f"{gone}; the ledger goes on from {excused.new}")]

    def _concerns(self, entry: Entry) -> bool:
        return entry.service == self.state.service or entry.type in _OF_ALL_SERVICES

    def _other(self, entry: Entry, known: frozenset[str]) -> Iterator[Alert]:
        """Alerts about entries other than admissions."""
        if entry.type in (KEY_RETIRED, KEY_REVOKED):
            ender = entry.by.get("self")
            with_another = ender in known and ender == entry.data.get("cause")  # it fell with the key that vouched
            if ender != entry.kid and not with_another:
                yield self._alert(KEY_ENDED, f"{entry.type} by another key or an operator", entry)
        elif entry.type == POLICY_SET:
            yield self._alert(entry.type, "who may call the service was changed", entry)
        elif entry.type == JOIN_TOKEN_CREATED:
            yield self._alert(entry.type, "its holder may register keys with it", entry, INFO)
        elif entry.type == REGISTRY_KEYS_ISSUED:
            yield self._alert(entry.type, _said("the root named other keys or witnesses of the registry", entry), entry)
        elif entry.type == FEDERATION_SET:
            yield self._alert(entry.type, _said("which foreign trust domains are believed was changed", entry), entry)
        elif entry.type == REGISTRY_RESTORED:
            lost = f"entries {entry.data.get('first')} to {entry.data.get('last')}"
            yield self._alert(entry.type, f"it was restored, and says that the evidence of {lost} is lost", entry)
        elif entry.type == HISTORY_DECLARED:
            yield self._alert(
                entry.type, "entries are lost for good, says the statement of the root key in this entry", entry
            )

    def _why_unknown(self, entry: Entry, known: frozenset[str], domain: str) -> str | None:
        """Why the key is not the owner's; None where a key of the owner vouched for it with its signature.

        Raises FetchError where the registry does not answer yet.
        """
        voucher = entry.by.get("kid")
        if voucher is None:
            return "admitted on " + ", ".join(f"{ground} {value}" for ground, value in entry.by.items())
        if voucher not in known:
            return f"vouched for by {voucher}, which is unknown too, or revoked"
        try:
            self._check_voucher(entry, voucher, domain)
        except FetchError as error:
            withheld = self._failing_since is not None and self._clock() - self._failing_since >= self._grace
            by_registry = error.http_status == 404 and not getattr(self._fetcher, "has_mirrors", False)
            if not by_registry and not withheld:  # a mirror has no records
                raise
            return f"the evidence is withheld: {error}"
        except PeersealError as error:
            return f"the evidence does not hold: {error}"
        return None

    def _check_voucher(self, entry: Entry, voucher: str, domain: str) -> None:
        """Passes the evidence that the known key ``voucher`` asked for exactly this admission. Raises PeersealError."""
        kid, registry = entry.kid or "", registry_id(domain)
        evidence = canonical_json(self._record(kid).get("evidence"))
        if evidence_digest(evidence) != entry.evidence:
            raise DocumentRefused("document_not_in_ledger", "not the evidence that the entry commits to")
        members = read_evidence(evidence)
        if VOUCH not in members:
            raise DocumentRefused("document_malformed", "no voucher is in it")
        past_proof(members[PROOF], kid=kid, registry=registry)
        key = PublicKey.from_jwk(claim(dict(self._record(voucher)), "jwk", dict))
        if (service_id(domain, self.state.service), key.thumbprint) != split_kid(voucher):
            raise DocumentRefused("document_malformed", "not the key that vouched")
        claims = past_request(members[VOUCH], key=key, kid=voucher, registry=registry, method="POST")
        if not vouches_for(claims, members[PROOF]):
            raise DocumentRefused("document_malformed", "the voucher is for another body")

    def _record(self, kid: str) -> Mapping[str, Any]:
        with no_larger_than(MAX_RECORD):
            answer = self._fetcher.call("GET", f"/v1/services/{self.state.service}/keys/{split_kid(kid)[1]}")
        if answer.status != 200:
            raise FetchError(f"the record of {kid}: status {answer.status}", answer.status)
        return strict_json_object(answer.body)

    def _alert(self, kind: str, detail: str, entry: Entry | None = None, level: str = ALERT) -> Alert:
        return Alert(kind, self.state.service, detail, int(self._clock()), level, entry)


def _said(what: str, entry: Entry) -> str:
    """What happened, with what the entry says of it where it can be read."""
    words = in_words(entry)
    return what if words is None else f"{what}: {words}"
