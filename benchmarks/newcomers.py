"""Prepared registrations: keys, proofs and join tokens for a load of new services.

RSA keys are made from a pool of primes, each pair once: the registry's checks find nothing wrong with them, and a
thousand of them take seconds, not minutes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from cryptography.hazmat.primitives.asymmetric import rsa

from demo.stack import Stack
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof

KEYS_OF_A_SERVICE = 400
_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A service's key that is not registered yet, with a token that would register it."""

    service: str
    key: KeyPair
    token: JoinToken

    def body(self, domain: str, now: float) -> bytes:
        """The body of the registration."""
        issuer = service_id(domain, self.service)
        proof = sign_proof(self.key, issuer=issuer, audience=registry_id(domain), now=now)
        join = {"id": self.token.id, "mac": join_mac(self.token.mac_key, proof)}
        return canonical_json({"proof": proof, "join": join})

    def request(self, domain: str, now: float) -> bytes:
        """The bytes of the registration's request."""
        body = self.body(domain, now)
        head = (
            f"POST /v1/services/{self.service}/keys HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        )
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body


def newcomers(stack: Stack, name: str, number: int) -> list[Newcomer]:
    """That many of them, for services called ``name`` and a number."""
    services = [f"{name}-{at}" for at in range(-(-number // KEYS_OF_A_SERVICE))]
    tokens = [JoinToken.parse(stack.join_token(one, uses=KEYS_OF_A_SERVICE, ttl="1h")) for one in services]
    places = (at // KEYS_OF_A_SERVICE for at in range(number))
    return [Newcomer(services[at], key, tokens[at]) for at, key in zip(places, rsa_keys(number), strict=True)]


def rsa_keys(number: int) -> Iterator[KeyPair]:
    """RSA-2048 keys, each of another pair of primes."""
    primes = _primes(int((2 * number) ** 0.5) + 2)
    yield from (_key_of(p, q) for p, q in islice(combinations(primes, 2), number))


def _primes(number: int) -> Sequence[int]:
    primes: list[int] = []
    while len(primes) < number:
        numbers = rsa.generate_private_key(_EXPONENT, 2048).private_numbers()
        primes += [numbers.p, numbers.q]
    return primes


def _key_of(p: int, q: int) -> KeyPair:
    d = pow(_EXPONENT, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(_EXPONENT, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return KeyPair.of(numbers.private_key(unsafe_skip_rsa_key_validation=True))
