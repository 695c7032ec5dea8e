"""Weak keys are refused, each with its own code, by their real defects."""

from collections.abc import Callable

import gmpy2
import pytest
from badkeys.rsakeys import roca

from peerseal.errors import KeyRefused
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.weak_keys import check_not_weak
from registry.domain.key_quality import RSA_CHECKS, check_quality
from tests.registry.driver import Driver
from tests.support.weak_keys import (
    backdoored,
    pair,
    prime,
    public,
    roca_prime,
    with_close_primes,
    with_roca,
    with_small_factor,
    with_sparse_primes,
)

CHECKS = pytest.mark.parametrize("check", [check_quality, check_not_weak], ids=["badkeys", "ours"])
"""The registry's check of services' keys, and the one of foreign issuers' keys in every service."""


@CHECKS
def test_sound_keys_pass(rsa_key: KeyPair, check: Callable[[PublicKey], None]) -> None:
    check(rsa_key.public)
    check(KeyPair.generate("ES256").public)
    for bits in (2048, 2049, 3072):
        check(public(prime(bits // 2) * prime(bits // 2)))


@CHECKS
@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: with_small_factor(), "key_small_factor"),
        (lambda: 3 * prime(2046), "key_small_factor"),
        (lambda: 65537 * prime(2032), "key_small_factor"),
        (lambda: with_close_primes(), "key_close_primes"),
        (lambda: prime(1024) ** 2, "key_close_primes"),
        (lambda: with_roca(), "key_roca"),
    ],
)
def test_both_checks_find_the_same_weakness(
    make: Callable[[], int], code: str, check: Callable[[PublicKey], None]
) -> None:
    with pytest.raises(KeyRefused) as caught:
        check(public(make()))
    assert caught.value.code == code


def test_both_checks_pass_a_key_of_which_only_one_prime_is_of_the_roca_form() -> None:
    n = roca_prime() * prime(1024)
    assert roca(n) is False
    check_not_weak(public(n))


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
