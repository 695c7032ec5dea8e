"""Has the root of a registry name witnesses."""

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.protocol.ledger.quorum import Quorum
from registry.services.setup.ceremony import Ceremony
from registry.services.setup.keyfiles import read_key_pair
from tests.registry.driver import Driver, entries_of


def witness_signer(name: str) -> Ed25519PrivateKey:
    """The private key of the witness of that name, always the same."""
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))


def witness_key(name: str) -> NoteKey:
    """Its public key."""
    return NoteKey.of(name, WITNESS_KEY, witness_signer(name).public_key())


def name_witnesses(registry: Driver, *witnesses: NoteKey | str, needed: int) -> int:
    """The root names these witnesses, by key or by name (`witness_key`). Returns the number of the entry."""
    ceremony = Ceremony(registry.settings, registry.store, registry.clock)
    root = read_key_pair(registry.settings.root_key_file, "root key", registry.settings.key_passphrase)
    keys = (witness_key(one) if isinstance(one, str) else one for one in witnesses)
    quorum = Quorum.of(map(str, keys), needed)
    ceremony.publish(sign_document(replace(ceremony.requested((), drop_past=False), witnesses=quorum), root))
    registry.registry.authority.newest()
    return len(entries_of(registry.store))
