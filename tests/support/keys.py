"""The private keys of an identity, read from its key folder: for tests that sign what the SDK would not sign."""

import time
from pathlib import Path

from peerseal.identity.key_folder import KeyFolder, StoredKey
from peerseal.protocol.documents.key_set import part_of
from peerseal.protocol.keys import KeyPair


def key() -> KeyPair:
    """A new key of the usual kind."""
    return KeyPair.generate("ES256")


def in_part(number: int) -> KeyPair:
    """A new key of that part."""
    while part_of((made := key()).public.thumbprint) != number:
        pass
    return made


def signing_key(key_dir: Path, service: str, now: float | None = None) -> StoredKey:
    """The key with which the service signs; ``key_dir`` is the one that its identity was given."""
    found = KeyFolder(key_dir / service).load().signing(time.time() if now is None else now)
    assert found is not None
    return found
