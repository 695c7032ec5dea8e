"""RS256 without anything around it: the limit that no verifier or signer gets below."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

PADDING = padding.PKCS1v15()
HASH = hashes.SHA256()
