"""Finds weak RSA keys of foreign issuers by integer arithmetic alone, among keys of an accepted type and size.

The registry checks services' keys with `badkeys` before it admits them (`registry.domain.key_quality`). Issuers' keys
are checked in the services. There `badkeys` is not used: it brings two libraries with C code, and as an optional
dependency it could be missing unnoticed. So this module looks for the three weaknesses that real devices and libraries
have produced. Its methods are those that researchers published, and the tests compare each with `badkeys`.
"""

import math
from functools import cache
from typing import Final

from peerseal.errors import KeyRefused
from peerseal.protocol.encoding import b64url_decode
from peerseal.protocol.keys import PublicKey

_LARGEST_SMALL_PRIME: Final = 65537
_FERMAT_ROUNDS: Final = 100

# Nemec et al., "The Return of Coppersmith's Attack" (CCS 2017): primes k * M + 65537^a mod M. M contains all primes up
# to 167 whatever the key's size, so such a modulus is a power of 65537 modulo those primes' product, where 65537 has
# the order _ROCA_ORDER.
_ROCA_LARGEST_PRIME: Final = 167
_ROCA_GENERATOR: Final = 65537
_ROCA_PRIME_POWERS: Final = (16, 81, 25, 7, 11, 13, 17, 23, 29, 37, 41, 53, 83)
_ROCA_ORDER: Final = math.prod(_ROCA_PRIME_POWERS)


def check_not_weak(key: PublicKey) -> None:
    """Refuses a key with a known weakness, in half a millisecond for 2048 bits. Raises KeyRefused with
    ``key_small_factor``, ``key_close_primes`` or ``key_roca``.

    A P-256 key has no such weakness: the curve is fixed, and the reader of the key checked that the point is on it.
    """
    if key.alg != "RS256":
        return
    modulus = int.from_bytes(b64url_decode(key.jwk["n"]), "big")
    if math.gcd(modulus, _product_of_primes(_LARGEST_SMALL_PRIME) % modulus) != 1:
        raise KeyRefused("key_small_factor", f"the modulus has a prime factor not larger than {_LARGEST_SMALL_PRIME}")
    if _has_close_primes(modulus):
        raise KeyRefused("key_close_primes", "the two primes are too close (Fermat's method)")
    if _is_of_roca_form(modulus):
        raise KeyRefused("key_roca", "made by a library whose keys can be computed (CVE-2017-15361)")


def _has_close_primes(modulus: int) -> bool:
    root = math.isqrt(modulus)
    for middle in range(root, root + _FERMAT_ROUNDS + 2):
        square = middle * middle - modulus
        if square >= 0 and math.isqrt(square) ** 2 == square:
            return True
    return False


def _is_of_roca_form(modulus: int) -> bool:
    """Whether the modulus is a power of the generator. That holds if it holds in each subgroup of prime power order
    (Pohlig and Hellman)."""
    product = _product_of_primes(_ROCA_LARGEST_PRIME)
    if pow(modulus, _ROCA_ORDER, product) != 1:
        return False
    for order in _ROCA_PRIME_POWERS:
        generator, wanted = (pow(base, _ROCA_ORDER // order, product) for base in (_ROCA_GENERATOR, modulus))
        if all(pow(generator, exponent, product) != wanted for exponent in range(order)):
            return False
    return True


@cache
def _product_of_primes(largest: int) -> int:
    """The product of all primes up to ``largest``."""
    sieve = bytearray([1]) * (largest + 1)
    for number in range(2, math.isqrt(largest) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, largest + 1, number)))
    return math.prod(number for number in range(2, largest + 1) if sieve[number])
