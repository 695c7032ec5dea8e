"""How far a quorum of witnesses has cosigned the ledger, for a client that asks for cosignatures.

The newest cosigned checkpoint is part of the one history that this store has seen, so all earlier checkpoints are
covered by it. What is newer may be used for `TrustLimits.witness_delay` seconds, counted from when this process first
saw entries that are not covered yet. After that

- documents about keys with a newer checkpoint are refused, and beliefs from such documents end;
- beliefs from covered entries go on;
- lists of changes still take trust away, and confirm a belief only up to the end of that time;
- policies and other settings still change, and count as signed no later than that. The ledger does not prove their
  content, so witnesses could not vouch for it; and a narrower policy must not wait for them;
- a federation goes on that a covered entry set. One that a newer entry set is refused, unless it is empty. It may take
  trust away, so no foreign domain is believed from the list of changes on that names it (`FederationShelf`).

A process that has just started has seen nothing by itself: for it the time counts from the witnesses' own signed time,
and without a cosigned checkpoint it believes nothing. It counts by itself once all that it has seen is covered by a
checkpoint that was cosigned less than ``witness_delay`` seconds ago. An older one does not suffice: a registry may show
covered entries first. So a slow witness stops nothing at once, a registry cannot show a history without witnesses
for longer than that, and a restart gives it no further time. Where the witnesses cosign an earlier tree again and
again, that needs the cache folder, which keeps when this host first saw entries that are not covered.

Without witnesses, in the root's document and in the settings, nothing of this is done.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

from peerseal.errors import DocumentRefused, FetchError, MalformedToken, PeersealError
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import b64url, b64url_decode, natural
from peerseal.protocol.ledger.checkpoint import COSIGNED_PATH, MAX_NOTE_BYTES, Checkpoint, verify_checkpoint
from peerseal.protocol.ledger.cosignature import Note, cosigners
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import held_in_time
from peerseal.transport.fetch import Answer, Fetcher, content, no_larger_than
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.seen_ledger import SeenLedger

log = logging.getLogger("peerseal.trust")

D = TypeVar("D")

_COPY: Final = "cosigned"
_FIRST_MARK: Final = "uncosigned"
_ASK_EVERY: Final = 10.0
"""Seconds between two questions for a newer cosigned checkpoint, while there are entries that none covers."""
_MARKS: Final = 64
"""Parts of the delay: entries first seen within one part count as seen at its beginning."""


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A checkpoint of the one history with the quorum of each policy. ``at`` is when these had cosigned it, in seconds
    since the epoch."""

    size: int
    note: Note
    at: int


class WitnessedLedger:
    """What one store knows of the witnesses' cosignatures. ``own`` is the quorum in this client's settings; that in the
    root's document counts as well, so the stricter decides. Safe to use from threads, and before and after a fork."""

    def __init__(
        self,
        fetcher: Callable[[], Fetcher],
        ledger: SeenLedger,
        copies: CopyFolder,
        own: Quorum | None,
        counting: Callable[[str], AbstractContextManager[object]],
        *,
        limits: TrustLimits,
        clock: Callable[[], float],
    ) -> None:
        self._fetcher = fetcher
        self._ledger = ledger
        self._copies = copies
        self._own = own
        self._counting = counting
        self._limits = limits
        self._clock = clock
        self._policies: tuple[Quorum, ...] | None = None
        self._newest: CosignedCheckpoint | None = None
        self._marks: list[tuple[float, int]] = []  # when trees that none covers were first seen, and their sizes
        self._has_caught_up = False
        self._asked_at = -math.inf
        self._trouble = ""
        self._renew_lock()
        in_each_child(self._renew_lock)

    # ---- what it decides

    def is_wanted(self, root: RegistryKeys) -> bool:
        """Whether the root or this client asks for cosignatures."""
        if self._own is not None or root.witnesses is not None:
            return True
        self._policies = ()
        return False

    def applied(self, document: D, checkpoint: Checkpoint, root: RegistryKeys) -> D:
        """The document, as far as it may be used: one that rests on no entry which is not covered, and is not covered
        itself, says nothing about the time after the delay. Raises DocumentRefused with ``document_unwitnessed``."""
        self._follow_policies(root)
        if self._is_covered(checkpoint.size):
            return document
        self._mark(checkpoint.size)
        is_list = isinstance(document, Changes | CurrentServices)
        if self._clock() >= self._usable_until() and not is_list:  # revocations in a list must not wait for an answer
            self._try_renewal(root)
        if self._is_covered(checkpoint.size):
            return document
        until = self._usable_until()
        if not self._rests_on_uncovered(document):
            return _signed_until(document, until)
        if self._clock() >= until:
            raise DocumentRefused("document_unwitnessed", self._in_words(checkpoint.size))
        if isinstance(document, KeySetDocument | KeySetPart | KeyStatement):
            _check_entries(document)
        return document

    def believed_until(self, entry: int) -> float:
        """When a belief ends that rests on this entry, in seconds since the epoch: infinity if it is covered, and where
        nothing asks for cosignatures."""
        if not self._policies or self._is_covered(entry):
            return math.inf
        return self._usable_until()

    def is_due(self) -> bool:
        """Whether a newer cosigned checkpoint is needed, witnesses have had some seconds for it, and the last question
        for one was some time ago."""
        marks, now, pause = self._marks, self._clock(), min(_ASK_EVERY, self._limits.witness_delay / 10)
        return bool(marks) and now - marks[0][0] >= pause / 5 and abs(now - self._asked_at) >= pause

    def state(self) -> tuple[int, float] | None:
        """For metrics: the entries that are covered, and for how many seconds there have been others; None where
        nothing asks for cosignatures."""
        if not self._policies:
            return None
        marks = self._marks
        return self._size, max(0.0, self._clock() - marks[0][0]) if marks else 0.0

    # ---- what is covered

    @property
    def _size(self) -> int:
        newest = self._newest
        return 0 if newest is None else newest.size

    def _is_covered(self, size: int) -> bool:
        return size <= self._size

    def _rests_on_uncovered(self, document: object) -> bool:
        """Whether what the document says, and the ledger proves, may stand in an entry that is not covered."""
        if isinstance(document, FederationDocument):
            return bool(document.federation.domains) and not self._is_covered(document.set_by)
        return isinstance(document, KeySetDocument | KeySetPart | KeyStatement)

    def _usable_until(self) -> float:
        """Until when what is not covered may be used."""
        marks, newest = self._marks, self._newest
        since = marks[0][0] if marks else self._clock()
        if not self._has_caught_up:
            since = min(since, -math.inf if newest is None else newest.at)
        return since + self._limits.witness_delay

    def _mark(self, size: int) -> None:
        """Remember when a tree of that size was first seen."""
        with self._lock:
            now, last = self._clock(), self._marks[-1] if self._marks else None
            if last is not None and size <= last[1]:
                return
            if last is not None and now - last[0] < self._limits.witness_delay / _MARKS:
                self._marks[-1] = last[0], size
            else:
                self._marks.append((now, size))

    def _take(self, found: CosignedCheckpoint) -> None:
        with self._lock:
            before = self._newest
            if before is None or (found.size, found.at) > (before.size, before.at):
                self._newest = found
            self._marks = [mark for mark in self._marks if mark[1] > self._size]
            if not self._marks and abs(self._clock() - found.at) < self._limits.witness_delay:
                self._has_caught_up = True

    def _follow_policies(self, root: RegistryKeys) -> None:
        """Check the newest checkpoint again where the root names other witnesses. What a running process has seen until
        then counts as seen now: the new witnesses may need time."""
        policies = tuple(policy for policy in (self._own, root.witnesses) if policy is not None)
        if policies == self._policies:
            return
        with self._lock:
            before, self._policies = self._policies, policies
            newest = self._newest
            at = None if newest is None else _cosigned_at(newest.note, policies)
            self._newest = None if newest is None or at is None else replace(newest, at=at)
            self._marks, self._asked_at = [], -math.inf
            self._has_caught_up = self._has_caught_up or before == ()  # it runs, and nothing was asked for before
        if before:
            self._copies.write(_FIRST_MARK, "", self._clock())

    def on_new_ledger(self) -> None:
        """See LedgerCache. The witnesses of the lost ledger do not cosign the new one: others need time."""
        with self._lock:
            self._newest, self._marks = None, []

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache. There are no keys here."""
        return {}

    # ---- the newest cosigned checkpoint

    def renew(self, root: RegistryKeys) -> None:
        """Ask the registry for a newer cosigned checkpoint, or take the copy that another process of the host has
        fetched. A failure is logged only."""
        if self.is_wanted(root):
            self._try_renewal(root, in_background=True)

    def fetched(self, root: RegistryKeys) -> str | None:
        """The newest checkpoint with the quorum of the root, for a mirror: asked for now. None where the root asks for
        none. Raises FetchError or DocumentRefused."""
        if not self.is_wanted(root):
            return None
        self._follow_policies(root)
        self._renew(root)
        return None if self._newest is None else _written(self._newest.note)

    def _try_renewal(self, root: RegistryKeys, *, in_background: bool = False) -> None:
        pause = 0.0 if in_background else min(self._limits.cooldown, self._limits.witness_delay / 10)
        if abs(self._clock() - self._asked_at) < pause:
            return
        try:
            with held_in_time(self._renewing, "the cosigned checkpoint"), self._copies.locked(_COPY):
                if abs(self._clock() - self._asked_at) >= pause:
                    self._renew(root)
            self._trouble = ""
        except PeersealError as error:
            if str(error) != self._trouble:
                log.warning("no newer checkpoint with enough cosignatures: %s", error)
            self._trouble = str(error)
        self._share_first_mark()

    def _share_first_mark(self) -> None:
        """Count from when a process of the host, before a restart too, first saw entries that are not covered yet. A
        registry may have an earlier tree cosigned again and again, so the witnesses' time alone does not show that."""
        copy = self._copies.read(_FIRST_MARK)
        known = None if copy is None else _read_mark(copy.jws)
        with self._lock:
            oldest = self._marks[0] if self._marks else (self._clock(), 0)
            if known is not None and known[1] > self._size and known[0] < oldest[0]:
                self._marks.insert(0, known)
            first = self._marks[0] if self._marks else None
        if first is not None and (int(first[0]), first[1]) != known:
            self._copies.write(_FIRST_MARK, f"{int(first[0])} {first[1]}", self._clock())

    def _renew(self, root: RegistryKeys) -> None:
        """Raises FetchError or DocumentRefused."""
        if self._take_copy(root):
            return
        self._asked_at = self._clock()
        with self._counting("cosigned_checkpoint"), no_larger_than(MAX_NOTE_BYTES):
            found = self._fetcher().ask(COSIGNED_PATH, lambda answer: self._read(answer, root))
        if found is not None:
            self._copies.write(_COPY, b64url(_written(found.note).encode("utf-8")), self._clock())
            self._take(found)

    def _take_copy(self, root: RegistryKeys) -> bool:
        """Take the copy on disk, if it is newer than the last question of this process; return whether it helped."""
        copy = self._copies.read(_COPY) if self._copies.fetched_at(_COPY) > self._asked_at else None
        if copy is None:
            return False
        self._asked_at = copy.fetched_at
        try:
            found = self._checked(b64url_decode(copy.jws).decode("utf-8", "replace"), root)
        except (MalformedToken, DocumentRefused, FetchError) as error:
            log.info("the copy of the cosigned checkpoint is passed over: %s", error)
            return False
        self._take(found)
        return not self._marks

    def _read(self, answer: Answer, root: RegistryKeys) -> CosignedCheckpoint | None:
        """The cosigned checkpoint in an answer; None for one that is not newer: then the next mirror is asked."""
        found = self._checked(content(answer).decode("utf-8", "replace"), root)
        newest = self._newest
        return found if newest is None or (found.size, found.at) > (newest.size, newest.at) else None

    def _checked(self, text: str, root: RegistryKeys) -> CosignedCheckpoint:
        """A checkpoint of the one history, signed by the ledger's key and cosigned by the quorum. Raises
        DocumentRefused, or FetchError where it cannot be compared with the history now."""
        checkpoint, note = verify_checkpoint(text, root.subject, root.ledger_keys), Note.parse(text)
        policies = self._policies or ()
        at = _cosigned_at(note, policies)
        if at is None:
            raise DocumentRefused("document_unwitnessed", _missing(note, policies))
        own = tuple(line for line in note.signatures if line.name == root.subject)
        self._ledger.follow(checkpoint, _written(replace(note, signatures=own)), root)
        return CosignedCheckpoint(checkpoint.size, note, at)

    def _in_words(self, size: int) -> str:
        newest = self._newest
        needed = " and ".join(f"{policy.needed} of {len(policy.witnesses)}" for policy in self._policies or ())
        known = "no checkpoint is known that is" if newest is None else f"only {newest.size} of {size} entries are"
        return (
            f"{known} cosigned by {needed} witnesses, for more than {self._limits.witness_delay:g} s; see"
            f" registry_witness_failures and {COSIGNED_PATH} of the registry"
            f"{'; ' if self._trouble else ''}{self._trouble}"
        )

    def _renew_lock(self) -> None:
        self._lock, self._renewing = threading.Lock(), threading.Lock()


def _read_mark(text: str) -> tuple[int, int] | None:
    """When entries that none covers were first seen, and the size of their tree; None for other text."""
    at, size = map(natural, text.split(" ")) if text.count(" ") == 1 else (None, None)
    return None if at is None or size is None else (at, size)


def _cosigned_at(note: Note, policies: tuple[Quorum, ...]) -> int | None:
    """When the quorum of each policy had cosigned the note; None where one has not."""
    times = [policy.cosigned_at(note) for policy in policies]
    found = [at for at in times if at is not None]
    return min(found) if found and len(found) == len(times) else None


def _missing(note: Note, policies: tuple[Quorum, ...]) -> str:
    """Which witnesses did not cosign the note, for the log."""
    for policy in policies:
        if policy.cosigned_at(note) is None:
            there = cosigners(note, policy.witnesses)
            missing = ", ".join(witness.name for witness in policy.witnesses if witness.name not in there)
            return f"{len(there)} of {policy.needed} needed witnesses cosigned it, without {missing}"
    return "no policy names a witness"


def _signed_until(document: D, until: float) -> D:
    """The document, as if it was signed then, if it was signed later."""
    signed: Any = document
    return cast(D, replace(signed, issued_at=int(max(0.0, min(signed.issued_at, until)))))


def _check_entries(document: KeySetDocument | KeySetPart | KeyStatement) -> None:
    """No key in it was admitted after the entry that is said to have changed it last: the belief from it ends by that
    entry. Raises DocumentRefused."""
    keys = (document,) if isinstance(document, KeyStatement) else document.keys
    if any(key.admission.index >= document.seq for key in keys):
        raise DocumentRefused("document_malformed", "a key was admitted after the last change of its service")


def _written(note: Note) -> str:
    return note.text + "\n" + "".join(f"{line}\n" for line in note.signatures)
