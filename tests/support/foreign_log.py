"""A transparency log as a witness meets it: it grows, signs its checkpoints, and proves that they are consistent."""

from base64 import b64encode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.protocol.ledger.checkpoint import Checkpoint, sign_checkpoint
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.protocol.ledger.merkle import consistency_proof, leaf_hash, node_hash, range_hash, root_hash


class ForeignLog:
    """A log in memory; ``kind`` makes its leaves, so that two logs of one key and two kinds are a fork."""

    def __init__(self, origin: str = "log.example", kind: str = "leaf", key: Ed25519PrivateKey | None = None) -> None:
        self.origin = origin
        self.kind = kind
        self.signer = key or Ed25519PrivateKey.generate()

    @property
    def key(self) -> NoteKey:
        return NoteKey.of(self.origin, LOG_KEY, self.signer.public_key())

    def fork(self) -> "ForeignLog":
        """Another history, signed by the same key."""
        return ForeignLog(self.origin, self.kind + " forked", self.signer)

    def note(self, size: int) -> str:
        return sign_checkpoint(Checkpoint(self.origin, size, root_hash(size, self._node)), self.signer)

    def proof(self, old: int, new: int) -> list[str]:
        """The lines of the consistency proof."""
        parts = consistency_proof(old, new, self._node) if old else ()
        return [b64encode(part).decode("ascii") for part in parts]

    def submission(self, old: int, new: int, *, note: str | None = None, proof: list[str] | None = None) -> bytes:
        """The body of a call to ``add-checkpoint``."""
        lines = self.proof(old, new) if proof is None else proof
        return "".join(f"{line}\n" for line in (f"old {old}", *lines, "")).encode() + (note or self.note(new)).encode()

    def _node(self, level: int, number: int) -> bytes:
        if level == 0:
            return leaf_hash(f"{self.kind} {number}".encode())
        begin = number << level
        half = 1 << (level - 1)
        left, right = (range_hash(at, at + half, self._node) for at in (begin, begin + half))
        return node_hash(left, right)
