"""The signed answer to "what changed since?" (docs/protocol.md), and the calls that wait for one.

The public classes come first. `ChangesFeed` makes the lists of changes, and `WaitingCall` is a call that waits for one.
`WaitingCalls` holds the waiting calls of this process, thousands of them, and the one thread that wakes them. A call
may name the services that it watches: then other changes do not wake it. Its list is the same as that of other calls.

A waiting call holds no database connection and no lock. The first waiting call starts the thread that follows the
ledger, in the process that serves the call; the thread ends some time after the last call. It makes each list once and
gives it to all calls that wait for it.

Calls wait only where the server has room for them, as `registry.serving.worker` or the operator declares.

The first change is reported at once. A pause follows, about as long as the answers take: each woken caller asks again.
Without the pause a series of changes would have hundreds of peers ask for each of them, and starve other requests.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from sqlalchemy import Connection

from peerseal.errors import PeersealError
from peerseal.protocol.documents.changes import CHANGES_LIFETIME, Changes, Watched
from peerseal.protocol.ledger.merkle import Frontier, Proof
from peerseal.protocol.names import service_id
from registry.domain.errors import StorageUnavailable
from registry.limits import Limits
from registry.services.authority.authority import Authority
from registry.services.bounded_cache import BoundedCache
from registry.services.documents.answer_cache import JWT, PublicAnswer
from registry.services.documents.watchers import RecentChanges, Watchers
from registry.services.use_case import Node, UseCase
from registry.storage.group_commit import GroupCommit
from registry.storage.queries import ledger, services
from registry.storage.revisions import CommitListener, Waker, commit_listener

log = logging.getLogger(__name__)

LINGER = 30
"""Seconds for which the thread stays without a waiting call: answered callers ask again."""
PAUSE, LONGEST_PAUSE = 0.002, 1.0
"""Seconds of pause for each woken call, and in all: 500 answers a second, or one round for the thousands of calls that
a process holds."""
ALL = Watched()
_MOST_REVOKED = 1_000
"""Kids in a list, at most: with a thousand services they fit into the size of a list."""
_LOOKED_BACK = 10_000
"""Entries that are searched for revocations. A client that is further back fetches the key sets that changed."""


class ChangesFeed(UseCase):
    """Makes and keeps the lists of changed services. ``waiting`` holds the calls that wait for one."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._revisions = node.revisions
        self._ledger = node.ledger
        self._cache: BoundedCache[int, PublicAnswer] = BoundedCache(node.limits.changes_cached, attrgetter("size"))
        self._making: GroupCommit[int, PublicAnswer] = GroupCommit(self.lists)
        self._making_recent: GroupCommit[None, PublicAnswer] = GroupCommit(self._recent_lists)
        self._recent: tuple[float, PublicAnswer] | None = None
        engine = node.store.listen_engine
        self.waiting = WaitingCalls(
            node.revisions.head, self._changed_after, self._making.do, lambda: commit_listener(engine), node.limits
        )
        node.authority.when_changed(self._forget)
        node.store.when_written(self.waiting.committed)

    @property
    def held(self) -> int:
        """Bytes of the lists in memory."""
        return self._cache.held

    def since(self, seq: int) -> PublicAnswer:
        """The services that an entry after ``seq`` changed; ``reset`` where they are too many to list, or where the
        ledger is shorter than ``seq``. Raises StorageUnavailable."""
        kept = self.kept(seq)
        if kept is not None and kept.head == self._revisions.head():
            return kept
        return self._making.do(seq)

    def recent(self) -> PublicAnswer:
        """The services that were changed last: one list for all callers, made at most once in each second of the clock.
        A cache that asks once in each second then gets a new list each time. Raises StorageUnavailable."""
        return self._kept_recent() or self._making_recent.do(None)

    def _kept_recent(self) -> PublicAnswer | None:
        """The list in memory, if it was made in this second; or a moment ago, and nothing changed since."""
        if self._recent is None:
            return None
        made_at, kept = self._recent
        of_this_second = int(made_at) == self._now()
        return kept if of_this_second or (self._is_young(kept) and kept.head == self._revisions.head()) else None

    def _recent_lists(self, callers: Sequence[None]) -> Sequence[PublicAnswer]:
        kept = self._kept_recent()
        return [self._made_recent() if kept is None else kept] * len(callers)

    def _made_recent(self) -> PublicAnswer:
        authority, made_at, most = self._authority.current(), self._clock(), self._limits.recent_listed
        with self._store.read() as connection:
            edge, found = ledger.frontier(connection), services.last_changed(connection, most + 1)
            since = found[most].seq if len(found) > most else 0
            looked_back = max(since, edge.size - _LOOKED_BACK)
            revoked = ledger.revoked_after(connection, looked_back, _MOST_REVOKED)
        read = _Read(found[:most][::-1], revoked, None)
        answer = self._signed(since, edge, read, authority, int(made_at))
        self._recent = made_at, answer
        return answer

    def _forget(self) -> None:
        """Drops all lists, which a client may refuse now."""
        self._cache.clear()
        self._recent = None

    def wait(self, seq: int, address: str, watched: Watched = ALL) -> "WaitingCall | None":
        """A call that waits for the first change after an entry, of the ``watched`` services. None where it is answered
        at once: the ledger has changed, or too many calls wait, from that address or in all. Raises
        StorageUnavailable."""
        if not self.waiting.pausing and not self.waiting.remembers(seq):
            head = self._revisions.head()
            if head < seq or (head > seq and watched == ALL):
                return None
        return self.waiting.add(seq, address, watched)

    def kept(self, seq: int) -> PublicAnswer | None:
        """The list in memory, unless it is too old: what ends a wait without a change."""
        kept = self._cache.get(seq)
        return kept if kept is not None and self._is_young(kept) else None

    def _is_young(self, kept: PublicAnswer) -> bool:
        return 0 <= self._clock() - kept.issued_at < self._limits.changes_resign_after

    def unchanged(self, seq: int) -> PublicAnswer:
        """The list at the end of a wait without a change. Hundreds of waits may end at once, so a list in memory is
        used without a look at the ledger: the thread that follows the ledger has seen no change that concerns the
        call. With the database down an older list is used: its signed time shows its age, and the next call is refused
        at once."""
        kept = self.kept(seq)
        if kept is not None:
            return kept
        try:
            if self.waiting.blind:  # each call would wait for the database
                raise StorageUnavailable("the database did not answer a moment ago")
            return self._making.do(seq)
        except StorageUnavailable:
            kept = self._cache.get(seq)
            if kept is not None and self._clock() < kept.expires_at:
                return kept
            raise

    def _changed_after(self, seq: int) -> Sequence[services.ServiceRecord]:
        """The services that an entry after ``seq`` changed, as many as a list may have."""
        with self._store.read() as connection:
            return services.changed_since(connection, seq, self._limits.changes_listed)

    def lists(self, seqs: Sequence[int]) -> Sequence[PublicAnswer]:
        """The lists after these entries as of one moment, each made once. Raises StorageUnavailable."""
        authority, issued_at = self._authority.current(), self._now()  # not later than the reads
        made: dict[int, PublicAnswer] = {}
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            for seq in set(seqs):
                kept = self.kept(seq)
                if kept is None or kept.head != edge.size:
                    read = self._read(connection, seq, edge.size)
                    kept = self._cache.put(seq, self._signed(seq, edge, read, authority, issued_at))
                made[seq] = kept
        return [made[seq] for seq in seqs]

    def _read(self, connection: Connection, seq: int, newest: int) -> "_Read":
        proof, most = self._proof(connection, seq, newest), self._limits.changes_listed
        changed = services.changed_since(connection, seq, most + 1) if seq < newest else []
        near = 0 < len(changed) <= most and newest - seq <= _LOOKED_BACK
        revoked = ledger.revoked_after(connection, seq, _MOST_REVOKED) if near else []
        return _Read(changed, revoked, proof)

    def _proof(self, connection: Connection, seq: int, newest: int) -> Proof | None:
        """The proof that the ledger extends the one that the caller has seen; else hundreds would ask for it singly."""
        return self._ledger.consistency_in(connection, seq, newest) if 0 < seq <= newest else None

    def _signed(
        self,
        seq: int,
        edge: Frontier,
        read: "_Read",
        authority: Authority,
        issued_at: int,
    ) -> PublicAnswer:
        reset, domain = seq > edge.size or len(read.changed) > self._limits.changes_listed, authority.domain
        changed = () if reset else tuple(read.changed)
        expires_at = issued_at + CHANGES_LIFETIME
        changes = Changes(
            issuer=authority.id,
            subject=domain,
            issued_at=issued_at,
            expires_at=expires_at,
            since=seq,
            seq=edge.size,
            checkpoint=authority.checkpoint(edge),
            services=tuple(service_id(domain, service.name) for service in changed),
            seqs=tuple(service.seq for service in changed),
            reset=reset,
            revoked=tuple(read.revoked),
            proof=read.proof,
        )
        body = authority.sign(changes).encode("ascii")
        return PublicAnswer.of(body, JWT, edge.size, edge.size, issued_at, expires_at)


class WaitingCall:
    """A call that waits until a change is reported, the time is up, or the client leaves. ``answer`` is the list of
    changes, None where the wait ended without one."""

    def __init__(self, calls: "WaitingCalls", since: int, address: str) -> None:
        self.since = since
        self.address = address
        self.answer: PublicAnswer | None = None
        self._calls = calls
        self._changing = threading.Lock()
        self._ended = False
        self._callback: Callable[[], object] = lambda: None

    def when_told(self, callback: Callable[[], object]) -> None:
        """Has ``callback`` called when the wait ends, in the thread that ends it; at once if it has ended."""
        with self._changing:
            self._callback = callback
            ended = self._ended
        if ended:
            callback()

    def tell(self, answer: PublicAnswer | None) -> None:
        """Ends the wait of a call that `WaitingCalls.take_out` has removed."""
        with self._changing:
            self.answer, self._ended = answer, True
            callback = self._callback
        callback()

    def give_up(self) -> None:
        """Ends the wait without a list, if it has not ended."""
        if self._calls.take_out(self):
            self.tell(None)

    def leave(self) -> None:
        """Ends the wait without the callback, if it has not ended."""
        if not self._ended:
            self._calls.take_out(self)

    def wait(self, seconds: float) -> None:
        """Blocks this thread until the wait ends: after ``seconds`` at most."""
        told = threading.Event()
        self.when_told(told.set)
        if not told.wait(seconds):
            self.give_up()
            told.wait()


class WaitingCalls:
    """The waiting calls of this process.

    ``head`` returns the number of entries, ``changed`` the services that an entry after a given one changed, ``make``
    the list of changes after an entry; all three may raise StorageUnavailable. ``listener`` makes the `CommitListener`
    of the thread. ``blind`` is True while the thread cannot read the ledger.
    """

    def __init__(
        self,
        head: Callable[[], int],
        changed: Callable[[int], Sequence[services.ServiceRecord]],
        make: Callable[[int], PublicAnswer],
        listener: Callable[[], CommitListener],
        limits: Limits,
    ) -> None:
        self._head = head
        self._changed = changed
        self._make = make
        self._new_listener = listener
        self._limits = limits
        self._most = limits.waiting_calls or 0
        self._changing = threading.Lock()
        self._calls: dict[WaitingCall, None] = {}  # in the order of their arrival
        self._of_address: Counter[str] = Counter()
        # each call is either told of any change, or among the watchers
        self._told_of_any: dict[WaitingCall, None] = {}
        self._watchers: Watchers[WaitingCall] = Watchers()
        self._recent = RecentChanges(0)
        self._pause_ends = 0.0
        self._over = False
        self.blind = False
        self._thread: threading.Thread | None = None
        self._listener, self._waker = listener(), Waker()

    def __len__(self) -> int:
        """The number of waiting calls."""
        return len(self._calls)

    @property
    def most(self) -> int:
        """How many calls may wait."""
        return self._most

    @property
    def followed(self) -> bool:
        """Whether a thread of this process follows the ledger."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def pausing(self) -> bool:
        """Whether many calls were woken a moment ago. A call that arrives now waits for the end of the pause without a
        look at the ledger."""
        return time.monotonic() < self._pause_ends

    def remembers(self, since: int) -> bool:
        """Whether the thread that follows the ledger knows what the entries after that one changed, up to a moment ago.
        A call from there waits, or is answered at once, without a look at the ledger."""
        return len(self._calls) > 0 and not self.blind and self._recent.begins <= since <= self._recent.ends

    def server_holds(self, calls: int) -> None:
        """Lets so many calls wait: the server has room for them. The operator's limit may be lower."""
        allowed = self._limits.waiting_calls
        self._most = calls if allowed is None else min(calls, allowed)

    def add(self, since: int, address: str, watched: Watched = ALL) -> WaitingCall | None:
        """A call from that address for which ``since`` is the newest entry that concerns it, or which comes during a
        pause. None where there is no room, the ledger has changed meanwhile, or the process is about to end."""
        with self._changing:
            full = len(self._calls) >= self._most or self._of_address[address] >= self._limits.waiting_calls_of_address
            recent = self._recent if self._calls else RecentChanges(since)
            current = recent.ends <= since or (watched.names is not None and recent.spare(since, watched.names))
            if self._over or full or not (current or self.pausing) or not self._start():
                return None
            self._recent = recent
            call = WaitingCall(self, since, address)
            self._calls[call] = None
            if not (current and watched.names is not None and self._watchers.add(call, watched.names)):
                self._told_of_any[call] = None
            self._of_address[address] += 1
            if len(self._calls) == 1:
                self._waker.wake()  # the thread sleeps while no call waits
            return call

    def take_out(self, *calls: WaitingCall) -> list[WaitingCall]:
        """Removes calls, and returns those that were still waiting."""
        with self._changing:
            removed = [call for call in calls if call in self._calls]
            for call in removed:
                del self._calls[call]
                self._told_of_any.pop(call, None)
                self._watchers.discard(call)
                others = self._of_address.pop(call.address) - 1
                if others:
                    self._of_address[call.address] = others
            return removed

    def committed(self) -> None:
        """This process has committed a transaction."""
        if self._calls and not self._listener.listening:
            self._waker.wake()

    def end(self) -> None:
        """Answers all calls now, and accepts no more: the process is about to end."""
        if not self._over:
            self._over = True
            self._waker.wake()

    def _start(self) -> bool:
        """Starts the thread unless it runs. False where the process may have no more threads."""
        if not self.followed:  # not started, ended, or lost in a fork
            self._listener, self._waker = self._new_listener(), Waker()
            used = self._listener, self._waker
            self._thread = threading.Thread(target=self._follow, args=used, name="changes", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                log.warning("calls do not wait for changes: no thread can be started: %s", error)
                self._thread = None
        return self._thread is not None

    def _follow(self, listener: CommitListener, waker: Waker) -> None:
        try:
            while self._stays(waker):
                listener.listen()
                self._look()
                listener.sleep(waker)
                self._pause(waker)
        except Exception:
            log.exception("the thread that follows the ledger failed; the next waiting call starts another")
        finally:
            listener.close()

    def _stays(self, waker: Waker) -> bool:
        """Waits for a call, and returns whether one waits."""
        if not self._calls:
            waker.sleep(LINGER)
        with self._changing:
            if not self._calls:
                self._thread = None
            return bool(self._calls)

    def _pause(self, waker: Waker) -> None:
        while not self._over and (left := self._pause_ends - time.monotonic()) > 0:
            waker.sleep(left)

    def _look(self) -> None:
        """Reads the head, and tells the calls that a change since concerns."""
        try:
            if not self._over:
                self._note_changes()
            self._tell()
        except StorageUnavailable as error:
            if not self.blind:
                log.warning("waiting calls do not learn of changes: %s", error)
            self.blind = True
            return
        self.blind = False

    def _note_changes(self) -> None:
        """Has the calls told that a change concerns. They stay so until they are told. Raises StorageUnavailable."""
        head = self._head()
        with self._changing:
            recent, watched = self._recent, len(self._watchers) > 0
        if recent.ends == head:
            return
        changed = self._changed(recent.ends) if watched and head > recent.ends else ()
        with self._changing:
            if watched and head > recent.ends and len(recent) + len(changed) <= self._limits.changes_listed / 2:
                recent.add(changed, head)
                concerned = self._watchers.of(changed)
            else:  # all that watch: their lists grow long, the ledger is another one, or they came during this look
                self._recent = RecentChanges(head)
                concerned = {call for call in self._watchers if call.since != head}
            for call in concerned:
                self._watchers.discard(call)
                self._told_of_any[call] = None

    def _tell(self) -> None:
        """Tells the calls that are due, with one list for all that wait from the same entry. The newest come first:
        most calls wait from there, and no number of calls from old entries delays them. Raises StorageUnavailable."""
        due = self._due()
        self._pause_ends = time.monotonic() + min(PAUSE * sum(map(len, due.values())), LONGEST_PAUSE)
        for since in sorted(due, reverse=True):
            answer = None if self._over else self._made(since)
            for call in self.take_out(*due[since]):
                call.tell(answer)

    def _due(self) -> dict[int, list[WaitingCall]]:
        """The calls that are to be told now, by the entry from which they wait."""
        due: dict[int, list[WaitingCall]] = {}
        with self._changing:
            for call in self._calls if self._over else self._told_of_any:
                if self._over or call.since != self._recent.ends:
                    due.setdefault(call.since, []).append(call)
        return due

    def _made(self, since: int) -> PublicAnswer | None:
        try:
            return self._make(since)
        except StorageUnavailable:
            raise
        except PeersealError:
            return None  # each of these calls asks by itself, and is answered with the error


class _Read(NamedTuple):
    """What a list is made of: changed services, kids of revoked keys, a proof."""

    changed: Sequence[services.ServiceRecord]
    revoked: Sequence[str]
    proof: Proof | None
