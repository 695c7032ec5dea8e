"""Where the time of a full verification goes: ``python -m benchmarks.steps`` prints microseconds by step.

Each real function of `peerseal.verify.request` is timed alone over new tokens, with the results of the earlier steps.
Alone each function is a little faster than in its place, where the RSA arithmetic has just used the processor's caches.
The line before the last has that difference, together with the calls themselves.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks.raw import raw_verify
from benchmarks.timing import Timings, each, interleaved
from benchmarks.verification import (
    ALLOW,
    AUDIENCE,
    BODY,
    HEADERS,
    METHOD,
    SCOPE,
    TARGET,
    public_key,
    signed_batch,
    verification,
)
from benchmarks.world import world
from peerseal import Identity, MemoryReplayGuard, Peer
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url_decode, strict_json_object
from peerseal.protocol.names import service_id
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.protocol.tokens.request import REQUEST_LIFETIME_CAP, usual_request_claims
from peerseal.trust.beliefs import check_window
from peerseal.verify.allow import AllowedCallers
from peerseal.verify.received import by_lower_name
from peerseal.verify.request import check_binding, check_content
from peerseal.verify.transaction import TRANSACTION_HEADER

ROUNDS = 40
BATCH = 100

_RAW = "raw RSA-2048 verify"
_SIGNATURE = "4 signature"
_FULL = "full verification"


@dataclass(frozen=True, slots=True)
class _Taken:
    """A token and the results of the first steps."""

    token: str
    payload_segment: bytes
    payload: bytes
    claims: dict[str, Any]
    signature_segment: bytes
    signature: bytes
    signing_input: bytes

    @classmethod
    def apart(cls, token: str) -> "_Taken":
        _, payload_segment, signature_segment, signing_input = jose.split_segments(token)
        payload, signature = b64url_decode(payload_segment), b64url_decode(signature_segment)
        claims = strict_json_object(payload)
        return cls(token, payload_segment, payload, claims, signature_segment, signature, signing_input)


def main() -> None:
    """Measure and print."""
    with world() as shared:
        timings = measure(shared.caller)
    for name, micros in _lines(timings):
        print(f"{micros:6.2f}  {name}")


def measure(caller: Identity) -> Timings:
    """Every step, the whole, and the limit, side by side."""
    contenders = {name: each(step) for name, step in _steps(caller).items()}
    raw = raw_verify(public_key(caller))
    full = verification(caller.trust)
    contenders[_RAW] = lambda batch: raw([taken.token for taken in batch])
    contenders[_FULL] = lambda batch: full([taken.token for taken in batch])
    contenders["nothing"] = each(lambda _: None)
    batches = ([_Taken.apart(token) for token in signed_batch(caller, BATCH)] for _ in range(ROUNDS))
    return interleaved(contenders, batches)


def _steps(caller: Identity) -> dict[str, Callable[[_Taken], object]]:
    key = caller.trust.key(caller.credentials.key_id)
    audience, owner, now = service_id(caller.domain, AUDIENCE), key.service_id, time.time()
    policy, guard = AllowedCallers.of(ALLOW, caller.domain), MemoryReplayGuard()

    def parties(claims: dict[str, Any]) -> None:
        check_parties(claims["iss"], key.service_id, claims["aud"], audience, subject=claims["sub"])

    def window(claims: dict[str, Any]) -> None:
        times = claims["iat"], claims["nbf"], claims["exp"]
        check_times(*times, now=now, leeway=LEEWAY, cap=REQUEST_LIFETIME_CAP)
        check_window(claims["iat"], key, LEEWAY)

    def binding(claims: dict[str, Any]) -> None:
        headers = by_lower_name(HEADERS, claims["headers"])
        check_binding(claims, METHOD, TARGET, headers)
        check_content(claims["content_digest"], BODY)
        assert "tth" not in claims
        assert headers.get(TRANSACTION_HEADER) is None

    scopes = policy.scopes(owner) or frozenset()
    return {
        "1 three segments": lambda taken: jose.split_segments(taken.token),
        "1 base64url of the payload": lambda taken: b64url_decode(taken.payload_segment),
        "1 base64url of the signature": lambda taken: b64url_decode(taken.signature_segment),
        "1 2 strict JSON and the claims' shape, by pattern": lambda taken: usual_request_claims(taken.payload),
        "3 policy, key by kid": lambda _: (policy.scopes(owner), caller.trust.key(key.kid)),
        _SIGNATURE: lambda taken: key.public.verify(taken.signing_input, taken.signature),
        "5 6 parties": lambda taken: parties(taken.claims),
        "7 times": lambda taken: window(taken.claims),
        "8 9 binding, two SHA-256": lambda taken: binding(taken.claims),
        "10 scope": lambda _: SCOPE in scopes,
        "11 memory replay guard": lambda taken: guard.claim(owner, taken.claims["jti"], taken.claims["exp"] + LEEWAY),
        "the Peer": lambda taken: Peer(AUDIENCE, owner, key.kid, scopes, MappingProxyType(taken.claims)),
    }


def _lines(timings: Timings) -> Iterator[tuple[str, float]]:
    """Every step without the call that timed it; of the signature's, what is not the limit itself."""
    nothing, raw, full = (timings.micros(name) for name in ("nothing", _RAW, _FULL))
    rest = full - raw
    yield _RAW, raw
    for name in timings.names():
        if name not in ("nothing", _RAW, _FULL):
            micros = timings.micros(name) - nothing - (raw if name == _SIGNATURE else 0)
            rest -= micros
            yield name if name != _SIGNATURE else f"{name}, beside raw RSA", micros
    yield "calls, and caches that the arithmetic emptied", rest
    yield f"{_FULL}: {timings.ratio(_FULL, _RAW):.2f} × raw", full


if __name__ == "__main__":
    main()
