"""Keys on record, past ones too: the registry's key statements, as one process believes them.

An event is verified against the key as it stood when the event was signed, a year ago perhaps, and never after that key
was revoked. So a statement is believed as long as lists of changes confirm that its service did not change, within the
offline limit of its signed time, and is asked for anew after that. None is renewed in the background: of the hundreds
of keys that a service had, those are asked for whose events come in.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from peerseal.errors import DocumentRefused, FetchError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.key_set import REVOKED
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import acquired_in_time
from peerseal.trust.awake import AwakePeriods
from peerseal.trust.beliefs import Dated, TrustedKey
from peerseal.trust.confirmation import Confirmation
from peerseal.trust.new_history import REVOKED_FOR_GOOD

_LOCKS = 64
"""Fetches at once, at most: one for each group of services that share a lock."""


@dataclass(frozen=True, slots=True)
class KnownStatement(Dated):
    """What is believed of one key, None where it was revoked, and the times of `Dated`. ``drops`` is the reader's when
    it was read: where the root has dropped a signing key since, that key may have signed it. ``period`` is the one (of
    `AwakePeriods`) in which the registry said or confirmed it."""

    key: TrustedKey | None
    service_id: str
    drops: int
    period: int
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    @classmethod
    def of(cls, document: KeyStatement, drops: int, period: int) -> "KnownStatement":
        """From a statement that was checked."""
        key = None if document.state == REVOKED else TrustedKey.of(document, document.subject)
        times = document.seq, document.head, document.issued_at, document.expires_at
        return cls(key, document.subject, drops, period, *times)


class StatementShelf:
    """Statements by kid, the oldest forgotten first. ``fetch`` gets the one about a kid, checked: it raises FetchError
    (404 where there is no such key), DocumentRefused or TrustUnavailable. Safe to use from threads."""

    def __init__(
        self,
        fetch: Callable[[str], KeyStatement],
        confirmation: Confirmation,
        awake: AwakePeriods,
        *,
        limits: TrustLimits,
        clock: Callable[[], float],
        drops: Callable[[], int],
    ) -> None:
        self._fetch = fetch
        self._confirmation = confirmation
        self._awake = awake
        self._limits = limits
        self._clock = clock
        self._drops = drops
        self._held: OrderedDict[str, KnownStatement] = OrderedDict()
        self._absent: OrderedDict[str, float] = OrderedDict()  # kid: until when
        self._credit = limits.stranger_fetches
        self._credited_at = 0.0
        self.renew_locks()

    def known(self, kid: str) -> TrustedKey | None:
        """The key, if memory alone can say. Raises RevokedKey."""
        held = self._in_time(kid)
        return _key_of(held) if held is not None and self._awake.lasts(held.period) else None

    def ask(self, kid: str, service_id: str) -> TrustedKey:
        """The key, fetched where memory cannot say; one thread fetches while others of the same service wait. Raises
        UnknownKey, RevokedKey or TrustUnavailable."""
        lock = self._locks[hash(service_id) % _LOCKS]
        if not acquired_in_time(lock):
            raise TrustUnavailable(f"a key of {service_id} is being fetched", retry_after=1)
        try:
            found = self.known(kid) or self._confirmed_from_before(kid)
            return self._fetched(kid) if found is None else found
        finally:
            lock.release()

    def followed(self) -> list[int]:
        """Up to which entries what is held is known to be the truth."""
        with self._lock:
            return [held.covered for held in self._held.values()]

    def begin_anew(self) -> None:
        """See HistoryFollower."""
        with self._lock:
            self._held.clear()
            self._absent.clear()

    def endings(self) -> Mapping[str, int]:
        """See HistoryFollower."""
        with self._lock:
            held = list(self._held.items())
        return {kid: REVOKED_FOR_GOOD if one.key is None else one.key.active_until for kid, one in held}

    def confirm(self, changes: Changes, period: int) -> None:
        """Takes note of what did not change, and forgets what did, by a list that was asked for in that period."""
        with self._lock:
            for kid, held in list(self._held.items()):
                confirmed = held.confirmed(held.service_id, changes)
                if confirmed is None:
                    del self._held[kid]
                else:
                    self._held[kid] = replace(confirmed, period=max(held.period, period))

    def renew_locks(self) -> None:
        """In a forked child: a lock that another thread held would never be released."""
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def _in_time(self, kid: str) -> KnownStatement | None:
        """What is held of the key, unless it is too old to be believed."""
        held, now = self._held.get(kid), self._clock()
        if held is None or held.drops != self._drops():
            return None
        return held if now < min(held.confirmed_at + self._limits.offline_limit, held.expires_at) else None

    def _confirmed_from_before(self, kid: str) -> TrustedKey | None:
        """The key, if the registry confirms what was known before a break. Raises RevokedKey or TrustUnavailable."""
        period, held = self._awake.current(), self._in_time(kid)
        if held is None:
            return None
        confirmed = self._confirmation.confirmed(held, held.service_id)
        if confirmed is None or held.drops != self._drops():
            return None
        self._remember(kid, replace(confirmed, period=period))
        return _key_of(confirmed)

    def _fetched(self, kid: str) -> TrustedKey:
        now, period = self._clock(), self._awake.current()
        if now < self._absent.get(kid, 0.0):
            raise UnknownKey("nobody registered that key")
        if not self._may_miss(now):
            raise TrustUnavailable("too many keys asked for that nobody registered", retry_after=1)
        drops = self._drops()
        try:
            statement = KnownStatement.of(self._fetch(kid), drops, period)
        except FetchError as error:
            if error.http_status != 404:
                raise TrustUnavailable(f"the statement about {kid}: {error}", retry_after=1) from error
            self._miss(kid, now)
            raise UnknownKey("nobody registered that key") from error
        except DocumentRefused as error:
            raise TrustUnavailable(f"the statement about {kid}: {error}", retry_after=1) from error
        self._remember(kid, statement)
        return _key_of(statement)

    def _remember(self, kid: str, statement: KnownStatement) -> None:
        with self._lock:
            while kid not in self._held and len(self._held) >= self._limits.max_statements:
                self._held.popitem(last=False)
            self._held[kid] = statement
            self._held.move_to_end(kid)

    def _may_miss(self, now: float) -> bool:
        """The budget for kids that somebody makes up. Keys that are there cost nothing of it."""
        with self._lock:
            rate, most = self._limits.stranger_rate, self._limits.stranger_fetches
            self._credit = min(most, self._credit + max(0.0, now - self._credited_at) * rate)
            self._credited_at = now
            return self._credit >= 1

    def _miss(self, kid: str, now: float) -> None:
        with self._lock:
            self._credit -= 1
            while len(self._absent) >= self._limits.max_negative:
                self._absent.popitem(last=False)
            self._absent[kid] = now + self._limits.negative_ttl


def _key_of(statement: KnownStatement) -> TrustedKey:
    """Raises RevokedKey."""
    if statement.key is None:
        raise RevokedKey("the key was revoked")
    return statement.key
