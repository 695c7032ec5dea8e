"""The ledger's tree: RFC 6962 section 2.1 hashing, and RFC 9162 section 2.1 proofs. Pure functions over hashes.

A tree of n leaves has one root hash. An inclusion proof leads from one leaf to the root, a consistency proof from the
root of an earlier tree to the root of a later one. A client that checks consistency proofs detects a history that
contradicts the one it has seen. If the registry shows two clients two histories, they detect it only by comparing their
roots. Leaves are counted from 0; a node at ``level`` and ``number`` is the root of the complete subtree over the
``2**level`` leaves from ``number * 2**level`` on.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from peerseal.errors import DocumentRefused

HASH_SIZE: Final = 32
"""Bytes of a hash."""
MAX_PROOF: Final = 64
"""Hashes of a proof, at most: one for each level, and one more for consistency. No tree has 2**63 leaves."""
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""``(level, number)`` to the hash of that complete subtree."""
Proof = tuple[bytes, ...]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a tree: its size, and the hashes of the complete subtrees that it is made of, largest first.
    That is enough to append, to compute the root, and to prove the next leaf."""

    size: int = 0
    hashes: Proof = ()

    def appended(self, leaf: bytes) -> "Frontier":
        """The frontier with this leaf hash appended."""
        hashes, size = [*self.hashes, leaf], self.size
        while size & 1:  # two complete subtrees of one size become one
            right = hashes.pop()
            hashes[-1] = node_hash(hashes[-1], right)
            size >>= 1
        return Frontier(self.size + 1, tuple(hashes))

    @property
    def root(self) -> bytes:
        """The root hash of the tree."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def within(self, most: int) -> Self:
        """The edge of the largest earlier tree of at most ``most`` leaves that this edge alone determines; the empty
        one where there is none."""
        size, hashes = 0, list[bytes]()
        for level, found in zip(_levels_of(self.size), self.hashes, strict=True):
            if size + (1 << level) > most:
                break
            size += 1 << level
            hashes.append(found)
        return type(self)(size, tuple(hashes))

    @property
    def proof_of_next(self) -> Proof:
        """The inclusion proof of the next leaf, valid once it is appended."""
        return self.hashes[::-1]

    def encode(self) -> bytes:
        """The hashes, concatenated."""
        return b"".join(self.hashes)

    @classmethod
    def decode(cls, size: int, data: bytes) -> Self:
        """Read the result of `encode`. Raises ValueError where the bytes are no frontier of a tree of that size."""
        if len(data) != HASH_SIZE * size.bit_count():
            raise ValueError("not the frontier of a tree of that size")
        return cls(size, tuple(data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)))


def frontier_at(size: int, node: NodeReader) -> Frontier:
    """The right edge that the tree had at that size."""
    hashes, begin = [], 0
    for level in _levels_of(size):
        hashes.append(node(level, begin >> level))
        begin += 1 << level
    return Frontier(size, tuple(hashes))


def _levels_of(size: int) -> Iterator[int]:
    """The levels of the complete subtrees of a tree of that size, the largest first."""
    return (level for level in reversed(range(size.bit_length())) if (size >> level) & 1)


def range_hash(begin: int, end: int, node: NodeReader) -> bytes:
    """The root hash over the leaves from ``begin`` to before ``end``, as MTH splits them (RFC 9162 section 2.1.1)."""
    size = end - begin
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, begin >> level)
    middle = begin + _split(size)
    return node_hash(range_hash(begin, middle, node), range_hash(middle, end, node))


def root_hash(size: int, node: NodeReader) -> bytes:
    """The root hash of the tree of that size."""
    return range_hash(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: NodeReader) -> Proof:
    """The proof that leaf ``index`` is in the tree of that size (RFC 9162 section 2.1.3.1). Raises ValueError."""
    if not 0 <= index < size:
        raise ValueError("no such leaf in a tree of that size")
    proof: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            proof.append(range_hash(middle, end, node))
            end = middle
        else:
            proof.append(range_hash(begin, middle, node))
            begin = middle
    return tuple(reversed(proof))


def consistency_proof(old: int, new: int, node: NodeReader) -> Proof:
    """The proof that the tree of size ``new`` begins with the one of size ``old`` (RFC 9162 section 2.1.4.1).
    Raises ValueError."""
    if not 0 < old <= new:
        raise ValueError(f"no tree of size {new} begins with one of size {old}, expected 1 to {new}")
    proof: list[bytes] = []
    begin, end = 0, new
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            proof.append(range_hash(middle, end, node))
            end = middle
        else:
            proof.append(range_hash(begin, middle, node))
            begin = middle
    if begin:  # else what remains is the old tree, whose root the reader has
        proof.append(range_hash(begin, end, node))
    return tuple(reversed(proof))


def earlier_root(old: int, new: int, new_root: bytes, node: NodeReader) -> bytes:
    """The root hash at size ``old`` of the tree that has ``new_root`` at size ``new``. The nodes need no trust.

    Raises DocumentRefused with ``document_inconsistent`` where they are not of that tree, ValueError where ``old`` is
    none of its sizes from 1 on.
    """
    root = root_hash(old, node)
    check_consistency(old, root, new, new_root, consistency_proof(old, new, node))
    return root


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raises DocumentRefused with ``document_not_in_ledger`` unless the leaf hash is at ``index`` in the tree with this
    root (RFC 9162 section 2.1.3.2)."""
    _check_shape(proof)
    found = leaf
    try:
        for part, is_left in _steps_to_root(index, size - 1, proof):
            found = node_hash(part, found) if is_left else node_hash(found, part)
    except ValueError as error:
        raise _not_included() from error
    if found != root:
        raise _not_included()


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raises DocumentRefused with ``document_inconsistent`` unless the tree of size ``new`` begins with the one of size
    ``old`` (RFC 9162 section 2.1.4.2)."""
    _check_shape(proof)
    if old in (0, new):
        if proof or (old == new and old_root != new_root):
            raise _inconsistent()
        return
    parts = list(proof) if old & (old - 1) else [old_root, *proof]
    if not 0 < old < new or not parts:
        raise _inconsistent()
    number, last = old - 1, new - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    first = second = parts[0]
    try:
        for part, is_left in _steps_to_root(number, last, parts[1:]):
            first = node_hash(part, first) if is_left else first
            second = node_hash(part, second) if is_left else node_hash(second, part)
    except ValueError as error:
        raise _inconsistent() from error
    if first != old_root or second != new_root:
        raise _inconsistent()


def _steps_to_root(number: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """From the node ``number`` of a level whose last node is ``last`` up to the root: each hash of the proof, and
    whether it is the left one of its pair. Raises ValueError for a proof of the wrong length."""
    if not 0 <= number <= last:
        raise ValueError("no such node")
    for part in proof:
        if last == 0:
            raise ValueError("the proof is too long")
        is_left = bool(number & 1) or number == last
        yield part, is_left
        while is_left and number and not number & 1:  # levels at which the last node has no partner
            number, last = number >> 1, last >> 1
        number, last = number >> 1, last >> 1
    if last != 0:
        raise ValueError("the proof is too short")


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _check_shape(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF or any(len(part) != HASH_SIZE for part in proof):
        raise DocumentRefused("document_malformed", "not a proof")


def _not_included() -> DocumentRefused:
    return DocumentRefused("document_not_in_ledger", "the proof does not lead from the entry to the checkpoint")


def _inconsistent() -> DocumentRefused:
    detail = "the proof is malformed, the ledger was rewritten, or the server shows a different one"
    return DocumentRefused("document_inconsistent", detail)
