"""Vectors for the ledger: inclusion, consistency, checkpoints."""

from base64 import b64encode
from itertools import pairwise
from typing import Any, Final

from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger import merkle
from peerseal.protocol.ledger.checkpoint import Checkpoint, encode_proof, ledger_jwk, sign_checkpoint
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey, cosign
from tests.vectors.world import DOMAIN, Vectors, ledger_key, seed

LEAVES: Final = [merkle.leaf_hash(b"entry %d" % number) for number in range(300)]
SIZES: Final = (1, 2, 3, 5, 8, 255, 256, 257, 300)


def _node(level: int, number: int) -> bytes:
    if level == 0:
        return LEAVES[number]
    return merkle.node_hash(_node(level - 1, 2 * number), _node(level - 1, 2 * number + 1))


def _root(size: int) -> str:
    return b64url(merkle.root_hash(size, _node))


def inclusions() -> Vectors:
    """Inclusion proofs."""
    made = Vectors("inclusion", "Inclusion proofs (RFC 9162 section 2.1.3.2). Leaf n is the entry `entry n`.")
    for size in SIZES:
        for index in sorted({0, size // 2, size - 1}):
            made.good(f"{index}-of-{size}", f"leaf {index} of {size}", **_inclusion(index, size))
    honest = _inclusion(2, 5)
    proof = honest["proof"]
    bad: dict[str, dict[str, Any]] = {
        "other-entry": {"entry": b64url(b"entry 3")},
        "other-index": {"index": 3},
        "index-beyond": {"index": 5},
        "other-size": {"size": 4},
        "other-root": {"root": _root(6)},
        "swapped": {"proof": [proof[1], proof[0], *proof[2:]]},
        "too-short": {"proof": proof[:-1]},
        "too-long": {"proof": [*proof, proof[0]]},
        "empty": {"proof": []},
        "node-as-leaf": {"entry": b64url(LEAVES[2] + LEAVES[3]), "index": 1, "size": 3, "proof": proof[1:]},
        "size-zero": {"size": 0, "index": 0, "proof": [], "root": b64url(merkle.EMPTY_ROOT)},
    }
    for name, changes in bad.items():
        made.bad(name, "document_not_in_ledger", "the proof does not lead to the root", **{**honest, **changes})
    made.bad(
        "short-hash", "document_malformed", "a hash of 31 bytes", **{**honest, "proof": [b64url(bytes(31)), *proof[1:]]}
    )
    return made


def _inclusion(index: int, size: int) -> dict[str, Any]:
    proof = encode_proof(merkle.inclusion_proof(index, size, _node))
    return {"entry": b64url(b"entry %d" % index), "index": index, "size": size, "proof": proof, "root": _root(size)}


def consistencies() -> Vectors:
    """Consistency proofs."""
    made = Vectors("consistency", "Consistency proofs (RFC 9162 section 2.1.4.2).")
    for old, new in [*pairwise(SIZES), (1, 300), (128, 256), (200, 300)]:
        made.good(f"{old}-{new}", f"the tree of {new} begins with that of {old}", **_consistency(old, new))
    made.good("same", "the same size and root", **{**_consistency(5, 5), "proof": []})
    honest = _consistency(3, 5)
    proof = honest["proof"]
    bad: dict[str, dict[str, Any]] = {
        "other-old-root": {"old_root": _root(2)},
        "other-new-root": {"new_root": _root(8)},
        "other-old-size": {"old": 2},
        "swapped": {"proof": [proof[1], proof[0], *proof[2:]]},
        "too-short": {"proof": proof[:-1]},
        "too-long": {"proof": [*proof, proof[0]]},
        "empty": {"proof": []},
        "same-size-other-root": {"old": 5, "proof": []},
        "smaller": {"old": 8, "old_root": _root(8)},
    }
    for name, changes in bad.items():
        made.bad(name, "document_inconsistent", "the trees do not agree", **{**honest, **changes})
    return made


def _consistency(old: int, new: int) -> dict[str, Any]:
    proof = encode_proof(merkle.consistency_proof(old, new, _node))
    return {"old": old, "old_root": _root(old), "new": new, "new_root": _root(new), "proof": proof}


def checkpoints() -> Vectors:
    """Signed notes."""
    key, other = ledger_key(), ledger_key("other")
    jwk, past = ledger_jwk(key.public_key()), ledger_jwk(other.public_key())
    made = Vectors(
        "checkpoint", "Checkpoints: C2SP signed notes. `keys` are the ledger keys that the root names.", [jwk]
    )
    made.defaults = {"origin": DOMAIN}
    head = Checkpoint(DOMAIN, 300, merkle.root_hash(300, _node))
    note = sign_checkpoint(head, key)
    text, _, line = note.partition("\n\n")
    facts = {"size": 300, "root": _root(300)}
    made.good("honest", "signed by the ledger's key", facts, note=note)
    made.good("empty-ledger", "of size 0", note=sign_checkpoint(Checkpoint(DOMAIN, 0, merkle.EMPTY_ROOT), key))
    witness = f"— witness.example {b64encode(seed('witness', 68)).decode()}\n"
    made.good("witness", "signatures under other names are ignored", facts, note=f"{text}\n\n{witness}{line}")
    bad = {
        "no-signature": f"{text}\n\n",
        "no-blank-line": f"{text}\n{line}",
        "no-last-line-feed": note[:-1],
        "leading-zero": note.replace("\n300\n", "\n0300\n"),
        "size-hex": note.replace("\n300\n", "\n12c\n"),
        "four-lines": note.replace("\n\n", "\nextension\n\n"),
        "other-size": note.replace("\n300\n", "\n301\n"),
        "other-root": sign_checkpoint(Checkpoint(DOMAIN, 300, bytes(32)), key).partition("\n\n")[0] + f"\n\n{line}",
        "hyphen": note.replace("—", "-"),
        "carriage-return": note.replace("\n", "\r\n"),
        "bad-base64": note.replace(line[-6:-2], "!!!!"),
        "many-signatures": f"{text}\n\n{line * 65}",
        "too-long": f"{text}\n\n{line}{witness * 40}{'x' * 16_384}\n",
    }
    for name, wrong in bad.items():
        made.bad(name, "document_bad_checkpoint", "not a checkpoint, or not signed", note=wrong)
    foreign = sign_checkpoint(Checkpoint("other.internal", 300, bytes(32)), key)
    made.bad("origin", "document_bad_checkpoint", "of another ledger", note=foreign)
    made.bad("signer", "document_unknown_signer", "signed by another key", note=sign_checkpoint(head, other))
    made.good(
        "past-key", "an earlier key that the root still names", note=sign_checkpoint(head, other), keys=[jwk, past]
    )
    return made


def cosigned() -> Vectors:
    """Checkpoints that witnesses cosigned."""
    key, at = ledger_key(), 1_790_000_000
    made = Vectors(
        "cosigned-checkpoint",
        "Checkpoints with cosignatures (C2SP cosignature/v1), and the witnesses and quorum that the root names.",
        [ledger_jwk(key.public_key())],
    )
    signers = {name: ledger_key(name) for name in ("first", "second", "third")}
    named = [{"name": name, "key": str(NoteKey.of(name, WITNESS_KEY, of.public_key()))} for name, of in signers.items()]
    made.defaults = {"origin": DOMAIN, "witnesses": named, "quorum": 2}
    note = sign_checkpoint(Checkpoint(DOMAIN, 300, merkle.root_hash(300, _node)), key)
    text = note.partition("\n\n")[0] + "\n"
    first, second, third = (
        f"{cosign(text, name, of, at + later)}\n" for (name, of), later in zip(signers.items(), (0, 7, 9), strict=True)
    )
    facts = {"size": 300, "at": at}
    made.good("two-of-three", "the quorum has cosigned it", facts, note=note + first + second)
    made.good(
        "all", "the time is that of the quorum's last witness", {"at": at + 7}, note=note + first + second + third
    )
    made.good("one-of-three", "where one is enough", {"at": at + 9}, note=note + third, quorum=1)
    forged = second.replace(second[-12:-4], "AAAAAAAA")
    stolen = str(cosign(text, "second", ledger_key("thief"), at)) + "\n"
    few = "fewer than the quorum have cosigned it"
    for name, lines in {
        "none": "",
        "one": first,
        "one-twice": first + first,
        "forged": first + forged,
        "other-key": first + stolen,
        "other-name": first + second.replace("second", "other"),
        "other-text": first + f"{cosign(text.replace('300', '301'), 'second', signers['second'], at)}\n",
        "no-time": first + f"{cosign(text, 'second', signers['second'], 0)}\n",
    }.items():
        made.bad(name, "document_unwitnessed", few, note=note + lines)
    both = first + second
    twice = [named[0], {**named[0], "name": "second"}]
    wrong: dict[str, dict[str, Any]] = {
        "quorum-zero": {"quorum": 0},
        "quorum-above": {"quorum": 4},
        "name-twice": {"witnesses": [named[0], named[0]]},
        "key-twice": {"witnesses": twice},
        "no-key": {"witnesses": [{"name": "first"}, *named[1:]]},
    }
    for name, changes in wrong.items():
        made.bad(name, "malformed_token", "witnesses and quorum that are none", note=note + both, **changes)
    return made
