"""Peers as witnesses: services tell each other the newest checkpoint that they believe, and compare.

A registry that shows two histories keeps them apart only as long as no service of one side speaks to a service of the
other. `PeerCheckpoints.tellings` has what to tell a peer, `PeerCheckpoints.heard` takes what a peer told. What
was heard is compared in a thread of its own, with what this process has seen of the ledger. Equal sizes must have equal
roots, and a smaller size must be a beginning. A larger one waits until this process has seen as many entries, or the
root says that they were lost or that the key which signed it was dropped.

Only a checkpoint that the ledger's key signed is compared, one at a time for each peer's key, and the registry is asked
within a budget. So what a peer invents costs a signature check. A contradiction is reported only if no statement of the
root key explains it, some time later: a peer may have read such a statement earlier than this process.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, PeersealError, TrustUnavailable
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.ledger.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint
from peerseal.protocol.ledger.split_view import (
    Evidence,
    Fork,
    Sighting,
    Verdict,
    compared,
    declared_lost,
    decode_cp,
)
from peerseal.protocol.names import registry_id
from peerseal.runtime.bounded import BoundedDict
from peerseal.runtime.files import Folder
from peerseal.runtime.forks import BackgroundWork, in_each_child, left_to_workers
from peerseal.runtime.limits import TrustLimits
from peerseal.runtime.metrics import Metric, Tally, gauge
from peerseal.runtime.token_bucket import TokenBucket
from peerseal.trust.checkpoint_tellings import CheckpointTellings, is_peer, service_of
from peerseal.trust.documents import DocumentReader
from peerseal.trust.heard_notes import HeardNote, HeardNotes
from peerseal.trust.seen_ledger import SeenCheckpoint
from peerseal.trust.split_views import (
    DECLARED_LOSS,
    DROPPED_KEY,
    MOST_FILES,
    EvidenceFolder,
    StandingSplitViews,
    explanation,
)
from peerseal.trust.tile_proofs import nodes_of_mirror

log = logging.getLogger("peerseal.split_view")

MOST_REPORTS: Final = MOST_FILES
"""Split views that a process reports, at most."""
_KEYS: Final = 1_000
"""Keys of peers whose last look is remembered; there are two places of notes for each."""
_AGREED: Final = 256
"""Texts of ``cp`` that were found to be of the one history."""
_SUSPECTS: Final = 16
"""Contradictions that wait for their second look."""
_LONGEST: Final = 700
"""Characters of a ``cp`` that is read, at most: 512 bytes in base64url, for senders that count the note's bytes."""
_LONGEST_PAUSE: Final = 60.0
"""Seconds for which the thread waits for the next look; a later one is begun by what comes next."""
_ATTEMPTS: Final = 20
"""Looks at a checkpoint that cannot be compared yet, before it is dropped."""
_PROOFS_AT_ONCE, _PROOFS_A_SECOND = 10.0, 1.0
"""The budget of comparisons for which the registry is asked."""

AGREED: Final = "agreed"
WAITING: Final = "waiting"
"""Larger than the ledger that was seen."""
UNDECIDED: Final = "undecided"
"""The registry shows no proof, and no nodes that lead to its own checkpoint."""
CONTRADICTED: Final = "contradicted"
_NO_NOTE: Final = "no_note"
_OTHER_DOMAIN: Final = "other_domain"
_UNKNOWN_SIGNER: Final = DROPPED_KEY
_BAD_SIGNATURE: Final = "bad_signature"
_NO_BUDGET: Final = "no_budget"
"""Not compared, since the registry is asked no more at present."""
_NO_PLACE: Final = "no_place"
"""A contradiction, while too many others wait for their second look."""
_NOT_COUNTED: Final = frozenset((_NO_BUDGET, _NO_PLACE))
"""The results that are counted neither in the metric nor as an attempt."""
_AGAIN: Final = frozenset((WAITING, UNDECIDED, _UNKNOWN_SIGNER, *_NOT_COUNTED))
"""The results after which a checkpoint is looked at again."""


_Heads = tuple[Checkpoint, Checkpoint]
"""What a peer told, and what this process has seen."""


@dataclass(frozen=True, slots=True)
class SplitView:
    """A proven split view: its ``evidence``, what it proves (``verdict``), and the ``file`` that holds it, None where
    there is no folder or it cannot be written."""

    evidence: Evidence
    verdict: Verdict
    file: Path | None


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A contradiction that was found at ``since`` and is looked at again from ``due_at`` on (monotonic seconds)."""

    evidence: Evidence
    since: float
    due_at: float


class PeerCheckpoints:
    """Compares checkpoints with peers. ``folder`` takes evidence files; ``report`` is called for each split view, in a
    thread of its own. Safe to use from threads, and before and after a fork."""

    def __init__(
        self,
        reader: DocumentReader,
        limits: TrustLimits,
        clock: Callable[[], float],
        folder: Folder | None,
        report: Callable[[SplitView], object] | None = None,
    ) -> None:
        self.report = report
        self._reader = reader
        self._limits = limits
        self._clock = clock
        self._files = EvidenceFolder(folder)
        self.standing = StandingSplitViews(reader, self._files)
        self._heard = Tally("peerseal_checkpoints_heard_total", "Checkpoints that peers told, by result.", "result")
        self.tellings = CheckpointTellings(reader)
        self._found = Tally("peerseal_split_views_total", "Contradictions between checkpoints that the ledger signed.")
        self._budget = TokenBucket(_PROOFS_AT_ONCE, _PROOFS_A_SECOND, time.monotonic)
        self._working = BackgroundWork()
        self._stopped = False
        self._agreed = BoundedDict[str, bool](_AGREED)
        self._reported = set[_Heads]()
        self._look_again_at = 0.0
        self._begin_empty()
        in_each_child(self._begin_empty)

    def _begin_empty(self) -> None:
        """At the start, and in a forked child: what was heard is the parent's work."""
        self._notes = HeardNotes(2 * _KEYS)
        self._looked_at = BoundedDict[str, float](_KEYS)
        self._judged_under: RegistryKeys | None = None
        self._ask_for_losses_at = math.inf
        self._suspects = dict[_Heads, _Suspect]()
        self._lock, self._woken = threading.Lock(), threading.Event()
        self._runs = False

    # ---- what is heard

    def heard(self, cp: str, from_kid: str) -> None:
        """Take what a verified peer's key told. It is compared later; this waits for nothing."""
        if self._stopped:
            return
        if cp in self._agreed or len(cp) > _LONGEST:
            self._heard.add(AGREED if cp in self._agreed else _NO_NOTE)
            return
        rests = self._looked_at.get(from_kid, -math.inf) + self._limits.cooldown
        with self._lock:
            before = self._notes.at(from_kid, kept=False)
            self._notes.put(HeardNote(cp, from_kid, self._clock(), due_at=rests))
        if before is None or before.size or before.due_at != rests:
            self.work_soon()  # else the thread waits for that time already

    def work_soon(self) -> None:
        """Start the thread that compares, if there is something to compare now."""
        with self._lock:
            self._woken.set()
            if self._stopped or self._runs or self._due_in() > _LONGEST_PAUSE or left_to_workers():
                return
            try:
                threading.Thread(target=self._work, name="peerseal-checkpoints", daemon=True).start()
                self._runs = True
            except RuntimeError as error:  # no thread to be had: the request that told this is good all the same
                log.warning("checkpoints of peers are not compared now: %s", error)

    def follow(self) -> None:
        """Called from time to time by another thread of ours: compare what can be compared by now, and take split views
        into account that other processes of the host have found."""
        if self._limits.refuse_split_view:
            self.standing.recall()
        self.work_soon()

    def stop(self) -> None:
        """Compare no more."""
        self._stopped = True
        self._woken.set()

    # ---- as a LedgerCache

    def on_new_ledger(self) -> None:
        """See LedgerCache: what agreed with a lost ledger says nothing of the new one."""
        self._agreed = BoundedDict(_AGREED)
        self._ask_for_losses_at = 0.0  # what waits may be of the lost one

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache. There are no keys in it."""
        return {}

    # ---- metrics

    def collect(self) -> list[Metric]:
        """What was told, heard and found; and for how long the oldest checkpoint waits that this process has not seen:
        the registry may hide entries from it."""
        oldest = max((self._clock() - note.at for note in self._notes if note.size), default=0.0)
        waits = "Since a peer told of entries that the registry has not shown to this process."
        waiting = gauge("peerseal_checkpoint_waits_seconds", waits, max(0.0, oldest))
        heard = self._heard.metric()
        return [self.tellings.collect(), self._found.metric(), waiting, *([heard] if heard.samples else [])]

    # ---- the thread

    def _due_in(self) -> float:
        """Seconds until there is something to look at; infinite where nothing is known that will be due."""
        newest, now = self._reader.ledger.newest, time.monotonic()
        size = newest.checkpoint.size if newest is not None else 0
        judged_again = self._reader.registry_keys_in_memory() is not self._judged_under
        notes = (note.due_at for note in self._notes if note.size <= size or judged_again)
        suspects = (each.due_at for each in list(self._suspects.values()))
        standing = self._look_again_at if self.standing.are_some else math.inf
        return max(0.0, min(standing, self._ask_for_losses_at, *notes, *suspects, math.inf) - now)

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    self._woken.clear()
                    pause = self._due_in()
                    if self._stopped or pause > _LONGEST_PAUSE:
                        self._runs = False
                        return
                if not (pause and self._woken.wait(pause)):
                    with self._working:
                        self._look()
        except Exception:  # what comes next starts another thread
            log.exception("checkpoints of peers could not be compared")
            self._runs = False

    def _look(self) -> None:
        newest, now = self._reader.ledger.newest, time.monotonic()
        size = newest.checkpoint.size if newest is not None else 0
        root = self._reader.registry_keys_in_memory()
        judged_again, self._judged_under = root is not self._judged_under, root
        for note in self._notes:
            if note.due_at <= now and (note.size <= size or judged_again):
                try:
                    outcome = self._judged(note, newest)
                except Exception:  # one that fails must not keep the others from being compared
                    log.exception("the checkpoint that %s told of could not be compared", note.service)
                    outcome = UNDECIDED, 0
                self._settle(note, *outcome)
        if self._ask_for_losses_at <= now:
            self._ask_for_losses(now)
        for heads, suspect in list(self._suspects.items()):
            if suspect.due_at <= now:
                self._decide(heads, suspect)
        if self.standing.are_some and self._look_again_at <= now:
            self._look_again_at = now + self._limits.longest_pause
            self.standing.look()

    def _settle(self, note: HeardNote, result: str, size: int) -> None:
        """Drop what was compared, and keep what is to be looked at again."""
        now, was_looked_at = time.monotonic(), result not in (WAITING, *_NOT_COUNTED)
        again = result in _AGAIN and note.attempts + was_looked_at < _ATTEMPTS
        if result not in _NOT_COUNTED and not (again and (note.attempts or note.size)):
            self._heard.add(result)
        if result == AGREED:
            self._agreed[note.cp] = True
        pause = self._pause_after(note, result)
        later = replace(note, due_at=now + pause, size=size, attempts=note.attempts + was_looked_at)
        with self._lock:
            self._looked_at[note.kid] = now
            replaced = not self._notes.remove(note)  # by what the peer told meanwhile
            kept = self._notes.at(note.kid, kept=True)
            if result == WAITING:
                self._ask_for_losses_at = min(self._ask_for_losses_at, now + self._limits.longest_pause)
                if kept is None or size < kept.size:
                    later, replaced = replace(later, kept=True), False
            if again and not replaced:
                self._notes.put(later)

    def _ask_for_losses(self, now: float) -> None:
        """Forget the notes that wait for entries which the root declared lost: they will never be shown."""
        waiting = [note for note in self._notes if note.size]
        self._ask_for_losses_at = now + self._limits.longest_pause if waiting else math.inf
        root = self._reader.registry_keys_in_memory()
        if root is None or not waiting:
            return
        told = {note.cp: parse_checkpoint(decode_cp(note.cp)) for note in waiting}
        lost = set[Checkpoint]()

        def explains(statements: Sequence[str]) -> bool:
            lost.update(declared_lost(told.values(), statements, root))
            return bool(lost)

        try:
            self._reader.replaced_ledgers.explained_by(explains)
        except (FetchError, DocumentRefused) as error:
            log.info("whether entries were declared lost that peers told of is unknown (%s): %s", error.code, error)
        with self._lock:
            gone = [note for note in waiting if told[note.cp] in lost and self._notes.remove(note)]
        for _ in gone:
            self._heard.add(DECLARED_LOSS)

    def _pause_after(self, note: HeardNote, result: str) -> float:
        """Seconds until the next look."""
        if result == WAITING:
            return 0.0
        if result == _NO_PLACE:  # each look may take from the budget that the others need
            return self._limits.longest_pause
        return max(min(self._limits.cooldown * (note.attempts + 1), self._limits.longest_pause), 0.05)

    def _judged(self, told: HeardNote, newest: SeenCheckpoint | None) -> tuple[str, int]:
        """The result of one look, and the entries that must be seen before the next one."""
        root = self._reader.registry_keys_in_memory()
        if root is None or newest is None:
            return UNDECIDED, 0
        try:
            note = decode_cp(told.cp)
        except DocumentRefused:
            return _NO_NOTE, 0
        try:
            if not is_peer(service_of(told.kid), root.subject) or parse_checkpoint(note).origin != root.subject:
                return _OTHER_DOMAIN, 0
            found = verify_checkpoint(note, root.subject, root.ledger_keys)
        except DocumentRefused as error:
            return _UNKNOWN_SIGNER if error.code == "document_unknown_signer" else _BAD_SIGNATURE, 0
        if told.cp in self._agreed or self._reader.ledger.is_known(found):
            return AGREED, 0
        if found.size > newest.checkpoint.size:
            return WAITING, found.size
        return self._compared(told, found, note, newest), 0

    def _compared(self, told: HeardNote, found: Checkpoint, note: str, newest: SeenCheckpoint) -> str:
        fork = None
        if 0 < found.size < newest.checkpoint.size:
            if not self._budget.take():
                return _NO_BUDGET
            try:
                if self._is_beginning(found, newest.checkpoint):
                    return AGREED
                nodes = nodes_of_mirror(self._reader.fetcher, newest.checkpoint.size)
                fork = Fork.of(found.size, newest.checkpoint, nodes)
            except (DocumentRefused, FetchError, TrustUnavailable) as error:
                log.info("the checkpoint that %s told of cannot be compared (%s): %s", told.service, error.code, error)
                return UNDECIDED
        verdict = compared(found, newest.checkpoint, fork)
        if not verdict.proven:
            return AGREED
        seen = Sighting(0, told.service, int(told.at)), Sighting(1, registry_id(found.origin), int(newest.seen_at))
        evidence = Evidence(found.origin, (note, newest.note), seen, fork)
        return CONTRADICTED if self._suspect((found, newest.checkpoint), evidence) else _NO_PLACE

    def _is_beginning(self, found: Checkpoint, newest: Checkpoint) -> bool:
        try:
            self._reader.ledger.ask_for_proof(found, newest)
        except (DocumentRefused, FetchError):
            return False
        return True

    # ---- contradictions

    def _suspect(self, heads: _Heads, evidence: Evidence) -> bool:
        """Have it looked at again soon. False where too many wait for that."""
        with self._lock:
            if heads not in self._suspects and len(self._suspects) >= _SUSPECTS:
                return False
            now = time.monotonic()
            self._suspects.setdefault(heads, _Suspect(evidence, now, now + self._limits.cooldown))
            return True

    def _decide(self, heads: _Heads, suspect: _Suspect) -> None:
        """Report the contradiction, unless a statement of the root explains it, or the root has dropped the key that
        signed it. Where the registry does not say whether there is such a statement, ask again, until the offline limit
        is over."""
        now, evidence = time.monotonic(), suspect.evidence
        with self._lock:
            self._suspects[heads] = replace(suspect, due_at=now + max(self._limits.cooldown, 1.0))
        try:
            explained, evidence = explanation(self._reader, evidence)
        except (FetchError, DocumentRefused, TrustUnavailable) as error:
            if now - suspect.since < self._limits.offline_limit:
                log.warning("two histories may have been shown, and the root's statements cannot be had: %s", error)
                return
            explained = None
        with self._lock:
            self._suspects.pop(heads, None)
        if explained is None:
            self._alarm(heads, evidence)
        else:
            self._heard.add(explained)

    def _alarm(self, heads: _Heads, evidence: Evidence) -> None:
        self._found.add()
        refuses, reports = self._limits.refuse_split_view, len(self._reported) < MOST_REPORTS
        if heads in self._reported or not (refuses or reports):
            return
        if reports:
            self._reported.add(heads)
        evidence, verdict = replace(evidence, registry_keys=self._signed_keys()), compared(*heads, evidence.fork)
        if refuses:
            self.standing.add(evidence)
        file, where = self._kept(evidence)
        told = evidence.seen[0].source
        log.error("split view of the ledger of %s, told by %s: %s; %s", evidence.domain, told, verdict.detail, where)
        if self.report is not None and reports:
            found = SplitView(evidence, verdict, file)
            threading.Thread(target=self.report, args=(found,), name="peerseal-split-view", daemon=True).start()

    def _kept(self, evidence: Evidence) -> tuple[Path | None, str]:
        """The file of the evidence, and what to say of it."""
        try:
            file = self._files.keep(evidence, self._reader.registry_keys_in_memory())
        except ConfigurationError as error:
            return None, f"the evidence cannot be written, and a restarted process will not know of it: {error}"
        return file, "no folder to keep it" if file is None else f"check it with `peerseal evidence verify {file}`"

    def _signed_keys(self) -> str | None:
        try:
            return self._reader.signed_registry_keys()
        except PeersealError as error:
            log.warning("the evidence lacks the registry's keys, give the ledger's key to verify it: %s", error)
            return None
