"""Full verification of a request token, compared with a raw RSA verify of the same bytes and with other libraries."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import peerseal
from benchmarks.figures import Figure, Goal
from benchmarks.peers import bare_decoders
from benchmarks.raw import raw_verify
from benchmarks.timing import Contender, each, interleaved
from peerseal.protocol.encoding import b64url_decode
from peerseal.protocol.keys import PublicKey

ROUNDS = 15
BATCH = 500  # tokens, signed right before they are needed: they live for a minute

AUDIENCE = "resource-service"
METHOD, TARGET, BODY = "POST", "/orders?dry=1", b'{"items": [{"itemID": "7", "quantity": 2}]}'
HEADERS = {"content-type": "application/json"}
SCOPE = "orders:write"
ALLOW = {"client-service": {SCOPE}}

_RAW = "cryptography's RSA-2048 verify"
_FULL = "full verification"
_FILE = "full verification, host-shared guard"


def measure(caller: peerseal.Identity, folder: Path) -> Iterator[Figure]:
    """The figures. ``caller`` signs with RS256, and its trust store finds the key; the shared guard's file goes to
    ``folder``."""
    key, trust = public_key(caller), caller.trust
    peers = bare_decoders(key, audience=f"{caller.domain}/{AUDIENCE}")
    contenders: dict[str, Contender[str]] = {
        _RAW: raw_verify(key),
        _FULL: verification(trust),
        _FILE: verification(trust, peerseal.FileReplayGuard(folder / "replay")),
        **{name: each(decode) for name, decode in peers.items()},
    }
    timings = interleaved(contenders, (signed_batch(caller, BATCH) for _ in range(ROUNDS)))

    def figure(name: str, to: str, goal: Goal | None = None) -> Figure:
        against = f"{to}: {timings.micros(to):.1f} µs"
        return Figure(name, timings.micros(name), "µs", against, timings.ratio(name, to), goal)

    yield figure(_FULL, _RAW, Goal("≤", 1.55))
    for peer in peers:
        against = f"{peer}'s bare decode: {timings.micros(peer):.1f} µs"
        yield Figure(_FULL, timings.micros(_FULL), "µs", against, timings.ratio(_FULL, peer), Goal("<", 1.0))
    yield figure(_FILE, _RAW, Goal("≤", 1.8))


def public_key(caller: peerseal.Identity) -> PublicKey:
    """The key that ``caller`` signs with now."""
    return PublicKey.from_spki(b64url_decode(caller.credentials.public_key))


def verification(trust: peerseal.TrustStore, guard: peerseal.ReplayGuard | None = None) -> Contender[str]:
    """All the steps for the tokens of `signed_batch`; the guard is in this process's memory where none is given."""
    verify = peerseal.Verifier(trust, audience=AUDIENCE, allow=ALLOW, replay=guard).verify

    def prepare(tokens: Sequence[str]) -> Callable[[], None]:
        def run() -> None:
            for token in tokens:
                verify(token, method=METHOD, target=TARGET, body=BODY, headers=HEADERS, scope=SCOPE)

        return run

    return prepare


def signed_batch(caller: peerseal.Identity, size: int) -> list[str]:
    """Fresh tokens, each for one call of its own."""
    sign = partial(caller.sign_request, AUDIENCE, method=METHOD, target=TARGET, body=BODY, headers=HEADERS)
    return [sign() for _ in range(size)]
