"""Has the witnesses cosign each checkpoint, and keeps the newest one that enough of them have cosigned.

One thread of one worker process of a node submits, and a short thread for each submission waits for its witness, so no
request and no publication waits for one. Each witness has one submission at a time. The checkpoint that is submitted is
replaced by a newer one once enough witnesses have cosigned it, or all have answered; entries of meanwhile go along.
Without new entries it is submitted again once a minute, so that the times of the cosignatures stay young. Other nodes
do the same: a witness that has cosigned their larger tree is asked with a newer checkpoint.
"""

import logging
import threading
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from peerseal.errors import PeersealError
from peerseal.protocol.ledger.cosignature import Note, NoteKey, SignatureLine, cosigned_at
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.tokens.claims import LATEST_TIME
from peerseal.runtime.backoff import backoff
from registry.domain.errors import NotFound
from registry.services.documents.answer_cache import NOTE, PublicAnswer
from registry.services.use_case import Node
from registry.services.witnesses.client import NotCosigned, WitnessClient
from registry.services.witnesses.state import Cosigned, CosignedFile, QuorumState, WitnessState, written
from registry.settings import Settings
from registry.storage.queries import ledger

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the head: entries of that time are cosigned together."""
AGAIN_AFTER: Final = 60
"""Seconds after which a witness cosigns the same checkpoint again, at a later time."""
LONGEST_REST: Final = 60.0
"""Seconds for which a witness that fails is left alone, at most."""
MOST_OFF: Final = 60
"""Seconds between the time in a cosignature and this node's, at most: clients count from the former."""
_LONGEST_TROUBLE = 300


@dataclass(slots=True)
class _Submitted:
    """A checkpoint on its way: the note with the log's lines only, the line of each witness, and the names of those
    that have not answered yet."""

    note: Note
    lines: dict[NoteKey, SignatureLine] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)

    def cosigned(self) -> Note:
        """The note with all lines."""
        return replace(self.note, signatures=(*self.note.signatures, *self.lines.values()))


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of a submission."""

    witness: NoteKey
    note: Note
    line: SignatureLine | None = None
    failure: str = ""


class Cosigning:
    """The submissions of one process, and what the node serves."""

    def __init__(self, settings: Settings, node: Node) -> None:
        self._node = node
        self._clients = {one.key.name: WitnessClient(one) for one in settings.witnesses}
        self._file = CosignedFile(settings.home)
        self._submitted: _Submitted | None = None
        self._results: SimpleQueue[_Result | None] = SimpleQueue()  # None ends a wait
        self._flying: set[str] = set()
        self._thread: threading.Thread | None = None
        self._starting, self._stopping = threading.Lock(), threading.Event()
        self._blind = False

    # ---- what is served

    def newest(self) -> PublicAnswer:
        """The newest checkpoint that enough witnesses have cosigned, with their lines. Raises NotFound where there is
        none, and as `AuthoritySource.in_force`."""
        note = self._kept()
        if note is None:
            raise NotFound("not_cosigned")
        now, size = int(self._node.clock()), note.claimed.size
        return PublicAnswer.of(written(note).encode("utf-8"), NOTE, size, size, now, now)

    def _kept(self) -> Note | None:
        """What the file holds; it counts without witnesses of this node, too, while the root asks for a quorum."""
        return self._file.read().note if self._clients or self._quorum() is not None else None

    def states(self) -> dict[str, WitnessState]:
        """The state of each witness, by its name."""
        found = self._file.read().witnesses if self._clients else {}
        return {name: found.get(name, WitnessState()) for name in self._clients}

    def quorum(self) -> QuorumState | None:
        """The quorum of the root; None where it names none. Raises as `AuthoritySource.in_force`."""
        quorum = self._quorum()
        if quorum is None:
            return None
        note = self._kept()
        at = None if note is None else quorum.cosigned_at(note)
        asked = {client.key for client in self._clients.values()}
        unasked = tuple(key.name for key in quorum.witnesses if key not in asked)
        size = 0 if note is None or at is None else note.claimed.size
        return QuorumState(quorum.needed, len(quorum.witnesses), size, min(at or 0, LATEST_TIME), unasked)

    # ---- the thread

    def start(self) -> None:
        """Starts the thread of this process unless it runs, or there are no witnesses."""
        if not self._clients or (self._thread is not None and self._thread.is_alive()):
            return
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._stopping, self._results = threading.Event(), SimpleQueue()
                self._thread = threading.Thread(target=self._run, name="cosigning", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and waits for its end. Submissions under way end by themselves."""
        self._stopping.set()
        self._results.put(None)
        if self._thread is not None:
            self._thread.join()
        self._file.resign()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._file.lead():
                    self.step()
                self._blind = False
            except (PeersealError, SQLAlchemyError, OSError) as error:
                if not self._blind:
                    log.warning("no checkpoint can be submitted to the witnesses: %s", error)
                self._blind = True
            except Exception:
                log.exception("a submission to the witnesses failed")
            self._await_result()

    def _await_result(self) -> None:
        """Waits for the next look at the head, or for an answer, which the next step keeps."""
        try:
            self._results.put(self._results.get(timeout=LOOK_EVERY))
        except Empty:
            return
        self._stopping.wait(LOOK_EVERY / 10)  # witnesses that answer at the same time

    def step(self) -> None:
        """Keeps what the witnesses have answered, and submits the newest checkpoint to those that are due. Raises
        PeersealError or SQLAlchemyError."""
        while not self._results.empty():
            if (result := self._results.get()) is not None:
                self._keep(result)
        self._serve_newer()
        due = self._due(self._node.revisions.head())
        if due and self._settled():
            self._submitted = self._newest_checkpoint()
        if self._submitted is not None:
            for name in due:
                self._submit(name, self._submitted)

    def _due(self, head: int) -> list[str]:
        """The names of the witnesses that are asked now, for a ledger with that many entries."""
        now, states = self._node.clock(), self.states()
        return [name for name, state in states.items() if name not in self._flying and _is_due(state, head, now)]

    def _settled(self) -> bool:
        """Whether another checkpoint may be submitted: all have answered about the last one, or enough have."""
        submitted = self._submitted
        return submitted is None or not submitted.waiting or self._is_enough(submitted)

    def _newest_checkpoint(self) -> _Submitted:
        """The head of the ledger. The lines that it has already stay until there are new ones."""
        with self._node.store.read() as connection:
            edge = ledger.frontier(connection)
        note = Note.parse(self._node.authority.current().checkpoint(edge))
        if self._submitted is not None and self._submitted.note.text == note.text:
            return _Submitted(note, self._submitted.lines)
        known = self._file.read().note
        return _Submitted(note, {} if known is None or known.text != note.text else self._lines_in(known))

    def _lines_in(self, note: Note) -> dict[NoteKey, SignatureLine]:
        """The cosignatures in it of this node's witnesses, and of those that the root names."""
        quorum = self._quorum()
        keys = [*(client.key for client in self._clients.values()), *(quorum.witnesses if quorum else ())]
        return {key: line for key in keys for line in note.signatures if _time_in(line, note, key) is not None}

    def _submit(self, name: str, submitted: _Submitted) -> None:
        client = self._clients[name]
        submitted.waiting.add(name)
        self._flying.add(name)

        def cosign() -> None:
            line, failure = None, "an error of this node, see its log"
            try:
                line, failure = client.cosign(submitted.note, lambda old: self._proof(old, submitted.note)), ""
            except (NotCosigned, PeersealError, SQLAlchemyError) as error:
                failure = str(error)[:_LONGEST_TROUBLE]
            finally:
                self._results.put(_Result(client.key, submitted.note, line, failure))

        threading.Thread(target=cosign, name=f"cosigning-{name}", daemon=True).start()

    def _proof(self, old: int, note: Note) -> Proof:
        with self._node.store.read() as connection:
            return self._node.ledger.consistency_in(connection, old, note.claimed.size)

    # ---- what came of it

    def _keep(self, result: _Result) -> None:
        name, submitted = result.witness.name, self._submitted
        self._flying.discard(name)
        if submitted is not None and submitted.note.text == result.note.text:
            submitted.waiting.discard(name)
            if result.line is not None:
                submitted.lines[result.witness] = result.line
        self._file.write(Cosigned(self._to_serve(), {**self.states(), name: self._state_after(result)}))

    def _serve_newer(self) -> None:
        """Serves the submitted checkpoint where the root has named other witnesses since these have answered."""
        known, newest = self._file.read(), self._to_serve()
        if newest != known.note:
            self._file.write(replace(known, note=newest))

    def _to_serve(self) -> Note | None:
        """What is to be served."""
        newest, submitted = self._file.read().note, self._submitted
        if submitted is None or not submitted.lines or not self._may_replace(newest, submitted):
            return newest
        return submitted.cosigned()

    def _state_after(self, result: _Result) -> WitnessState:
        now, before = int(self._node.clock()), self.states()[result.witness.name]
        at = None if result.line is None else _time_in(result.line, result.note, result.witness)
        if at is None:
            return self._failed(result.witness.name, before, result.failure)
        found = replace(before, size=result.note.claimed.size, at=min(at, LATEST_TIME))
        if abs(at - now) > MOST_OFF:
            off = f"more than {MOST_OFF} s {'behind' if at < now else 'ahead of'} this node's"
            return self._failed(
                result.witness.name, found, f"its clock is {off}: tell its operator, or correct this one"
            )
        if before.failures:
            log.info("the witness %s cosigns again", result.witness.name)
        return replace(found, failures=0, tried_at=now, trouble="")

    def _failed(self, name: str, state: WitnessState, trouble: str) -> WitnessState:
        if state.failures == 1 or (state.failures and state.trouble != trouble):  # not of one race of nodes
            log.warning("the witness %s fails: %s", name, trouble)
        return replace(state, failures=state.failures + 1, tried_at=int(self._node.clock()), trouble=trouble)

    def _may_replace(self, newest: Note | None, submitted: _Submitted) -> bool:
        """Whether the submitted checkpoint is served in place of the newest one: enough witnesses have cosigned it; or
        the root asks for no quorum which the one before has, and it is the same, or all have answered."""
        if self._is_enough(submitted):
            return True
        quorum = self._quorum()
        if newest is None or quorum is None or quorum.cosigned_at(newest) is None:
            return not submitted.waiting or (newest is not None and newest.text == submitted.note.text)
        return False

    def _is_enough(self, submitted: _Submitted) -> bool:
        """Whether it has the cosignatures that the root asks for; all of them where it asks for none."""
        quorum = self._quorum()
        if quorum is None:
            return all(client.key in submitted.lines for client in self._clients.values())
        return quorum.cosigned_at(submitted.cosigned()) is not None

    def _quorum(self) -> Quorum | None:
        return self._node.authority.in_force().keys.witnesses


def _is_due(state: WitnessState, head: int, now: float) -> bool:
    if state.failures:
        return abs(now - state.tried_at) >= backoff(state.failures, first=1.0, longest=LONGEST_REST)
    return state.size != head or abs(now - state.tried_at) >= AGAIN_AFTER


def _time_in(line: SignatureLine, note: Note, witness: NoteKey) -> int | None:
    """When the witness cosigned the note, by this line; None where the line is not its cosignature."""
    return cosigned_at(replace(note, signatures=(line,)), witness)
