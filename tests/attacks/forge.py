"""What an attacker has: real keys, and a hand that writes any header, payload and signature.

`Callee` is the service under attack: the real verifier over a small key source that counts what is asked of it.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from peerseal.errors import PeersealError, RevokedKey, UnknownKey
from peerseal.protocol.encoding import b64url, canonical_json, digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.protocol.policies import DomainSettings
from peerseal.protocol.tokens.request import REQUEST_TYP
from peerseal.trust.beliefs import TrustedKey
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
from peerseal.verify.request import Peer, Verifier

DOMAIN = "acme.internal"
CALLER = f"{DOMAIN}/client-service"
OTHER = f"{DOMAIN}/billing"
STRANGER = f"{DOMAIN}/stranger"
CALLEE = f"{DOMAIN}/resource-service"

NOW = 1_800_000_000
JTI = "AAAAAAAAAAAAAAAAAAAAAA"
METHOD = "POST"
TARGET = "/orders/7?dry=1&full=yes"
BODY = b'{"item": 7}'
HEADERS = {"content-type": "application/json"}

ABSENT: Any = object()
"""A claim or header member with this value is left out."""

BEFORE_THE_KEY = {"malformed_token", "wrong_type", "caller_not_allowed"}
"""Refusals for which no key may be asked for, let alone fetched."""

BEFORE_THE_BODY = BEFORE_THE_KEY | {"unknown_key", "revoked_key", "bad_signature", "wrong_issuer", "wrong_audience"}
"""Refusals before which the body may not be read."""


@functools.cache
def rsa_key(name: str) -> KeyPair:
    """An RSA key pair, made once for the whole test run of a process."""
    return KeyPair.generate("RS256")


@functools.cache
def ec_key(name: str) -> KeyPair:
    """A P-256 key pair, made once for the whole test run of a process."""
    return KeyPair.generate("ES256")


def kid_of(owner: str, key: KeyPair) -> str:
    """The kid under which ``owner`` holds the key."""
    return make_kid(owner, key.public.thumbprint)


def changed(members: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The members with changes; ABSENT takes one away."""
    return {name: value for name, value in {**members, **changes}.items() if value is not ABSENT}


def header(key: KeyPair, owner: str = CALLER, **changes: Any) -> dict[str, Any]:
    """The header of an honest request token, changed."""
    return changed({"alg": key.public.alg, "kid": kid_of(owner, key), "typ": REQUEST_TYP}, changes)


def claims(issuer: str = CALLER, **changes: Any) -> dict[str, Any]:
    """The claims of an honest request token for METHOD, TARGET, BODY and HEADERS, changed."""
    honest = {
        "iss": issuer,
        "sub": issuer,
        "aud": CALLEE,
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 60,
        "jti": JTI,
        "method": METHOD,
        "target_digest": digest_header(TARGET.encode()),
        "content_digest": digest_header(BODY),
        "headers": dict(HEADERS),
    }
    return changed(honest, changes)


def segment(value: Any) -> str:
    """One segment of a JWS: of bytes as they are, of anything else as canonical JSON."""
    return b64url(value if isinstance(value, bytes) else canonical_json(value))


def forge(
    head: Any, payload: Any, sign: Callable[[bytes], bytes] | bytes, *, encode: Callable[[Any], str] = segment
) -> str:
    """A compact JWS of any header and payload (bytes, or a value to be written as JSON), signed anyhow."""
    signing_input = f"{encode(head)}.{encode(payload)}"
    signature = sign if isinstance(sign, bytes) else sign(signing_input.encode("utf-8"))
    return f"{signing_input}.{b64url(signature)}"


def honest_token(key: KeyPair, owner: str = CALLER, **changes: Any) -> str:
    """A request token as the SDK would make it; changed claims are signed like the rest."""
    return forge(header(key, owner), claims(owner, **changes), key.sign)


class Keys:
    """A `KeySource` in memory. ``asked`` lists the kids that were asked for, in order."""

    domain = DOMAIN

    def __init__(self) -> None:
        self.trusted: dict[str, TrustedKey] = {}
        self.revoked: set[str] = set()
        self.asked: list[str] = []
        self.domain_settings = DomainSettings()

    def add(self, owner: str, key: KeyPair, *, active_from: int = NOW - 3600, active_until: int = NOW + 3600) -> str:
        """Believe in the key from now on. Answers its kid."""
        kid = kid_of(owner, key)
        self.trusted[kid] = TrustedKey(kid, owner, key.public, active_from, active_until)
        return kid

    def revoke(self, owner: str, key: KeyPair) -> None:
        """Believe nothing that the key ever signed."""
        kid = kid_of(owner, key)
        self.trusted.pop(kid, None)
        self.revoked.add(kid)

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        self.asked.append(kid)
        if kid in self.revoked:
            raise RevokedKey("revoked")
        try:
            return self.trusted[kid]
        except KeyError:
            raise UnknownKey("never registered") from None

    def policy(self, service_id: str) -> None:
        """See KeySource: there is none."""

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self.key(kid)

    def settings(self) -> DomainSettings:
        """See KeySource."""
        return self.domain_settings


class CountingGuard:
    """A replay guard that knows how often it was asked."""

    def __init__(self, guard: ReplayGuard) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self.asked = 0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard."""
        with self._lock:
            self.asked += 1
        return self._guard.claim(issuer, jti, until)


class Callee:
    """The service under attack. It knows a key of each kind of CALLER's, and OTHER's; STRANGER has one and may not
    call."""

    def __init__(self, *, allow: Mapping[str, Iterable[str]] | None = None, replay: ReplayGuard | None = None) -> None:
        self.now: float = NOW
        self.keys = Keys()
        self.keys.add(CALLER, rsa_key("caller"))
        self.keys.add(CALLER, ec_key("caller"))
        self.keys.add(OTHER, rsa_key("other"))
        self.keys.add(STRANGER, rsa_key("stranger"))
        self.guard = CountingGuard(MemoryReplayGuard(clock=self.clock) if replay is None else replay)
        default = {"client-service": {"orders:write"}, "billing": {"orders:read"}}
        self.verifier = Verifier(
            self.keys,
            audience="resource-service",
            allow=default if allow is None else allow,
            replay=self.guard,
            clock=self.clock,
        )

    def clock(self) -> float:
        """This callee's time, which tests set."""
        return self.now

    def accepts(self, token: str, **request: Any) -> Peer:
        """The peer, for the request METHOD, TARGET, BODY, HEADERS as changed."""
        return self.verifier.verify(
            token, **{"method": METHOD, "target": TARGET, "body": BODY, "headers": HEADERS, **request}
        )

    def refuses(self, token: str, code: str, **request: Any) -> PeersealError:
        """The refusal, with exactly that code; nothing was recorded, remembered, or asked for without need."""
        asked, claimed, remembered = len(self.keys.asked), self.guard.asked, self.verifier.cached_headers
        reads = _Reads(request.pop("body", BODY))
        with pytest.raises(PeersealError) as caught:
            self.accepts(token, body=reads, **request)
        assert caught.value.code == code, repr(caught.value)
        assert len(self.keys.asked) - asked == (0 if code in BEFORE_THE_KEY else 1)
        assert self.guard.asked - claimed == (1 if code == "replayed" else 0)
        if code in BEFORE_THE_BODY:
            assert reads.count == 0
        if code in BEFORE_THE_KEY | {"unknown_key", "revoked_key", "bad_signature"}:
            assert self.verifier.cached_headers == remembered
        assert not (token and token in str(caught.value))
        return caught.value


class _Reads:
    """A body that counts how often it is read."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return self._body
