"""Vectors for the root's history statements, and for how a client goes on after one."""

from typing import Any, Final

from peerseal.protocol.documents.history_statement import HISTORY_TYP, Head, HistoryStatement
from peerseal.protocol.keys import KeyPair
from tests.vectors.documents import World
from tests.vectors.world import (
    ABSENT,
    CALLER,
    DAY,
    DOMAIN,
    NOW,
    REGISTRY,
    Vectors,
    changed,
    ec_key,
    header_of,
    jws,
    seed,
)

LEEWAY: Final = 30
MADE_AT: Final = NOW - 3600
"""When the root declared the loss."""


def head(size: int, history: str = "lost") -> Head:
    """The head of a history at that size."""
    return Head(size, seed(f"root of {history} at {size}"))


COMMON: Final = head(100)
LOST: Final = head(120)
NEW: Final = head(101, "new")


def loss(at: int = MADE_AT, common: Head = COMMON, lost: Head = LOST, new: Head = NEW) -> HistoryStatement:
    """The statement that the entries between ``common`` and ``lost`` are lost."""
    return HistoryStatement(DOMAIN, at, common, lost, new)


def stated(statement: HistoryStatement | None = None, key: KeyPair | None = None, **changes: Any) -> str:
    """The statement with changed members, signed by the root."""
    key = key or ec_key("root")
    claims = changed((statement or loss()).claims(), changes)
    return jws(header_of(key, REGISTRY, HISTORY_TYP), claims, key.sign)


def _file(kind: str, about: str) -> Vectors:
    world = World()
    have = {"now": NOW, "pin": world.registry.pin, "registry_keys": world.root_document()}
    world.registry.close()
    return Vectors(kind, about, defaults=have)


def histories() -> Vectors:
    """History statements, one by one."""
    made = _file("history", "The root's statements that entries of the ledger are lost.")
    made.good("honest", "20 entries are lost", loss().claims(), document=stated())
    made.good("old", "a statement does not expire", document=stated(loss(NOW - 3650 * DAY)))
    made.good("nothing-since", "the ledger goes on from what both share", document=stated(loss(new=COMMON)))
    longer = head(150, "new")
    made.good("longer", "the new history is longer", document=stated(loss(new=longer)))
    made.good("unknown-member", "members that a reader does not know", document=stated(future=1))
    made.good("in-leeway", "29 s ahead of this clock", document=stated(loss(NOW + LEEWAY - 1)))
    _bad_signers(made)
    for name in ("iss", "sub", "iat", "common", "lost", "new"):
        made.bad(f"no-{name}", "document_malformed", f"{name} is missing", document=stated(**{name: ABSENT}))
    for name, members in _no_losses().items():
        made.bad(name, "document_malformed", "the heads show no loss, or are no heads", document=stated(**members))
    made.bad("from-the-future", "document_from_future", "beyond leeway", document=stated(loss(NOW + LEEWAY + 1)))
    made.bad("too-long", "document_malformed", "more than 4 KiB", document=stated(future="a" * 4096))
    return made


def _bad_signers(made: Vectors) -> None:
    root, other = ec_key("root"), ec_key("signing")
    comment = "the key that signs other documents declares no loss"
    made.bad("signing-key", "document_unknown_signer", comment, document=stated(key=other))
    forged = jws(header_of(root, REGISTRY, HISTORY_TYP), loss().claims(), other.sign)
    made.bad("forged", "document_bad_signature", "the root's kid, another signature", document=forged)
    owner = jws(header_of(root, CALLER, HISTORY_TYP), loss().claims(), root.sign)
    made.bad("kid-of-a-service", "document_unknown_signer", "the kid is no registry's", document=owner)
    plain = jws(header_of(root, REGISTRY, "peerseal-registry+jwt"), loss().claims(), root.sign)
    made.bad("typ", "document_wrong_type", "another kind of document", document=plain)
    made.bad("issuer", "document_malformed", "iss does not fit sub", document=stated(iss="other.internal/registry"))
    foreign = stated(iss="other.internal/registry", sub="other.internal")
    made.bad("domain", "document_wrong_subject", "of another domain", document=foreign)


def _no_losses() -> dict[str, dict[str, Any]]:
    """Changes that leave no statement of a loss."""
    at_zero, at_lost = head(0).to_json(), head(120).to_json()
    return {
        "common-empty": {"common": at_zero, "new": NEW.to_json()},
        "common-is-lost": {"common": at_lost, "new": head(130, "new").to_json()},
        "common-beyond-lost": {"common": head(121).to_json(), "new": head(130, "new").to_json()},
        "new-below-common": {"new": head(99, "new").to_json()},
        "new-is-lost": {"new": LOST.to_json()},
        "new-contradicts-common": {"new": head(100, "new").to_json()},
        "size-text": {"lost": {**LOST.to_json(), "size": "120"}},
        "size-negative": {"common": {**COMMON.to_json(), "size": -1}},
        "root-short": {"new": {**NEW.to_json(), "root": "AAAA"}},
        "root-padding": {"new": {**NEW.to_json(), "root": f"{NEW.to_json()['root']}="}},
        "head-text": {"new": "101"},
    }


def continuations() -> Vectors:
    """Which heads a client may give up for which."""
    made = _file("continuation", "A client remembers a head that the registry contradicts. May it go on from another?")
    made.defaults |= {"statements": [stated()], "head": head(110).to_json(), "seen_at": MADE_AT - 600}
    onwards = {"common": COMMON.to_json(), "new": NEW.to_json(), "seen_at": MADE_AT + LEEWAY + 1}
    made.good("between", "the head was lost", onwards)
    made.good("at-lost", "the last head that is known to be lost", onwards, head=LOST.to_json())
    made.good("in-leeway", "seen as the statement was made", onwards, seen_at=MADE_AT + LEEWAY)
    second = loss(MADE_AT + 900, common=head(90), lost=head(105, "new"), new=head(95, "newer"))
    further = {
        "common": head(90).to_json(),
        "new": head(95, "newer").to_json(),
        "seen_at": MADE_AT + 900 + LEEWAY + 1,
    }
    both = [stated(), stated(second)]
    made.good("two-losses", "the second statement gives up what the first one led to", further, statements=both)
    made.good("any-order", "the times of the statements decide", further, statements=both[::-1])
    false = stated(loss(new=head(102, "false")), ec_key("signing"))
    made.good("false-one", "a statement that the root did not sign is skipped", onwards, statements=[false, stated()])
    code = "document_inconsistent"
    made.bad("no-statement", code, "the root said nothing", statements=[])
    made.bad("only-a-false-one", code, "the root did not sign it", statements=[false])
    made.bad("at-common", code, "a head of both histories needs no excuse", head=COMMON.to_json())
    made.bad("beyond-lost", code, "more entries than are lost", head=head(121).to_json())
    made.bad("third-history", code, "as large as the lost one, with another root", head=head(120, "third").to_json())
    made.bad("seen-later", code, "seen after the statement", seen_at=MADE_AT + LEEWAY + 1)
    return made
