"""RSA keys of the right shape that are weak, made by their real defects."""

import random
from itertools import count

import gmpy2
from cryptography.hazmat.primitives.asymmetric import rsa

from peerseal.protocol.keys import KeyPair, PublicKey

E = 65537
CHANCE = random.Random(20)  # weak keys, the same in every run


def prime(bits: int) -> int:
    """A prime whose two top bits are set, so that products have full length."""
    return int(gmpy2.next_prime(CHANCE.getrandbits(bits) | 3 << bits - 2))


def public(n: int) -> PublicKey:
    return PublicKey.of(rsa.RSAPublicNumbers(E, n).public_key())


def pair(p: int, q: int) -> KeyPair:
    """A private key of these primes, usable like any other."""
    d = int(gmpy2.invert(E, (p - 1) * (q - 1)))
    crt = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return KeyPair.of(rsa.RSAPrivateNumbers(p, q, d, *crt, rsa.RSAPublicNumbers(E, p * q)).private_key())


def with_small_factor() -> int:
    return 65521 * prime(2033)


def with_close_primes() -> int:
    p = prime(1024)
    return p * int(gmpy2.next_prime(p))


def roca_prime() -> int:
    """A prime as the chips made them: k * M + (65537^a mod M), M the product of the first 126 primes."""
    m = gmpy2.primorial(701)
    size = 1024 - m.bit_length()
    while True:
        k = CHANCE.getrandbits(size) | 3 << size - 2
        candidate = k * m + gmpy2.powmod(E, CHANCE.getrandbits(200), m)
        if candidate.bit_length() == 1024 and gmpy2.is_prime(candidate):
            return int(candidate)


def with_roca() -> int:
    return roca_prime() * roca_prime()


def backdoored() -> int:
    """A modulus whose first 16 bytes carry a command of the xz backdoor: a * b + c is 0 to 3, in 64 bits."""
    n = prime(1024) * prime(1024) | 1 << 2047
    top = (b"\0" + n.to_bytes(256, "big"))[:8]
    a, b = (int.from_bytes(top[at : at + 4], "little") for at in (0, 4))
    c = (2 - a * b) % 2**64
    content = top + c.to_bytes(8, "little") + (b"\0" + n.to_bytes(256, "big"))[16:]
    return next(n for n in count(int.from_bytes(content, "big") | 1, 2) if gmpy2.gcd(n, gmpy2.primorial(65537)) == 1)


def with_sparse_primes() -> int:
    """Two primes that are next to numbers of few bits."""
    p, q = (int(gmpy2.next_prime((top << 1021) + 2**300)) for top in (6, 7))
    return p * q
