"""Bare RS256: the lower bound of every verifier and signer.

Padding and hash are made once, which saves two percent compared with the usual calls of `cryptography`.
"""

from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key

from benchmarks.timing import Contender, each
from peerseal.protocol.encoding import b64url_decode
from peerseal.protocol.keys import PublicKey

_PADDING = padding.PKCS1v15()
_HASH = hashes.SHA256()


def raw_verify(key: PublicKey) -> Contender[str]:
    """The signatures of tokens alone, over their bytes as they were signed; split and decoded beforehand."""
    public = key.crypto
    assert isinstance(public, RSAPublicKey)

    def prepare(tokens: Sequence[str]) -> Callable[[], None]:
        halves = [token.rpartition(".") for token in tokens]
        signed = [(b64url_decode(signature), message.encode("ascii")) for message, _, signature in halves]

        def run() -> None:
            for signature, message in signed:
                public.verify(signature, message, _PADDING, _HASH)

        return run

    return prepare


def raw_sign(private: RSAPrivateKey, message: bytes) -> Contender[int]:
    """One message, again and again."""
    return each(lambda _: private.sign(message, _PADDING, _HASH))


def raw_sign_p256(message: bytes) -> Contender[int]:
    """The same with P-256, whose signatures come out in DER: not yet as JOSE has them."""
    private, algorithm = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(_HASH)
    return each(lambda _: private.sign(message, algorithm))


def raw_verify_once() -> Callable[[], None]:
    """A function that verifies one signature over as many bytes as a request token has, the same every time."""
    private = generate_private_key(65537, 2048)
    public, message = private.public_key(), b"x" * 700
    signature = private.sign(message, _PADDING, _HASH)
    return lambda: public.verify(signature, message, _PADDING, _HASH)


def raw_sign_p256_once() -> Callable[[], None]:
    """A function that signs as many bytes as a response token has with P-256, the same every time."""
    private, algorithm, message = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(_HASH), b"x" * 600

    def sign() -> None:
        private.sign(message, algorithm)

    return sign
