"""Vectors for the documents that the registry signs, and that a client checks."""

from collections.abc import Callable
from typing import Any, Final

from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.frame import Frame, sign_document
from peerseal.protocol.documents.key_set import KeySetDocument, part_of
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import Checkpoint, encode_proof, sign_checkpoint
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.testing import Clock, MemoryRegistry
from tests.support.federation import PARTNER, federation_document
from tests.vectors.world import (
    ABSENT,
    CALLER,
    DAY,
    DOMAIN,
    MINTER,
    NOW,
    REGISTRY,
    Vectors,
    changed,
    ec_key,
    header_of,
    jws,
    kid_of,
    ledger_key,
    rsa_key,
)

LEEWAY: Final = 30


class World:
    """A registry in memory whose keys come from seeds."""

    def __init__(self) -> None:
        self.clock = Clock(NOW - 3600)
        self.registry = MemoryRegistry(DOMAIN, clock=self.clock)
        self.registry.root, self.registry.signing_key = ec_key("root"), ec_key("signing")
        self.registry.ledger.key = ledger_key()
        self.admit("caller")
        self.registry.admit("client-service", rsa_key("caller").public, {"kid": kid_of(CALLER, ec_key("caller"))}, "p")
        self.registry.admit("edge", ec_key("edge").public, {"join_token": "t"}, "p")

    def admit(self, key: str) -> None:
        """Admit a key of client-service."""
        self.registry.admit("client-service", ec_key(key).public, {"join_token": "t"}, "p")

    def signed(self, document: Frame, key: KeyPair | None = None, **changes: Any) -> str:
        """The document with changed members, signed like an honest one."""
        key = key or self.registry.signing_key
        return jws(header_of(key, REGISTRY, document.TYP), changed(document.claims(), changes), key.sign)

    def root_document(self) -> str:
        """The registry keys document, as of now."""
        return sign_document(self.registry.registry_keys(), self.registry.root)

    def file(self, kind: str, about: str, subject: str) -> Vectors:
        """A file about documents of this registry, and what a client has already."""
        have = {"now": NOW, "pin": self.registry.pin, "registry_keys": self.root_document(), "subject": subject}
        return Vectors(kind, about, defaults={**have, "seen": [], "consistency": None})


def registry_keys() -> Vectors:
    """The root's document."""
    world = World()
    registry = world.registry
    document = registry.registry_keys()
    made = Vectors("registry-keys", "Registry keys documents, believed by the pin of the root key.")
    made.defaults = {"now": NOW, "pin": registry.pin}
    facts = {"domain": DOMAIN, "version": 1, "signing_keys": [kid_of(REGISTRY, registry.signing_key)]}
    good = world.root_document()

    def by_root(**changes: Any) -> str:
        return world.signed(document, registry.root, **changes)

    made.good("honest", "signed by the pinned root", facts, document=good)
    made.good("no-past-keys", "past_ledger_keys may be missing", document=by_root(past_ledger_keys=ABSENT))
    made.good("unknown-member", "members that a reader does not know", document=by_root(future={"a": 1}))
    witness = NoteKey.of("witness.example", WITNESS_KEY, ledger_key("witness").public_key())
    named = Quorum.of([str(witness)], 1).members()
    made.good("witnesses", "witnesses of the ledger are named", document=by_root(**named))
    made.bad("pin", "document_wrong_root", "another pin", document=good, pin=ec_key("other root").public.thumbprint)
    other = ec_key("other root")
    claimed = jws(header_of(other, REGISTRY, RegistryKeys.TYP), document.claims(), other.sign)
    made.bad("other-root-signs", "document_unknown_signer", "signed by a key that is not the root", document=claimed)
    forged = jws(header_of(registry.root, REGISTRY, RegistryKeys.TYP), document.claims(), other.sign)
    made.bad("forged", "document_bad_signature", "the root's kid, another signature", document=forged)
    owner = jws(header_of(registry.root, CALLER, RegistryKeys.TYP), document.claims(), registry.root.sign)
    made.bad("kid-of-a-service", "document_wrong_issuer", "the kid is no registry's", document=owner)
    made.bad("issuer", "document_wrong_issuer", "another issuer", document=by_root(iss="other.internal/registry"))
    made.bad("subject", "document_wrong_subject", "another domain", document=by_root(sub="other.internal"))
    _bad_frame(made, by_root, RegistryKeys.TYP, document)
    for name in ("version", "root", "signing_keys", "ledger_key", "urls"):
        made.bad(f"no-{name}", "document_malformed", f"{name} is missing", document=by_root(**{name: ABSENT}))
    made.bad("version-text", "document_malformed", "version is a text", document=by_root(version="1"))
    made.bad("ledger-key-ec", "document_malformed", "an EC key", document=by_root(ledger_key=dict(other.public.jwk)))
    weak = {"kty": "RSA", "n": b64url(b"\xff" * 128), "e": "AQAB"}
    made.bad("weak-signing-key", "document_malformed", "RSA of 1024 bits", document=by_root(signing_keys=[weak]))
    registry.close()
    return made


def _bad_frame(made: Vectors, signed: Callable[..., str], typ: str, document: Frame) -> None:
    """The cases that all documents share."""
    key = ec_key("root" if typ == RegistryKeys.TYP else "signing")
    plain = jws(header_of(key, REGISTRY, "JWT"), document.claims(), key.sign)
    made.bad("typ", "document_wrong_type", "another typ", document=plain)
    made.bad("empty", "document_malformed", "no text", document="")
    made.bad("padding", "document_malformed", "base64url with padding", document=f"{signed()}==")
    crit = jws(header_of(key, REGISTRY, typ, crit=["exp"]), document.claims(), key.sign)
    made.bad("crit", "document_malformed", "a member that no header has", document=crit)
    none = jws(header_of(key, REGISTRY, typ, alg="none"), document.claims(), b"")
    made.bad("alg-none", "document_unknown_signer", "no signature", document=none)
    twice = b'{"sub":"x",' + canonical_json(document.claims())[1:]
    repeated = jws(header_of(key, REGISTRY, typ), twice, key.sign)
    made.bad("repeated-member", "document_malformed", "sub stands twice", document=repeated)
    end = {"iat": NOW - DAY, "exp": NOW - LEEWAY}
    made.bad("expired", "document_expired", "leeway is over", document=signed(**end))
    made.good("in-leeway", "a second before", document=signed(**{**end, "exp": NOW - LEEWAY + 1}))
    made.bad("from-the-future", "document_from_future", "beyond leeway", document=signed(iat=NOW + LEEWAY + 1))
    for name in ("iss", "sub", "iat", "exp"):
        made.bad(f"no-{name}", "document_malformed", f"{name} is missing", document=signed(**{name: ABSENT}))


def _bad_ledger_frame(made: Vectors, world: World, document: Frame) -> None:
    """The cases that all documents share which speak of the ledger."""

    def signed(**changes: Any) -> str:
        return world.signed(document, **changes)

    _bad_frame(made, signed, document.TYP, document)
    root = world.signed(document, world.registry.root)
    made.bad("signed-by-root", "document_unknown_signer", "by a key that is no signing key", document=root)
    forged = jws(header_of(ec_key("signing"), REGISTRY, document.TYP), document.claims(), ec_key("caller").sign)
    made.bad("forged", "document_bad_signature", "signed with another key", document=forged)
    made.bad("issuer", "document_wrong_issuer", "another issuer", document=signed(iss=CALLER))
    made.bad("checkpoint-text", "document_bad_checkpoint", "no checkpoint", document=signed(checkpoint="a"))
    size = len(world.registry.ledger.entries)
    smaller = sign_checkpoint(Checkpoint(DOMAIN, size - 1, bytes(32)), ledger_key())
    comment = "a checkpoint of another size"
    made.bad("checkpoint-size", "document_malformed", comment, document=signed(checkpoint=smaller))
    other = sign_checkpoint(Checkpoint("other.internal", size, bytes(32)), ledger_key())
    made.bad("checkpoint-origin", "document_bad_checkpoint", "another ledger", document=signed(checkpoint=other))
    by_other = sign_checkpoint(Checkpoint(DOMAIN, size, bytes(32)), ledger_key("other"))
    comment = "signed by another ledger key"
    made.bad("checkpoint-signer", "document_unknown_signer", comment, document=signed(checkpoint=by_other))
    for name in ("seq", "checkpoint"):
        made.bad(f"no-{name}", "document_malformed", f"{name} is missing", document=signed(**{name: ABSENT}))
    made.bad("seq-negative", "document_malformed", "seq is below 0", document=signed(seq=-1))


def key_sets() -> Vectors:
    """Signed JWK Sets."""
    world = World()
    old = world.registry.sign(world.registry.jwk_set("client-service"))
    world.clock.now = NOW - 1800
    for key in ("retired", "revoked"):
        world.admit(key)
    world.registry.retire(kid_of(CALLER, ec_key("retired")))
    world.registry.revoke(kid_of(CALLER, ec_key("revoked")))
    world.clock.now = NOW - 1000
    document = world.registry.jwk_set("client-service")
    made = world.file("key-set", "Signed JWK Sets of client-service.", CALLER)
    revoked = [kid_of(CALLER, ec_key("revoked"))]
    kids = [key.kid for key in document.keys]
    facts = {"seq": document.seq, "head": document.head, "keys": kids, "revoked": revoked}
    good = world.registry.sign(document)
    made.good("honest", "three entries of keys, one of them revoked", facts, document=good)
    later = world.registry.ledger
    grown = encode_proof(later.consistency(4, len(later.entries)))
    comment = "after an older one, with the proof that the ledger grew"
    made.good("after-an-older-one", comment, document=good, seen=[old], consistency=grown)
    _bad_ledger_frame(made, world, document)
    comment = "an older one came before, and the proof is of other trees"
    made.bad("inconsistent", "document_inconsistent", comment, document=good, seen=[old], consistency=grown[:-1])
    comment = "it covers fewer entries than were seen"
    made.bad("rolled-back", "document_rolled_back", comment, document=old, seen=[good])
    made.bad("subject", "document_wrong_subject", "of another service", document=good, subject=MINTER)
    revived = world.signed(document, keys=[*document.claims()["keys"], _revived(world)], revoked=[])
    comment = "a key that was revoked is listed again"
    made.bad("revived", "document_revived_key", comment, document=revived, seen=[good])
    _bad_listed_keys(made, world)
    world.registry.keys_in_set = 1
    comment = "it names parts: without them no key is known"
    large = world.registry.jwk_set("client-service")
    facts = {"keys": [], "revoked": []}
    made.good("parts", comment, facts, document=world.registry.sign(large))
    world.registry.close()
    return made


def key_set_parts() -> Vectors:
    """A part of a large JWK Set, and the set that names it."""
    world = World()
    world.registry.keys_in_set = 1
    old_set = world.registry.sign(world.registry.jwk_set("client-service"))
    number = part_of(ec_key("caller").public.thumbprint)
    world.clock.now = NOW - 1000
    old_part = world.registry.sign(world.registry.key_set_part("client-service", number))
    world.registry.retire(kid_of(CALLER, ec_key("caller")))
    key_set, document = world.registry.jwk_set("client-service"), world.registry.key_set_part("client-service", number)
    made = world.file("key-set-part", "A part of a large JWK Set of client-service, and the set.", CALLER)
    made.defaults |= {"part": number, "key_set": world.registry.sign(key_set)}
    good = world.registry.sign(document)
    facts = {"part": number, "seq": document.seq, "keys": [key.kid for key in document.keys], "revoked": []}
    made.good("honest", "what the set names", facts, document=good)
    _bad_ledger_frame(made, world, document)
    made.bad("older", "document_rolled_back", "the part before its last change", document=old_part)
    comment = "the set before the last change of the part"
    made.bad("older-set", "document_wrong_part", comment, document=good, key_set=old_set, consistency=_grown(world))
    made.bad("subject", "document_wrong_subject", "of another service", document=good, subject=MINTER)
    made.bad("number-other", "document_wrong_part", "another part was asked for", document=good, part=_other(world))
    made.bad("key-left-out", "document_wrong_part", "its key is left out", document=world.signed(document, keys=[]))
    in_other = "a key of another part"
    made.bad("number", "document_malformed", in_other, document=world.signed(document, part=_other(world)))
    made.bad("no-part", "document_malformed", "part is missing", document=world.signed(document, part=ABSENT))
    made.bad("set", "document_wrong_type", "the set in its place", document=world.registry.sign(key_set))
    _bad_parts(made, world, key_set, good)
    world.registry.close()
    return made


def _grown(world: World) -> list[str]:
    """The proof that the ledger grew by its last entry."""
    size = len(world.registry.ledger.entries)
    return encode_proof(world.registry.ledger.consistency(size - 1, size))


def _other(world: World) -> int:
    """The number of another part with a key."""
    return part_of(rsa_key("caller").public.thumbprint)


def _bad_parts(made: Vectors, world: World, key_set: KeySetDocument, part: str) -> None:
    """Sets whose parts are malformed."""
    names = key_set.claims()["parts"]
    world.registry.keys_in_set = 500
    listed = world.registry.jwk_set("client-service").claims()["keys"]
    bad: dict[str, dict[str, Any]] = {
        "few": {"parts": names[:-1]},
        "object": {"parts": {}},
        "text": {"parts": ["A", *names[1:]]},
        "no-seq": {"parts": [{"digest": "A" * 43}, *names[1:]]},
        "no-digest": {"parts": [{"seq": 2}, *names[1:]]},
        "digest-short": {"parts": [{"seq": 2, "digest": "A"}, *names[1:]]},
        "keys-too": {"keys": listed},
    }
    for name, changes in bad.items():
        comment = "64 parts, each null or an object of seq and digest, and no keys"
        key_set_jws = world.signed(key_set, **changes)
        made.bad(f"parts-{name}", "document_malformed", comment, document=part, key_set=key_set_jws)


def _revived(world: World) -> dict[str, Any]:
    """The revoked key, as an active one is listed."""
    world.registry.found(kid_of(CALLER, ec_key("revoked"))).revoked_at = None
    keys = world.registry.jwk_set("client-service").claims()["keys"]
    found: dict[str, Any] = next(key for key in keys if key["kid"] == kid_of(CALLER, ec_key("revoked")))
    world.registry.found(found["kid"]).revoked_at = NOW - 1800
    return found


def _bad_listed_keys(made: Vectors, world: World) -> None:
    document = world.registry.jwk_set("client-service")
    first, *rest = document.claims()["keys"]

    def listing(**changes: Any) -> str:
        return world.signed(document, keys=[changed(first, changes), *rest])

    for name in ("kid", "state", "active_until", "active_from", "expires_at", "index", "by", "evidence", "proof", "x"):
        made.bad(f"key-no-{name}", "document_malformed", f"{name} is missing", document=listing(**{name: ABSENT}))
    made.bad("key-state", "document_malformed", "an unknown state", document=listing(state="pending"))
    made.bad(
        "key-of-another",
        "document_malformed",
        "the kid names another",
        document=listing(kid=kid_of(MINTER, ec_key("caller"))),
    )
    made.bad("key-private", "document_malformed", "with its private half", document=listing(d="AQ"))
    code = "document_not_in_ledger"
    made.bad(
        "key-window-longer",
        code,
        "it ends later than it was admitted for",
        document=listing(active_until=first["expires_at"] + 1),
    )
    made.bad(
        "key-active-shorter", code, "active, and ends earlier", document=listing(active_until=first["expires_at"] - 1)
    )
    longer = {"active_until": first["expires_at"] + DAY, "expires_at": first["expires_at"] + DAY}
    made.bad("key-admitted-for-longer", code, "the ledger has another window", document=listing(**longer))
    made.bad("key-index", code, "another place in the ledger", document=listing(index=first["index"] + 1))
    made.bad("key-proof", code, "a hash of the proof is missing", document=listing(proof=first["proof"][:-1]))
    made.bad("key-by", code, "admitted by something else", document=listing(by={"join_token": "u"}))
    other = dict(ec_key("ghost").public.jwk) | {"kid": kid_of(CALLER, ec_key("ghost"))}
    made.bad("key-never-admitted", code, "another key in its place", document=listing(**other))


def key_statements() -> Vectors:
    """Key statements."""
    world = World()
    kid = kid_of(CALLER, ec_key("caller"))
    document = world.registry.statement(kid)
    made = world.file("key-statement", "Key statements of client-service.", CALLER)
    made.good("active", "an active key", {"kid": kid, "state": "active"}, document=world.registry.sign(document))
    _bad_ledger_frame(made, world, document)
    made.bad(
        "kid", "document_malformed", "another kid", document=world.signed(document, kid=kid_of(CALLER, ec_key("edge")))
    )
    made.bad("revoked-at", "document_malformed", "active and revoked", document=world.signed(document, revoked_at=NOW))
    comment = "admitted for longer than the ledger says"
    longer = world.signed(document, expires_at=document.active_until + 1, active_until=document.active_until + 1)
    made.bad("window", "document_not_in_ledger", comment, document=longer)
    for end, state in ((world.registry.retire, "retired"), (world.registry.revoke, "revoked")):
        end(kid)
        facts = {"kid": kid, "state": state}
        made.good(state, f"a {state} key", facts, document=world.registry.sign(world.registry.statement(kid)))
    world.registry.close()
    return made


def changes() -> Vectors:
    """Lists of changes."""
    world = World()
    before = world.registry.sign(world.registry.changes(0))
    size = len(world.registry.ledger.entries)
    revoked = kid_of(CALLER, ec_key("caller"))
    world.registry.revoke(revoked)
    world.clock.now = NOW
    document = world.registry.changes(size)
    made = world.file("changes", "What changed in the registry after an entry.", DOMAIN)
    facts = {
        "since": size,
        "seq": document.seq,
        "services": [CALLER],
        "reset": False,
        "revoked": list(document.revoked),
    }
    made.good(
        "honest", "two keys were revoked: one vouched for the other", facts, document=world.registry.sign(document)
    )
    none = world.registry.changes(document.seq)
    made.good("none", "nothing changed", {"services": [], "reset": False}, document=world.registry.sign(none))
    other = world.registry.changes(document.seq + 5)
    made.good(
        "reset", "the ledger has fewer entries than asked for", {"reset": True}, document=world.registry.sign(other)
    )
    made.good("no-revoked", "a release before 0.3", document=world.signed(document, revoked=ABSENT))
    made.good("no-proof", "the proof may be missing", document=world.signed(document, proof=ABSENT))
    _bad_ledger_frame(made, world, document)
    honest, seen = world.registry.sign(document), _earlier(size)
    made.good("grown", "the ledger grew, as its proof says", document=honest, seen=seen)
    comment = "the proof does not lead from the checkpoint that was seen"
    wrong = world.signed(document, proof=[b64url(bytes(32))])
    made.bad("inconsistent", "document_inconsistent", comment, document=wrong, seen=seen)
    made.bad("no-since", "document_malformed", "since is missing", document=world.signed(document, since=ABSENT))
    made.bad("reset-text", "document_malformed", "reset is a text", document=world.signed(document, reset="true"))
    made.bad("service-short", "document_malformed", "a short name", document=world.signed(document, services=["a"]))
    made.bad("revoked-short", "document_malformed", "no kid", document=world.signed(document, revoked=["a"]))
    made.good("no-seqs", "a release before 0.4", document=world.signed(document, seqs=ABSENT))
    for name, seqs in {"few": [], "before": [size], "after": [document.seq + 1], "text": ["6"]}.items():
        comment = "not an entry after since, up to seq, for each service"
        made.bad(f"seqs-{name}", "document_malformed", comment, document=world.signed(document, seqs=seqs))
    made.bad("subject", "document_wrong_subject", "of another domain", document=honest, subject="other.internal")
    made.bad("hour-old", "document_expired", "a list of an hour ago", document=before)
    world.registry.close()
    return made


def current_services() -> Vectors:
    """Lists of current services."""
    world = World()
    document = world.registry.current_services(0)
    made = world.file("current", "The services that the first 1,024 entries changed last.", DOMAIN)
    facts = {"block": 0, "seq": document.seq, "services": dict(document.services)}
    made.good("honest", "each service with its last entry", facts, document=world.registry.sign(document))
    later = world.registry.current_services(1)
    made.good("none", "a block without services", {"services": {}}, document=world.registry.sign(later))
    _bad_ledger_frame(made, world, document)
    made.bad("no-block", "document_malformed", "block is missing", document=world.signed(document, block=ABSENT))
    bad: dict[str, Any] = {
        "list": [CALLER],
        "short": {"client-service": 2},
        "zero": {CALLER: 0},
        "another-block": {CALLER: 1025},
        "after-seq": {CALLER: document.seq + 1},
        "text": {CALLER: "2"},
    }
    for name, services in bad.items():
        comment = "not an entry of the block, up to seq, for each service id"
        made.bad(f"services-{name}", "document_malformed", comment, document=world.signed(document, services=services))
    honest = world.registry.sign(document)
    made.bad("subject", "document_wrong_subject", "of another domain", document=honest, subject="other.internal")
    world.registry.close()
    return made


def _earlier(size: int) -> list[str]:
    """A policy document as it was when the ledger had that many entries."""
    earlier = World()
    assert len(earlier.registry.ledger.entries) == size
    made = earlier.registry.sign(earlier.registry.policy_document("resource-service"))
    earlier.registry.close()
    return [made]


def policies() -> Vectors:
    """Policies, of a service that has one and of one that has none."""
    world = World()
    subject = f"{DOMAIN}/resource-service"
    made = world.file("policy", "Policies of resource-service.", subject)
    none = world.registry.policy_document("resource-service")
    made.good("none", "no operator set one", {"policy": None}, document=world.registry.sign(none))
    world.registry.set_policy("resource-service", {"client-service": ["orders:write"], "*": ["orders:read"]})
    document = world.registry.policy_document("resource-service")
    facts = {"policy": document.claims()["policy"], "seq": document.seq}
    made.good("honest", "two callers", facts, document=world.registry.sign(document))
    _bad_ledger_frame(made, world, document)
    made.bad("no-policy", "document_malformed", "policy is missing", document=world.signed(document, policy=ABSENT))
    bad: dict[str, Any] = {
        "allow-list": {"allow": [], "restricted": False},
        "no-allow": {"restricted": False},
        "short-name": {"allow": {"client-service": []}, "restricted": False},
        "scope-text": {"allow": {"*": "orders:read"}, "restricted": False},
        "restricted-text": {"allow": {}, "restricted": "no"},
        "text": "*",
    }
    for name, policy in bad.items():
        made.bad(f"policy-{name}", "document_malformed", "no policy", document=world.signed(document, policy=policy))
    made.bad("subject", "document_wrong_subject", "of another", document=world.registry.sign(document), subject=CALLER)
    world.registry.close()
    return made


def domains() -> Vectors:
    """The domain's settings."""
    world = World()
    world.registry.set_domain(minters=["edge"])
    document = world.registry.domain_document()
    made = world.file("domain", "The domain's settings.", DOMAIN)
    facts = {"minters": [MINTER], "seq": document.seq}
    made.good("honest", "one minter", facts, document=world.registry.sign(document))
    made.good("unknown-member", "of a newer release", document=world.signed(document, future=1))
    _bad_ledger_frame(made, world, document)
    for name in ("minters", "issuers"):
        made.bad(
            f"no-{name}", "document_malformed", f"{name} is missing", document=world.signed(document, **{name: ABSENT})
        )
    made.bad("minter-short", "document_malformed", "a short name", document=world.signed(document, minters=["edge"]))
    made.bad("minters-text", "document_malformed", "a text", document=world.signed(document, minters=MINTER))
    made.bad("subject", "document_wrong_subject", "of another", document=world.registry.sign(document), subject=CALLER)
    derived = {"minter": MINTER, "from": "orders:write", "to": ["trigger_invoicing"]}
    world.registry.set_domain(minters=["edge"], derived_scopes=[derived])
    document = world.registry.domain_document()
    made.good("derived", "with a derived scope", {"derived_scopes": [derived]}, document=world.registry.sign(document))
    comment = "no list of minter, from and to"
    for name, value in {
        "object": derived,
        "short": [{**derived, "minter": "edge"}],
        "to-text": [{**derived, "to": "notify"}],
        "no-from": [{"minter": MINTER, "to": ["notify"]}],
    }.items():
        wrong = world.signed(document, derived_scopes=value)
        made.bad(f"derived-{name}", "document_malformed", comment, document=wrong)
    world.registry.close()
    return made


def _told(domain: dict[str, Any]) -> dict[str, Any]:
    """The domain without the member that says what its absence says."""
    return {name: value for name, value in domain.items() if name != "transactions"}


def _bad_federation_entries(
    made: Vectors, world: World, document: FederationDocument, earlier: FederationDocument
) -> None:
    """Documents whose federation is not the one of an entry in the ledger."""
    entry = document.claims()["entry"]
    few = {name: PARTNER[name] for name in ("domain", "urls", "root")}
    forged: dict[str, dict[str, Any]] = {
        "no-entry": {"entry": None},
        "limits-dropped": {"domains": [few]},
        "other-root": {"domains": [{**PARTNER, "root": ec_key("other root").public.thumbprint}]},
        "other-url": {"domains": [{**PARTNER, "urls": ["https://evil.example"]}]},
        "removed-unsaid": {"domains": []},
        "index": {"entry": {**entry, "index": entry["index"] - 1}},
        "time": {"entry": {**entry, "time": entry["time"] + 1}},
        "by": {"entry": {**entry, "by": {"operator": "o_thief"}}},
        "evidence": {"entry": {**entry, "evidence": "A" * 43}},
        "proof": {"entry": {**entry, "proof": entry["proof"][:-1]}},
        "proof-of-another-tree": {"entry": earlier.claims()["entry"], "domains": earlier.claims()["domains"]},
    }
    for name, changes in forged.items():
        comment = "the ledger has no entry that says so"
        made.bad(f"entry-{name}", "document_not_in_ledger", comment, document=world.signed(document, **changes))
    bad: dict[str, Any] = {
        "absent": ABSENT,
        "text": "1",
        "list": [],
        "later": {**entry, "index": document.seq},
        "index-text": {**entry, "index": "1"},
        "time-negative": {**entry, "time": -1},
        "by-text": {**entry, "by": "operator"},
        "evidence-number": {**entry, "evidence": 1},
        "no-evidence": {name: entry[name] for name in ("index", "time", "by", "proof")},
        "proof-text": {**entry, "proof": "A"},
        "too-long": {**entry, "by": {"operator": "o" * 66_000}},
    }
    for name, value in bad.items():
        made.bad(f"entry-{name}", "document_malformed", "no entry", document=world.signed(document, entry=value))


def federations() -> Vectors:
    """The foreign trust domains that are believed."""
    world = World()
    made = world.file("federation", "The foreign trust domains that are believed.", DOMAIN)
    few = {name: PARTNER[name] for name in ("domain", "urls", "root")}
    new = {**PARTNER, "root": ec_key("root").public.thumbprint, "urls": ["https://new.partner.example"]}
    none = world.registry.federation_document()
    wide, two, removed, document = (
        federation_document(world.registry, *domains) for domains in ([few], [PARTNER, new], [], [PARTNER])
    )
    facts = {"domains": [PARTNER], "seq": document.seq}
    made.good("honest", "one foreign domain", facts, document=world.registry.sign(document))
    made.good("none", "no foreign domain, and never one", {"domains": []}, document=world.registry.sign(none))
    made.good("removed", "no foreign domain any more", {"domains": []}, document=world.registry.sign(removed))
    made.good("unknown-member", "of a newer release", document=world.signed(document, future=1))
    made.good("all-services", "all services and scopes", document=world.registry.sign(wide))
    made.good("two-roots", "a domain that replaces its root", document=world.registry.sign(two))
    made.good(
        "default-told",
        "what is left out means the same",
        facts,
        document=world.signed(document, domains=[_told(PARTNER)]),
    )
    _bad_ledger_frame(made, world, document)
    _bad_federation_entries(made, world, document, wide)
    third = {**PARTNER, "root": ec_key("signing").public.thumbprint}
    bad: dict[str, Any] = {
        "absent": ABSENT,
        "object": {"partner.example": PARTNER},
        "own": [{**PARTNER, "domain": DOMAIN}],
        "homograph": [{**PARTNER, "domain": "p\u0430rtner.example"}],
        "no-root": [{name: PARTNER[name] for name in ("domain", "urls")}],
        "root-text": [{**PARTNER, "root": "root"}],
        "no-url": [{**PARTNER, "urls": []}],
        "plain-http": [{**PARTNER, "urls": ["http://registry.partner.example"]}],
        "anyone": [{**PARTNER, "services": ["*"]}],
        "registry": [{**PARTNER, "services": ["registry"]}],
        "service-id": [{**PARTNER, "services": ["partner.example/billing"]}],
        "scopes-text": [{**PARTNER, "scopes": "orders:read"}],
        "transactions-number": [{**PARTNER, "transactions": 1}],
        "member": [{**PARTNER, "future": 1}],
        "twice": [PARTNER, PARTNER],
        "one-root": [PARTNER, {**PARTNER, "domain": "other.example"}],
        "three-roots": [PARTNER, new, third],
        "wider-root": [PARTNER, {**new, "transactions": True}],
    }
    for name, domains in bad.items():
        made.bad(
            f"domains-{name}", "document_malformed", "no domains", document=world.signed(document, domains=domains)
        )
    made.bad("subject", "document_wrong_subject", "of another", document=world.registry.sign(document), subject=CALLER)
    world.registry.close()
    return made
