"""A ledger in memory."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.protocol.ledger import merkle
from peerseal.protocol.ledger.checkpoint import Checkpoint, ledger_jwk, sign_checkpoint
from peerseal.protocol.ledger.entries import Entry


class MemoryLedger:
    """A ledger in memory: entries, the tree over them, and the key that signs its checkpoints."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.key = Ed25519PrivateKey.generate()
        self.entries: list[Entry] = []
        self._leaves: list[bytes] = []
        self._nodes: dict[tuple[int, int], bytes] = {}

    @property
    def jwk(self) -> dict[str, str]:
        """The public key."""
        return ledger_jwk(self.key.public_key())

    def append(self, entry: Entry) -> int:
        """Add an entry, whose seq must be the next; the ledger's size after it."""
        if entry.seq != len(self.entries) + 1:
            raise ValueError(f"entry {entry.seq} after entry {len(self.entries)}")
        self.entries.append(entry)
        self._leaves.append(entry.leaf)
        return entry.seq

    def checkpoint(self, size: int | None = None) -> str:
        """The signed head, now or at that size."""
        size = len(self.entries) if size is None else size
        return sign_checkpoint(Checkpoint(self.origin, size, merkle.root_hash(size, self.node)), self.key)

    def inclusion(self, index: int, size: int | None = None) -> merkle.Proof:
        """The proof of an entry in the whole tree, or in the tree of that size."""
        return merkle.inclusion_proof(index, len(self.entries) if size is None else size, self.node)

    def consistency(self, old: int, new: int) -> merkle.Proof:
        """The proof that the tree of size ``new`` begins with that of size ``old``."""
        return merkle.consistency_proof(old, new, self.node)

    def node(self, level: int, number: int) -> bytes:
        """A `peerseal.protocol.ledger.merkle.NodeReader`."""
        if level == 0:
            return self._leaves[number]
        found = self._nodes.get((level, number))
        if found is None:
            left, right = self.node(level - 1, 2 * number), self.node(level - 1, 2 * number + 1)
            found = self._nodes[level, number] = merkle.node_hash(left, right)
        return found
