"""The ledger's tree: known vectors, and every proof of every small tree, right and altered."""

import hashlib
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import DocumentRefused
from peerseal.protocol.ledger.merkle import (
    EMPTY_ROOT,
    MAX_PROOF,
    Frontier,
    NodeReader,
    Proof,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_hash,
)

# The reference tree of the certificate-transparency project: its inputs, the roots of its first 1 to 8 leaves, and
# some of its proofs.
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSIONS = [
    (0, 1, []),
    (
        *(0, 8),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        *(5, 8),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        *(1, 5),
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCIES = [
    (1, 1, []),
    (
        *(1, 8),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        *(6, 8),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        *(2, 5),
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


def nodes(leaves: list[bytes]) -> NodeReader:
    """A NodeReader over these leaf hashes."""

    def node(level: int, number: int) -> bytes:
        if level == 0:
            return leaves[number]
        return node_hash(node(level - 1, 2 * number), node(level - 1, 2 * number + 1))

    return node


def tree(size: int) -> NodeReader:
    return nodes([leaf_hash(number.to_bytes(4, "big")) for number in range(size)])


def as_rfc_6962_writes_it(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return hashlib.sha256(
        b"\x01" + as_rfc_6962_writes_it(leaves[:split]) + as_rfc_6962_writes_it(leaves[split:])
    ).digest()


def refused(job: Callable[[], None], *codes: str) -> bool:
    with pytest.raises(DocumentRefused) as caught:
        job()
    return caught.value.code in codes


REFERENCE = nodes([leaf_hash(data) for data in INPUTS])


class TestReferenceTree:
    @pytest.mark.parametrize("size", range(1, 9))
    def test_its_roots(self, size: int) -> None:
        assert root_hash(size, REFERENCE).hex() == ROOTS[size - 1]

    @pytest.mark.parametrize(("index", "size", "proof"), INCLUSIONS)
    def test_its_inclusion_proofs(self, index: int, size: int, proof: list[str]) -> None:
        assert [part.hex() for part in inclusion_proof(index, size, REFERENCE)] == proof
        root = bytes.fromhex(ROOTS[size - 1])
        check_inclusion(leaf_hash(INPUTS[index]), index, size, [bytes.fromhex(part) for part in proof], root)

    @pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCIES)
    def test_its_consistency_proofs(self, old: int, new: int, proof: list[str]) -> None:
        assert [part.hex() for part in consistency_proof(old, new, REFERENCE)] == proof
        roots = bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[new - 1])
        check_consistency(old, roots[0], new, roots[1], [bytes.fromhex(part) for part in proof])


def test_the_empty_tree() -> None:
    assert root_hash(0, tree(0)) == EMPTY_ROOT == Frontier().root == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 40))
def test_every_leaf_of_every_small_tree_is_proven(size: int) -> None:
    node = tree(size)
    root = root_hash(size, node)
    assert root == as_rfc_6962_writes_it([node(0, index) for index in range(size)])
    for index in range(size):
        proof = inclusion_proof(index, size, node)
        check_inclusion(node(0, index), index, size, proof, root)
        for other in {*range(size)} - {index}:
            wrong = partial(check_inclusion, node(0, other), index, size, proof, root)
            assert refused(wrong, "document_not_in_ledger")


@pytest.mark.parametrize("new", range(1, 40))
def test_every_small_tree_begins_with_every_smaller_one(new: int) -> None:
    node = tree(new)
    for old in range(1, new + 1):
        proof = consistency_proof(old, new, node)
        check_consistency(old, root_hash(old, node), new, root_hash(new, node), proof)
        forked = leaf_hash(b"another entry")
        other = nodes([*(node(0, index) for index in range(old - 1)), forked])
        wrong = partial(check_consistency, old, root_hash(old, other), new, root_hash(new, node), proof)
        assert refused(wrong, "document_inconsistent")


def test_a_frontier_grows_into_the_same_trees() -> None:
    frontier, node = Frontier(), tree(300)
    for size in range(1, 301):
        leaf, before = node(0, size - 1), frontier
        frontier = frontier.appended(leaf)
        assert frontier.root == root_hash(size, node)
        assert before.proof_of_next == inclusion_proof(size - 1, size, node)
        assert Frontier.decode(size, frontier.encode()) == frontier
    for data in (b"", frontier.encode()[:-1], frontier.encode() + bytes(32)):
        with pytest.raises(ValueError, match="frontier"):
            Frontier.decode(300, data)


def altered(draw: st.DrawFn, proof: Proof) -> Proof:
    """Another proof: one bit changed, one part dropped, doubled or added, two exchanged, or none left."""
    parts, at = list(proof), draw(st.integers(0, max(0, len(proof) - 1)))
    match draw(st.sampled_from(["bit", "drop", "double", "append", "prepend", "swap", "none"])):
        case "bit" if parts:
            bit = draw(st.integers(0, 255))
            parts[at] = (int.from_bytes(parts[at], "big") ^ (1 << bit)).to_bytes(32, "big")
        case "drop" if parts:
            del parts[at]
        case "double" if parts:
            parts.insert(at, parts[at])
        case "prepend":
            parts.insert(0, draw(st.binary(min_size=32, max_size=32)))
        case "swap" if len(parts) > 1:
            parts[at - 1], parts[at] = parts[at], parts[at - 1]
        case "none" if parts:
            parts = []
        case _:
            parts.append(draw(st.binary(min_size=32, max_size=32)))
    return tuple(parts)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_an_altered_inclusion_proof_proves_nothing(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 260))
    index, node = data.draw(st.integers(0, size - 1)), tree(size)
    proof, leaf, root = inclusion_proof(index, size, node), node(0, index), root_hash(size, node)
    check_inclusion(leaf, index, size, proof, root)
    assert refused(
        lambda: check_inclusion(leaf, index, size, altered(data.draw, proof), root), "document_not_in_ledger"
    )
    other = data.draw(st.integers(-1, size + 3).filter(lambda number: number != index))
    assert refused(lambda: check_inclusion(leaf, other, size, proof, root), "document_not_in_ledger")


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_an_altered_consistency_proof_proves_nothing(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 260))
    old, node = data.draw(st.integers(1, new)), tree(new)
    proof, roots = consistency_proof(old, new, node), (root_hash(old, node), root_hash(new, node))
    check_consistency(old, roots[0], new, roots[1], proof)
    wrong = altered(data.draw, proof)
    assert refused(lambda: check_consistency(old, roots[0], new, roots[1], wrong), "document_inconsistent")
    if old != new:
        assert refused(lambda: check_consistency(old, roots[1], new, roots[1], proof), "document_inconsistent")
        assert refused(lambda: check_consistency(old, roots[0], new, roots[0], proof), "document_inconsistent")
        assert refused(lambda: check_consistency(new, roots[1], old, roots[0], proof), "document_inconsistent")


@given(st.integers(-3, 70), st.integers(-3, 70), st.lists(st.binary(min_size=30, max_size=33), max_size=MAX_PROOF + 2))
@settings(deadline=None)
def test_whatever_is_no_proof_is_refused_by_its_code(first: int, second: int, proof: list[bytes]) -> None:
    codes = "document_malformed", "document_not_in_ledger", "document_inconsistent"
    assert refused(lambda: check_inclusion(bytes(32), first, second, proof, b"\xff" * 32), *codes)
    if first != 0:
        assert refused(lambda: check_consistency(first, bytes(32), second, b"\xff" * 32, proof), *codes)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 3), (3, 3)])
def test_no_proof_is_made_of_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion_proof(index, size, tree(size))


@pytest.mark.parametrize(("old", "new"), [(0, 3), (-1, 3), (4, 3)])
def test_no_proof_is_made_of_trees_that_do_not_follow_each_other(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="begins with"):
        consistency_proof(old, new, tree(4))
