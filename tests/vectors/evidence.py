"""Vectors for the evidence of a split view."""

import json
from dataclasses import replace
from typing import Any, Final

from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.ledger import merkle
from peerseal.protocol.ledger.checkpoint import Checkpoint, ledger_jwk, sign_checkpoint
from peerseal.protocol.ledger.cosignature import cosign
from peerseal.protocol.ledger.split_view import MAX_EVIDENCE, Evidence, Fork, Sighting
from tests.vectors.documents import World
from tests.vectors.history import loss, stated
from tests.vectors.ledger import LEAVES
from tests.vectors.world import ABSENT, DAY, DOMAIN, NOW, Vectors, changed, ec_key, ledger_key

SHARED: Final = 120
"""Entries that both histories have."""
OTHER_LEAVES: Final = LEAVES[:SHARED] + [merkle.leaf_hash(b"other %d" % number) for number in range(SHARED, 300)]


class History:
    """One of the two histories, and its notes, signed by the ledger's key."""

    def __init__(self, leaves: list[bytes]) -> None:
        self._leaves = leaves

    def node(self, level: int, number: int) -> bytes:
        """See NodeReader."""
        if level == 0:
            return self._leaves[number]
        return merkle.node_hash(self.node(level - 1, 2 * number), self.node(level - 1, 2 * number + 1))

    def checkpoint(self, size: int) -> Checkpoint:
        """The head at that size."""
        return Checkpoint(DOMAIN, size, merkle.root_hash(size, self.node))

    def note(self, size: int) -> str:
        """The signed head at that size."""
        return sign_checkpoint(self.checkpoint(size), ledger_key())

    def fork(self, size: int, larger: int = 300) -> Fork:
        """What this history has at the smaller size, and the proof from there."""
        return Fork.of(size, self.checkpoint(larger), self.node)


ONE: Final = History(LEAVES)
OTHER: Final = History(OTHER_LEAVES)


def two_roots() -> Evidence:
    """Two notes of one size."""
    return Evidence(DOMAIN, (ONE.note(300), OTHER.note(300)))


def not_extended(smaller: int = 200) -> Evidence:
    """Notes of two sizes, and the proof of what the larger tree has at the smaller one."""
    return Evidence(DOMAIN, (OTHER.note(smaller), ONE.note(300)), fork=ONE.fork(smaller))


def file_of(evidence: Evidence, **changes: Any) -> str:
    """The evidence as a file with changed members, in base64url."""
    return b64url(canonical_json(changed(json.loads(evidence.encode()), changes)))


def evidences() -> Vectors:
    """Evidence files."""
    key, world = ledger_key(), World()
    made = Vectors(
        "evidence",
        "Evidence of split views. It is accepted where it proves one.",
        [ledger_jwk(key.public_key())],
    )
    made.defaults = {"pin": None, "blanks": 0}
    _proven(made)
    _not_proven(made)
    _bad_notes(made)
    _bad_files(made)
    _under_a_pin(made, world)
    world.registry.close()
    return made


def _proven(made: Vectors) -> None:
    facts = {"domain": DOMAIN, "code": "two_roots"}
    made.good("two-roots", "two trees of one size", facts, evidence=file_of(two_roots()))
    facts = {"domain": DOMAIN, "code": "not_extended"}
    made.good("not-extended", "the larger tree has another root", facts, evidence=file_of(not_extended()))
    made.good("power-of-two", "a path without its first hash", facts, evidence=file_of(not_extended(128)))
    made.good("first-other-entry", "they differ in the last entry", facts, evidence=file_of(not_extended(SHARED + 1)))
    turned = replace(not_extended(), notes=not_extended().notes[::-1])
    made.good("larger-first", "the order of the notes does not matter", facts, evidence=file_of(turned))
    told = replace(not_extended(), seen=(Sighting(0, "acme.internal/a", NOW), Sighting(1, "acme.internal/b", NOW)))
    made.good("seen", "who told of the notes", facts, evidence=file_of(told))
    made.good("unknown-member", "members that a reader does not know", evidence=file_of(two_roots(), future=1))
    note = ONE.note(300)
    line = cosign(note.partition("\n\n")[0] + "\n", "witness.example", ledger_key("witness"), NOW)
    cosigned = [f"{note}{line}\n", OTHER.note(300)]
    made.good("cosigned", "signatures under other names are ignored", evidence=file_of(two_roots(), notes=cosigned))
    past = sign_checkpoint(OTHER.checkpoint(300), ledger_key("other"))
    both = [*made.keys, ledger_jwk(ledger_key("other").public_key())]
    rolled = file_of(two_roots(), notes=[note, past])
    made.good("past-key", "each is signed by another key of the ledger", evidence=rolled, keys=both)
    made.good("blanks", "white space around JSON", evidence=file_of(two_roots()), blanks=2)
    needless = replace(two_roots(), fork=ONE.fork(200))
    made.good("needless-proof", "one size needs no proof", evidence=file_of(needless))


def _not_proven(made: Vectors) -> None:
    evidence = not_extended()
    assert evidence.fork is not None
    root, path = evidence.fork.root, evidence.fork.path
    same = {
        "same-note": two_roots().notes[:1] * 2,
        "consistent": (ONE.note(200), ONE.note(300)),
        "shared-entries": (OTHER.note(SHARED), ONE.note(300)),
        "empty-ledger": (OTHER.note(0), ONE.note(300)),
    }
    for name, notes in same.items():
        size = int(notes[0].split("\n")[1])
        fork = ONE.fork(size) if size else Fork(merkle.EMPTY_ROOT, ())
        agreeing = Evidence(DOMAIN, (notes[0], notes[1]), fork=fork)
        made.bad(name, "same_tree", "the notes agree", evidence=file_of(agreeing))
    made.bad("no-proof", "no_proof", "two sizes show nothing", evidence=file_of(replace(evidence, fork=None)))
    forks = {
        "root-of-smaller-note": Fork(OTHER.checkpoint(200).root, path),
        "other-root": Fork(bytes(32), path),
        "swapped": Fork(root, (path[1], path[0], *path[2:])),
        "too-short": Fork(root, path[:-1]),
        "too-long": Fork(root, (*path, path[0])),
        "empty": Fork(root, ()),
        "proof-of-another-size": ONE.fork(199),
        "proof-of-smaller-tree": OTHER.fork(200),
    }
    for name, fork in forks.items():
        wrong = file_of(replace(evidence, fork=fork))
        made.bad(name, "bad_proof", "the proof does not lead to the larger note", evidence=wrong)


def _bad_notes(made: Vectors) -> None:
    note, other = two_roots().notes
    forged = note.replace(note[-8:-4], "AAAA")
    bad = {
        "other-size": note.replace("\n300\n", "\n301\n"),
        "other-root": other.partition("\n\n")[0] + "\n\n" + note.partition("\n\n")[2],
        "forged": forged,
        "no-signature": note.partition("\n\n")[0] + "\n\n",
        "cut-short": note[:-1],
        "extension": note.replace("\n\n", "\nextension\n\n"),
        "empty": "",
        "many-signatures": note + note.partition("\n\n")[2] * 64,
        "other-origin": sign_checkpoint(Checkpoint("other.internal", 300, bytes(32)), ledger_key()),
    }
    for name, wrong in bad.items():
        file = file_of(two_roots(), notes=[wrong, other])
        made.bad(f"note-{name}", "document_bad_checkpoint", "a note that the ledger did not sign", evidence=file)
    stranger = sign_checkpoint(OTHER.checkpoint(300), ledger_key("other"))
    for name, notes in {"second": [note, stranger], "both": [stranger, stranger]}.items():
        file = file_of(two_roots(), notes=notes)
        made.bad(f"other-key-{name}", "document_unknown_signer", "signed by another key", evidence=file)
    foreign = file_of(two_roots(), domain="other.internal")
    made.bad("other-domain", "document_bad_checkpoint", "the notes are of another ledger", evidence=foreign)
    made.bad(
        "no-key", "document_unknown_signer", "no key of the ledger is known", evidence=file_of(two_roots()), keys=[]
    )


def _bad_files(made: Vectors) -> None:
    whole = two_roots().encode()
    notes = list(two_roots().notes)
    sighting = {"note": 0, "from": "acme.internal/a", "at": NOW}
    fork = ONE.fork(200).to_json()
    texts = {
        "empty": b"",
        "no-json": b"evidence",
        "no-object": b"[]",
        "cut-short": whole[:-1],
        "repeated-member": b'{"domain":"other.internal",' + whole[1:],
        "repeated-inner-member": whole.replace(b'"seen":[', b'"seen":[{"at":1,"from":"a","note":0,"note":1}'),
        "no-utf-8": whole.replace(b"acme", b"\xff\xfe", 1),
        "text-after": whole + b"x",
    }
    for name, text in texts.items():
        made.bad(f"file-{name}", "document_malformed", "no JSON object as others write it", evidence=b64url(text))
    changes: dict[str, dict[str, Any]] = {
        **{f"no-{name}": {name: ABSENT} for name in ("domain", "notes", "seen")},
        "domain-number": {"domain": 1},
        "one-note": {"notes": notes[:1]},
        "three-notes": {"notes": [*notes, notes[0]]},
        "note-number": {"notes": [notes[0], 300]},
        "seen-third-note": {"seen": [{**sighting, "note": 2}]},
        "seen-negative": {"seen": [{**sighting, "note": -1}]},
        "seen-text": {"seen": ["acme.internal/a"]},
        "seen-fraction": {"seen": [{**sighting, "at": 1.5}]},
        "seen-too-many": {"seen": [sighting] * 65},
        "proof-null": {"proof": None},
        "proof-list": {"proof": [fork["root"], fork["path"]]},
        "proof-no-path": {"proof": {"root": fork["root"]}},
        "proof-short-root": {"proof": {**fork, "root": fork["root"][:-4]}},
        "proof-padding": {"proof": {**fork, "root": f"{fork['root']}="}},
        "proof-short-hash": {"proof": {**fork, "path": ["AAAA"]}},
        "proof-long-path": {"proof": {**fork, "path": [fork["root"]] * 65}},
        "registry-keys-null": {"registry_keys": None},
        "statements-text": {"statements": stated()},
        "statement-number": {"statements": [1]},
    }
    for name, members in changes.items():
        made.bad(name, "document_malformed", "not these members", evidence=file_of(two_roots(), **members))
    blanks = MAX_EVIDENCE - len(whole)
    made.good("largest", f"{MAX_EVIDENCE:,} bytes with the blanks", evidence=b64url(whole), blanks=blanks)
    made.bad("too-large", "document_malformed", "one byte more", evidence=b64url(whole), blanks=blanks + 1)


def _under_a_pin(made: Vectors, world: World) -> None:
    """Files with the document of the root key that names the ledger's keys."""
    registry, pin = world.registry, world.registry.pin
    document = registry.registry_keys()
    root = world.root_document()
    facts = {"domain": DOMAIN, "code": "two_roots"}
    pinned = replace(two_roots(), registry_keys=root)
    lost = ONE.checkpoint(300)
    head = Head(lost.size, lost.root)
    statement = stated(loss(lost=head))
    made.good("pin", "the root's document names the key", facts, evidence=file_of(pinned), keys=[], pin=pin)
    old = world.signed(document, registry.root, iat=NOW - 3650 * DAY, exp=NOW - 3285 * DAY)
    aged = file_of(pinned, registry_keys=old)
    made.good("old-root-document", "it is read as of its iat", facts, evidence=aged, keys=[], pin=pin)
    declared = file_of(pinned, statements=[statement])
    made.bad("declared-loss", "declared_loss", "the root declares it lost", evidence=declared, keys=[], pin=pin)
    made.good("loss-without-pin", "no root, so no statement is read", facts, evidence=declared)
    for name, useless in {
        "loss-by-another-key": stated(loss(lost=head), ec_key("signing")),
        "another-loss": stated(),
        "no-statement": "statement",
    }.items():
        file = file_of(pinned, statements=[useless])
        made.good(name, "the statement explains nothing", facts, evidence=file, keys=[], pin=pin)
    other = ec_key("other root").public.thumbprint
    made.bad("other-pin", "document_wrong_root", "another root key", evidence=file_of(pinned), keys=[], pin=other)
    none = file_of(two_roots())
    made.bad("pin-alone", "document_unknown_signer", "no document of the root", evidence=none, keys=[], pin=pin)
    head_, payload, signature = root.split(".")
    forged = file_of(pinned, registry_keys=f"{head_}.{payload}.{signature[:-8]}AAAAAAAA")
    made.bad("forged-root-document", "document_bad_signature", "not by the root", evidence=forged, keys=[], pin=pin)
    signed = file_of(pinned, registry_keys=sign_document(registry.domain_document(), registry.signing_key))
    made.bad("other-document", "document_wrong_type", "another kind of document", evidence=signed, keys=[], pin=pin)
    foreign = file_of(pinned, domain="other.internal")
    comment = "the root's document is of another domain"
    made.bad("root-of-other-domain", "document_wrong_subject", comment, evidence=foreign, keys=[], pin=pin)
    named = world.signed(document, registry.root, ledger_key=ledger_jwk(ledger_key("other").public_key()))
    unnamed = file_of(pinned, registry_keys=named)
    comment = "the root names another ledger key"
    made.bad("other-ledger-key", "document_unknown_signer", comment, evidence=unnamed, keys=[], pin=pin)
