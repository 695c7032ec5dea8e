"""Weak keys of the right shape (docs/protocol.md), found with `badkeys`.

Its checks are named one by one: its default set holds ``blocklist``, which ends the process if a downloaded list is
missing. These checks are left out on purpose:

- ``smalld`` and ``rsainvalid``: e is 65537 here, or the key was refused before.
- ``rsabias``: a warning about vanity keys.
- ``pattern``: 16 equal bytes, which one random 8192-bit modulus in 10^36 has, but also sound keys.
- ``dsasparse``: there are no DSA keys.
"""

from collections.abc import Callable
from typing import Any, Final

from badkeys.rsakeys import fermat, roca, rsapoly, sharedprimes, smallfactors, xzbackdoor
from cryptography.hazmat.primitives.asymmetric import rsa

from peerseal.errors import KeyRefused
from peerseal.protocol.keys import PublicKey

RSA_CHECKS: Final[tuple[tuple[str, Callable[..., Any]], ...]] = (
    ("key_small_factor", smallfactors),
    ("key_close_primes", fermat),
    ("key_roca", roca),
    ("key_shared_prime", sharedprimes),
    ("key_sparse_primes", rsapoly),
    ("key_backdoored", xzbackdoor),
)
"""The code of each refusal, and the check that finds it; the first that fires names the key. A sound key passes all
of them in half a millisecond. ``sharedprimes`` compares with primes found in the wild, which come with the package;
``rsapoly`` with primes whose bits are mostly zero; ``xzbackdoor`` with the moduli that carried that backdoor's
commands (one random key in 2^62 would look alike)."""


def check_quality(key: PublicKey) -> None:
    """Accepts a sound key. Raises KeyRefused with the code of the weakness.

    A P-256 key cannot be weak: the curve is fixed, and reading the key has checked that its point is on the curve.
    """
    crypto = key.crypto
    if not isinstance(crypto, rsa.RSAPublicKey):
        return
    numbers = crypto.public_numbers()
    for code, check in RSA_CHECKS:
        if check(numbers.n, numbers.e) is not False:
            raise KeyRefused(code, f"badkeys: {check.__name__}")
