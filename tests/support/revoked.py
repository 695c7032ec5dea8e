"""Whether a peer refuses a key as revoked."""

from peerseal import TrustStore
from peerseal.errors import RevokedKey


def is_revoked(trust: TrustStore, kid: str) -> bool:
    """Whether the trust store calls the key revoked. Raises any other refusal."""
    try:
        trust.key(kid)
    except RevokedKey:
        return True
    return False
