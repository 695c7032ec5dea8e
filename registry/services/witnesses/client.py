"""Submits checkpoints to one witness, as https://c2sp.org/tlog-witness describes it."""

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Final

from peerseal.errors import DocumentRefused, FetchError
from peerseal.protocol.ledger.cosignature import Note, SignatureLine, cosigned_at, read_signature_lines
from peerseal.protocol.ledger.merkle import Proof
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import Answer, HttpFetcher
from registry.witness_addresses import WitnessAddress

LIMITS: Final = FetchLimits(connect_timeout=2.0, read_timeout=5.0, total_timeout=8.0, max_bytes=16 * 1024)
"""Limits of one submission. An answer is a line or two."""

_SIZE = re.compile(rb"(0|[1-9][0-9]{0,17})\n?")
_REMEDIES: Final = {
    400: "the witness cannot read it: is the URL the witness' submission prefix?",
    403: "have the witness accept the ledger's present key (peerseal witness: start it again)",
    404: "have the witness accept this ledger, or correct the URL in REGISTRY_WITNESSES",
    409: "the witness has cosigned another tree of this size: compare with a kept checkpoint, as for a forked ledger",
    422: "the witness holds a tree that this ledger does not continue: compare as for a forked ledger",
    429: "the witness limits submissions",
}

Prove = Callable[[int], Proof]
"""The consistency proof from the tree of that size to the submitted one."""


class NotCosigned(Exception):
    """The witness did not cosign the checkpoint; the message says why, and what to do. ``size`` is that of a larger
    tree which the witness has cosigned, if this is why."""

    def __init__(self, reason: str, size: int | None = None) -> None:
        super().__init__(reason)
        self.size = size


class WitnessClient:
    """One witness. Not safe to use from several threads at once: each witness has one submission at a time."""

    def __init__(self, address: WitnessAddress, limits: FetchLimits = LIMITS) -> None:
        self.key = address.key
        self._fetcher = HttpFetcher([address.url], limits)
        self._size = 0

    def cosign(self, note: Note, prove: Prove) -> SignatureLine:
        """The witness' cosignature of the checkpoint, checked. Raises NotCosigned, and what ``prove`` raises."""
        answer = self._submit(note, min(self._size, note.claimed.size), prove)
        if answer.status == 409:
            told = self._read_size(answer)
            answer = self._submit(note, told, prove)
            self._size = told  # not larger than this ledger: a wrong size must not keep the witness from being asked
            if answer.status == 409 and (size := self._read_size(answer)) != told:
                raise NotCosigned(f"it has cosigned {size} entries meanwhile", size)
        if answer.status != 200:
            raise NotCosigned(f"status {answer.status}: {_REMEDIES.get(answer.status, 'see the log of the witness')}")
        line = self._read_line(answer, note)
        self._size = note.claimed.size
        return line

    def _submit(self, note: Note, old: int, prove: Prove) -> Answer:
        if old > note.claimed.size:
            raise NotCosigned(f"it has cosigned {old} entries, and this ledger has {note.claimed.size}", old)
        proof = prove(old) if 0 < old < note.claimed.size else ()
        lines = f"old {old}", *(b64encode(part).decode("ascii") for part in proof), "", note.text.rstrip("\n"), ""
        body = "\n".join([*lines, *map(str, note.signatures), ""])
        try:
            return self._fetcher.call("POST", "/add-checkpoint", body=body.encode("utf-8"))
        except FetchError as error:
            raise NotCosigned(f"it gave no answer: {error}") from error

    def _read_size(self, answer: Answer) -> int:
        """The size of the newest tree that the witness has cosigned."""
        match = _SIZE.fullmatch(answer.body)
        if match is None:
            raise NotCosigned("status 409 without the size of the newest tree: is it a witness of C2SP tlog-witness?")
        return int(match[1])

    def _read_line(self, answer: Answer, note: Note) -> SignatureLine:
        try:
            found = Note(note.text, note.claimed, tuple(read_signature_lines(answer.body.decode("utf-8", "replace"))))
        except DocumentRefused as error:
            raise NotCosigned(f"its answer has no signature lines: {error}") from error
        for line in found.signatures:
            if cosigned_at(Note(note.text, note.claimed, (line,)), self.key) is not None:
                return line
        raise NotCosigned("no line of its answer is its cosignature of this checkpoint: is its key the right one?")
