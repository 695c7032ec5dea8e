"""Signing a request, compared with a raw RSA sign of the same bytes, and with other libraries for the same claims."""

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
from benchmarks.raw import raw_sign, raw_sign_p256
from benchmarks.timing import Contender, Timings, each, interleaved
from benchmarks.verification import signed_batch
from peerseal.protocol.encoding import b64url_decode, strict_json_object

ROUNDS = 15
BATCH = 100

_RAW = "cryptography's RSA-2048 sign"
_RAW_P256 = "cryptography's P-256 sign"
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
        _RAW_P256: raw_sign_p256(message.encode("ascii")),
        _RS256: partial(_ours, caller),
        _ES256: partial(_ours, caller_es256),
        **{name: each(encode) for name, encode in peers.items()},
    }
    timings = interleaved(contenders, (range(BATCH) for _ in range(ROUNDS)))
    yield _figure(timings, _RS256, _RAW, Goal("≤", 1.05))
    for peer in peers:
        yield _figure(timings, _RS256, peer)
    yield _figure(timings, _ES256, _RAW_P256)
    yield _times_faster(timings, _ES256, _RS256, Goal("≥", 8))
    yield _times_faster(timings, _RAW_P256, _RAW)


def _figure(timings: Timings, name: str, to: str, goal: Goal | None = None) -> Figure:
    return Figure(name, timings.micros(name), "µs", f"{to}: {timings.micros(to):.0f} µs", timings.ratio(name, to), goal)


def _times_faster(timings: Timings, name: str, than: str, goal: Goal | None = None) -> Figure:
    against = f"{than}: {timings.micros(than):.0f} µs"
    return Figure(f"{name}, times faster", timings.micros(name), "µs", against, timings.ratio(than, name), goal)


def _encoders(private: RSAPrivateKey, claims: Mapping[str, Any]) -> dict[str, Callable[[int], object]]:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ready = jwk.construct(private.private_bytes(*form).decode("ascii"), "RS256")
    return {
        "PyJWT's encode, RS256": lambda _: jwt.encode(dict(claims), private, "RS256"),
        "python-jose's encode, RS256": lambda _: python_jose.encode(dict(claims), ready, "RS256"),
    }


def _ours(caller: peerseal.Identity, batch: Sequence[int]) -> Callable[[], object]:
    return lambda: signed_batch(caller, len(batch))
