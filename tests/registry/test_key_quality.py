"""Weak keys are refused, each with its own code, by their real defects."""

import random
from collections.abc import Callable
from itertools import count

import gmpy2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from peerseal.errors import KeyRefused
from peerseal.protocol.keys import KeyPair, PublicKey
from registry.domain.key_quality import RSA_CHECKS, check_quality
from tests.registry.driver import Driver

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


def test_sound_keys_pass(rsa_key: KeyPair) -> None:
    check_quality(rsa_key.public)
    check_quality(KeyPair.generate("ES256").public)
    for bits in (2048, 2049, 3072):
        check_quality(public(prime(bits // 2) * prime(bits // 2)))


@pytest.mark.parametrize(
    ("code", "modulus"),
    [
        ("key_small_factor", with_small_factor),
        ("key_close_primes", with_close_primes),
        ("key_roca", with_roca),
        ("key_backdoored", backdoored),
        ("key_sparse_primes", with_sparse_primes),
    ],
)
def test_weak_moduli(code: str, modulus: Callable[[], int]) -> None:
    with pytest.raises(KeyRefused) as refused:
        check_quality(public(modulus()))
    assert refused.value.code == code


def test_each_check_has_a_code_of_its_own() -> None:
    codes = [code for code, _ in RSA_CHECKS]
    assert len(set(codes)) == len(codes) == 6
    assert all(code.startswith("key_") for code in codes)


def test_a_weak_key_is_refused_over_http_and_spends_nothing(registry: Driver) -> None:
    token = registry.join_token("billing")
    p = prime(1024)
    response = registry.join(pair(p, int(gmpy2.next_prime(p))), "billing", token)
    assert (response.status_code, response.get_json()["code"]) == (400, "key_close_primes")
    response = registry.join(pair(roca_prime(), roca_prime()), "billing", token)
    assert (response.status_code, response.get_json()["code"]) == (400, "key_roca")
    assert registry.join(KeyPair.generate("ES256"), "billing", token).status_code == 201


def test_a_stranger_cannot_have_keys_examined(registry: Driver) -> None:
    p = prime(1024)
    weak = pair(p, int(gmpy2.next_prime(p)))
    response = registry.post_key("billing", {"proof": registry.proof(weak, "billing")})
    assert (response.status_code, response.get_json()["code"]) == (401, "missing_token")
