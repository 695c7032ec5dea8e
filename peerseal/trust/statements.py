"""Key statements in memory, about active and past keys, as one process believes them.

An event is verified against the key as it stood when the event was signed, a year ago perhaps, and never after that key
was revoked. So a statement is believed as long as lists of changes confirm that its service did not change, within the
offline limit of its signed time. Then it is forgotten, and fetched again when the next event needs it: a service has
hundreds of past keys, and none is renewed in the background.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from peerseal.errors import DocumentRefused, FetchError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.key_set import REVOKED
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.token_bucket import TokenBucket
from peerseal.transport.deadline import held_in_time
from peerseal.trust.beliefs import REVOKED_FOR_GOOD, Dated, TrustedKey
from peerseal.trust.documents import Question, check_age
from peerseal.trust.shelf import AbsentNames, ShelfParts

_LOCKS = 64
"""Simultaneous fetches, at most: one for each group of services that share a lock."""


@dataclass(frozen=True, slots=True)
class KnownStatement(Dated):
    """What is believed of one key: ``key``, which is None if it was revoked, and the times of `Dated`. ``generation``
    and ``period`` are those of `peerseal.trust.shelf.CachedSubject`."""

    key: TrustedKey | None
    service_id: str
    generation: int
    period: int
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    @classmethod
    def of(cls, document: KeyStatement, generation: int, period: int) -> "KnownStatement":
        """From a statement that was checked."""
        key = None if document.state == REVOKED else TrustedKey.of(document, document.subject)
        times = document.seq, document.head, document.issued_at, document.expires_at
        return cls(key, document.subject, generation, period, *times)


class StatementShelf:
    """Statements by kid; the oldest is forgotten first. Safe to use from threads."""

    def __init__(self, parts: ShelfParts) -> None:
        limits = self._limits = parts.limits
        self._reader = parts.reader
        self._confirmation = parts.confirmation
        self._awake = parts.awake
        self._clock = parts.clock
        self._held: OrderedDict[str, KnownStatement] = OrderedDict()
        self._absent = AbsentNames(limits.max_negative, limits.negative_ttl)
        self._strangers = TokenBucket(limits.stranger_fetches, limits.stranger_rate, parts.clock)
        self.renew_locks()
        in_each_child(self.renew_locks)

    def known(self, kid: str) -> TrustedKey | None:
        """The key, if memory alone can say. Raises RevokedKey."""
        held = self._in_time(kid)
        return _key_of(held) if held is not None and self._awake.is_current(held.period) else None

    def ask(self, kid: str, service_id: str) -> TrustedKey:
        """The key, fetched where memory cannot say; one thread fetches while others of the same service wait. Raises
        UnknownKey, RevokedKey or TrustUnavailable."""
        with held_in_time(self._locks[hash(service_id) % _LOCKS], f"the statement about {kid}"):
            found = self.known(kid) or self._confirmed_after_break(kid)
            return self._fetched(kid) if found is None else found

    def followed(self) -> list[int]:
        """For each statement that is held: the ledger entry up to which it is true."""
        with self._lock:
            return [held.covered for held in self._held.values()]

    def on_new_ledger(self) -> None:
        """See LedgerCache."""
        with self._lock:
            self._held.clear()
            self._absent.clear()

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache."""
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
        if held is None or held.generation != self._reader.generation:
            return None
        return held if now < min(held.confirmed_at + self._limits.offline_limit, held.expires_at) else None

    def _confirmed_after_break(self, kid: str) -> TrustedKey | None:
        """The key, if the registry confirms what was known before a break. Raises RevokedKey or TrustUnavailable."""
        period, held = self._awake.current(), self._in_time(kid)
        if held is None:
            return None
        confirmed = self._confirmation.confirmed(held, held.service_id)
        if confirmed is None or held.generation != self._reader.generation:
            return None
        self._remember(kid, replace(confirmed, period=period))
        return _key_of(confirmed)

    def _fetched(self, kid: str) -> TrustedKey:
        now, period = self._clock(), self._awake.current()
        if self._absent.has(kid, now):
            raise UnknownKey(f"the registry does not know {kid}")
        if not self._strangers.has_token():
            raise TrustUnavailable(f"too many unknown keys: {kid} is not fetched now", retry_after=1)
        generation = self._reader.generation
        try:
            question = self._question(kid)
            document = self._reader.retrying_on_new_ledger(lambda: self._reader.fetch_whole(question)).document
        except (FetchError, DocumentRefused) as error:
            if getattr(error, "http_status", None) != 404:
                raise TrustUnavailable(f"the statement about {kid}: {error}", retry_after=1) from error
            self._strangers.spend()
            with self._lock:
                self._absent.add(kid, now)
            raise UnknownKey(f"the registry does not know {kid}") from error
        statement = KnownStatement.of(document, generation, period)
        self._remember(kid, statement)
        return _key_of(statement)

    def _question(self, kid: str) -> Question[KeyStatement]:
        def check(statement: KeyStatement) -> None:
            if statement.kid != kid:
                raise DocumentRefused("document_wrong_subject", f"a statement about {statement.kid} instead of {kid}")
            check_age(statement, self._limits.offline_limit, self._clock())

        owner, thumbprint = split_kid(kid)
        path = f"/v1/services/{split_service_id(owner)[1]}/keys/{thumbprint}.jwt"
        return Question(KeyStatement, path, owner, check=check)

    def _remember(self, kid: str, statement: KnownStatement) -> None:
        with self._lock:
            while kid not in self._held and len(self._held) >= self._limits.max_statements:
                self._held.popitem(last=False)
            self._held[kid] = statement
            self._held.move_to_end(kid)


def _key_of(statement: KnownStatement) -> TrustedKey:
    """Raises RevokedKey."""
    if statement.key is None:
        raise RevokedKey("the key was revoked")
    return statement.key
