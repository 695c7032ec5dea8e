"""Verification of an event of 1 KB, compared with a raw RSA verify of the same token and a SHA-256 of the payload."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import peerseal
from benchmarks.figures import Figure, Goal
from benchmarks.raw import raw_verify
from benchmarks.timing import Contender, interleaved
from benchmarks.verification import public_key
from peerseal.protocol.keys import PublicKey

ROUNDS = 15
BATCH = 500

TOPIC, AUDIENCE, SCOPE = "OrderCreated", "jobs.example.com", "trigger_invoicing"
PAYLOAD = b'{"eventID": "e-1", "items": [' + b", ".join([b'{"itemID": "7", "quantity": 2, "price": 100}'] * 22) + b"]}"

_RAW = "cryptography's RSA-2048 verify and SHA-256"
_FULL = "verification of an event of 1 KB"


def measure(publisher: peerseal.Identity) -> Iterator[Figure]:
    """The figure. ``publisher`` signs with RS256, and its trust store finds the key."""
    contenders: dict[str, Contender[str]] = {_RAW: raw(public_key(publisher)), _FULL: verification(publisher)}
    timings = interleaved(contenders, (signed_batch(publisher, BATCH) for _ in range(ROUNDS)))
    against = f"{_RAW}: {timings.micros(_RAW):.1f} µs"
    yield Figure(_FULL, timings.micros(_FULL), "µs", against, timings.ratio(_FULL, _RAW), Goal("≤", 1.5))


def raw(key: PublicKey) -> Contender[str]:
    """The bound: the arithmetic alone."""
    verify = raw_verify(key)

    def prepare(tokens: Sequence[str]) -> Callable[[], None]:
        checked = verify(tokens)

        def run() -> None:
            checked()
            for _ in tokens:
                hashlib.sha256(PAYLOAD).digest()

        return run

    return prepare


def verification(publisher: peerseal.Identity) -> Contender[str]:
    """All the steps for the tokens of `signed_batch`."""
    verify = peerseal.EventVerifier(
        publisher.trust, audience=AUDIENCE, allow={publisher.service: {SCOPE}}, max_age=timedelta(days=7)
    ).verify

    def prepare(tokens: Sequence[str]) -> Callable[[], None]:
        messages = [[("authorization", b"Bearer " + token.encode())] for token in tokens]

        def run() -> None:
            for headers in messages:
                verify(PAYLOAD, headers, topic=TOPIC)

        return run

    return prepare


def signed_batch(publisher: peerseal.Identity, size: int) -> list[str]:
    """Tokens of that many events with PAYLOAD."""
    return [
        publisher.sign_event(
            PAYLOAD,
            topic=TOPIC,
            audience=AUDIENCE,
            scope=SCOPE,
            event_id=f"e-{number}",
            transaction_id=f"t-{number}",
            subject="ada",
        )["authorization"].removeprefix("Bearer ")
        for number in range(size)
    ]
