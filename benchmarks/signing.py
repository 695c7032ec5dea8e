"""Signing a request, beside the raw RSA sign of the same bytes, and the same claims signed by other libraries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jose import jwk
from jose import jwt as python_jose

import peerseal
from benchmarks.figures import Figure, Goal
from benchmarks.raw import raw_sign
from benchmarks.timing import Contender, each, interleaved
from benchmarks.verification import signed_batch
from peerseal.protocol.encoding import b64url_decode, strict_json_object

ROUNDS = 15
BATCH = 100

_RAW = "cryptography's RSA-2048 sign"
_RS256 = "signing a request, RS256"
_ES256 = "signing a request, ES256"


def measure(caller: peerseal.Identity, caller_es256: peerseal.Identity) -> Iterator[Figure]:
    """The figures. Peers sign with an RSA-2048 key of their own, made ready once, and get the claims for nothing."""
    private = generate_private_key(65537, 2048)
    token = signed_batch(caller, 1)[0]
    message = token.rpartition(".")[0]
    claims = strict_json_object(b64url_decode(message.partition(".")[2]))
    peers = _encoders(private, claims)
    contenders: dict[str, Contender[int]] = {
        _RAW: raw_sign(private, message.encode("ascii")),
        _RS256: partial(_ours, caller),
        _ES256: partial(_ours, caller_es256),
        **{name: each(encode) for name, encode in peers.items()},
    }
    timings = interleaved(contenders, (range(BATCH) for _ in range(ROUNDS)))
    rs256 = timings.micros(_RS256)
    yield Figure(
        _RS256, rs256, "µs", f"{_RAW}: {timings.micros(_RAW):.0f} µs", timings.ratio(_RS256, _RAW), Goal("≤", 1.1)
    )
    for peer in peers:
        against = f"{peer}'s encode, RS256: {timings.micros(peer):.0f} µs"
        yield Figure(_RS256, rs256, "µs", against, timings.ratio(_RS256, peer))
    faster = f"{_ES256}: times faster than RS256"
    yield Figure(
        faster, timings.micros(_ES256), "µs", f"RS256: {rs256:.0f} µs", timings.ratio(_RS256, _ES256), Goal("≥", 8)
    )


def _encoders(private: RSAPrivateKey, claims: Mapping[str, Any]) -> dict[str, Callable[[int], object]]:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ready = jwk.construct(private.private_bytes(*form).decode("ascii"), "RS256")
    return {
        "PyJWT": lambda _: jwt.encode(dict(claims), private, "RS256"),
        "python-jose": lambda _: python_jose.encode(dict(claims), ready, "RS256"),
    }


def _ours(caller: peerseal.Identity, batch: Sequence[int]) -> Callable[[], object]:
    return lambda: signed_batch(caller, len(batch))
