"""A real registry in memory, and a clock to set: for Peerseal's own tests, and for those of services that use it.

::

    with MemoryRegistry() as registry:
        app = create_app(registry.identity("resource-service"))  # your service, protected as ever
        client = registry.identity("client-service")
        token = client.sign_request("resource-service", method="GET", target="/profiles/1")
        assert app.test_client().get("/profiles/1", headers={"Authorization": f"Bearer {token}"}).status_code == 200

Only the network is left out: keys, proofs, tokens and documents are made and checked by the code that does it in
production. The registry lives in one process; a forked child works on a copy.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.errors import (
    CallerNotAllowed,
    CodedError,
    FetchError,
    KeyRefused,
    MissingToken,
    PeersealError,
    RevokedKey,
    UnknownKey,
)
from peerseal.peers.fetch import Answer
from peerseal.peers.forks import in_each_child
from peerseal.peers.identity import Identity
from peerseal.peers.trust import TrustStore
from peerseal.peers.trusted import TrustedKey
from peerseal.peers.verify import Verifier
from peerseal.protocol import documents
from peerseal.protocol.claims import claim
from peerseal.protocol.documents import ACTIVE, RETIRED, REVOKED, Changes, JwkSetDocument, KeyStatement, RegistryKeys
from peerseal.protocol.encoding import b64url, canonical_json, digest_header, strict_json_object
from peerseal.protocol.join import JoinToken, join_mac_matches
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import REGISTRY, check_trust_domain, make_kid, registry_id, service_id, split_kid
from peerseal.protocol.tokens import Proof

__all__ = ["Answer", "Call", "Clock", "MemoryRegistry"]

LISTED_AFTER_RETIREMENT = 400
"""Seconds for which a retired key stays in the JWK Set: longer than any request token lives, leeway included."""

_KEYS: Final = re.compile(r"/v1/services/([^/]+)/keys(?:/([^/.]+)(\.jwt)?)?")
_JWK_SET: Final = re.compile(r"/v1/services/([^/]+)/jwks\.jwt")


class Clock:
    """A clock that stands still until it is set: give it wherever ``clock`` is asked for.

    ``now``, in seconds since the epoch, can be read and set; it begins with the time of day.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        """The time that it shows."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Set it that much later."""
        self.now += seconds


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the registry received. ``headers`` has lower-case names."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Key:
    service: str
    public: PublicKey
    admitted_by: str
    seq: int
    active_from: int
    active_until: int
    expires_at: int
    revoked_at: int | None = None
    revoked_seq: int = 0


@dataclass(slots=True)
class _Joining:
    service: str
    token: JoinToken
    uses: int
    expires_at: float


class _NotFound(CodedError):
    status = 404


class _JoinRefused(CodedError):
    status = 401


class MemoryRegistry:
    """A registry of the trust domain ``domain``: a `Fetcher` for identities and trust stores, a `KeySource` itself.

    ``down`` makes every call fail, ``answers`` maps a path (without its query) to the Answer that is given instead of
    the real one. ``calls`` counts what came in by method and path, as ``"GET /v1/changes"``; ``log`` holds all of it.
    """

    def __init__(
        self,
        domain: str = "test.internal",
        *,
        clock: Callable[[], float] = time.time,
        key_lifetime: int = 7 * 24 * 3600,
    ) -> None:
        self.domain = check_trust_domain(domain)
        self.clock = clock
        self.down = False
        self.answers: dict[str, Answer] = {}
        self.calls: Counter[str] = Counter()
        self.log: list[Call] = []
        self.root, self.signing_key = KeyPair.generate("ES256"), KeyPair.generate("ES256")
        self.version = 1
        ledger_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        self._ledger_key = {"kty": "OKP", "crv": "Ed25519", "x": b64url(ledger_key)}
        self._key_lifetime = key_lifetime
        self._keys: dict[str, _Key] = {}  # by thumbprint
        self._joining: dict[str, _Joining] = {}
        self._entries: list[str | None] = [None]  # whose change each entry is; the first is the registry's creation
        self._verifier = Verifier(self, audience=REGISTRY, allow={"*": ()}, clock=clock)
        self._opened = ExitStack()
        self._renew_lock()
        in_each_child(self._renew_lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the identities and trust stores that came from here."""
        self._opened.close()

    # ---- for tests

    @property
    def pin(self) -> str:
        """The root key's thumbprint."""
        return self.root.public.thumbprint

    def join_token(self, service: str, *, uses: int = 1, ttl: float = 600.0) -> str:
        """A join token for that service, good ``uses`` times within ``ttl`` seconds."""
        token = JoinToken.generate(self.pin)
        self._joining[token.id] = _Joining(service, token, uses, self.clock() + ttl)
        return token.encode()

    def identity(self, service: str, **options: Any) -> Identity:
        """A started identity of that service. ``options`` are Identity's own; keys are ES256, which are quickly made,
        unless they say otherwise."""
        wired: dict[str, Any] = {"fetcher": self, "clock": self.clock, "alg": "ES256"}
        wired |= {"join_token": self.join_token(service), **options}
        identity = Identity(service, registry="http://registry.test", **wired)
        self._opened.callback(identity.stop)
        return identity.start()

    def trust_store(self, **options: Any) -> TrustStore:
        """A trust store that asks this registry. ``options`` are TrustStore's own."""
        wired: dict[str, Any] = {"fetcher": self, "clock": self.clock, "pin": self.pin, **options}
        store = TrustStore("http://registry.test", **wired)
        self._opened.callback(store.stop)
        return store

    def roll_signing_key(self) -> None:
        """Sign with a new key from now on; the root's document, one version on, names no other."""
        self.signing_key = KeyPair.generate("ES256")
        self.version += 1

    def retire(self, kid: str) -> None:
        """Retire a key as of now."""
        key = self._found(kid)
        if self._state(key) == ACTIVE:
            key.active_until = int(self.clock())
            self._append(key.service)

    def revoke(self, kid: str) -> None:
        """Revoke a key, and every key that it vouched for."""
        key = self._found(kid)
        if key.revoked_at is None:
            key.revoked_at, key.revoked_seq = int(self.clock()), self._append(key.service)
        for admitted in [self._kid(other) for other in self._keys.values() if other.admitted_by == kid]:
            self.revoke(admitted)

    # ---- the seams

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        try:
            key = self._found(kid)
        except _NotFound as error:
            raise UnknownKey("nobody registered that key") from error
        if key.revoked_at is not None:
            raise RevokedKey("the key was revoked")
        return TrustedKey(kid, service_id(self.domain, key.service), key.public, key.active_from, key.active_until)

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See Fetcher."""
        call = Call(method, path, body, {name.lower(): value for name, value in (headers or {}).items()})
        plain = urlsplit(path).path
        with self._lock:
            self.log.append(call)
            self.calls[f"{method} {plain}"] += 1
            if self.down:
                raise FetchError("the registry is down")
            try:
                return self.answers.get(plain) or self._answer(call, plain)
            except PeersealError as error:
                problem = {"status": error.status, "code": error.code, "detail": str(error)}
                return Answer(error.status, canonical_json(problem), {"content-type": "application/problem+json"})

    # ---- what it answers

    def sign(self, document: documents.Document) -> str:
        """Any document, signed as this registry's."""
        return documents.sign_document(document, self.signing_key)

    def jwk_set(self, service: str) -> JwkSetDocument:
        """The document about a service's keys, as of now."""
        now = self.clock()
        held = [key for key in self._keys.values() if key.service == service]
        if not held:
            raise _NotFound("service_not_found", service)
        good = [key for key in held if key.revoked_at is None and key.active_until > now - LISTED_AFTER_RETIREMENT]
        revoked = [key for key in held if key.revoked_at is not None and key.expires_at > now]
        return JwkSetDocument(
            *self._frame(service_id(self.domain, service)),
            *self._numbers(service),
            keys=tuple(self._signed_key(key) for key in good),
            revoked=tuple(documents.RevokedKey(self._kid(k), k.revoked_at or 0, k.revoked_seq - 1) for k in revoked),
        )

    def statement(self, kid: str) -> KeyStatement:
        """The document about one key, as of now."""
        key = self._found(kid)
        return KeyStatement(
            *self._frame(service_id(self.domain, key.service)),
            *self._numbers(key.service),
            kid=kid,
            public=key.public,
            state=self._state(key),
            active_from=key.active_from,
            active_until=key.active_until,
            revoked_at=key.revoked_at,
            index=key.seq - 1,
        )

    def changes(self, since: int) -> Changes:
        """The document about what changed after entry ``since``."""
        names = sorted({service_id(self.domain, service) for service in self._entries[since:] if service})
        head = len(self._entries)
        return Changes(*self._frame(self.domain, documents.CHANGES_LIFETIME), since, head, tuple(names), since > head)

    def registry_keys(self) -> RegistryKeys:
        """The root's document, as of now."""
        frame = self._frame(self.domain, documents.REGISTRY_KEYS_LIFETIME)
        return RegistryKeys(*frame, self.version, self.root.public, (self.signing_key.public,), self._ledger_key)

    def _answer(self, call: Call, path: str) -> Answer:
        if call.method == "GET" and path == "/.well-known/peerseal-registry":
            return _jwt(documents.sign_document(self.registry_keys(), self.root))
        if call.method == "GET" and path == "/v1/changes":
            return _jwt(self.sign(self.changes(int(parse_qs(urlsplit(call.path).query).get("since", ["0"])[0]))))
        if call.method == "GET" and (found := _JWK_SET.fullmatch(path)):
            return self._conditional(call, self.jwk_set(found[1]))
        if (found := _KEYS.fullmatch(path)) is None:
            raise _NotFound("not_found", path)
        service, thumbprint, signed = found.groups()
        if call.method == "POST" and thumbprint is None:
            return self._register(call, service)
        kid = make_kid(service_id(self.domain, service), thumbprint or "")
        if call.method == "GET" and signed:
            return _jwt(self.sign(self.statement(kid)))
        if call.method == "DELETE" and not signed:
            return self._end(call, kid)
        raise _NotFound("not_found", path)

    def _conditional(self, call: Call, document: JwkSetDocument) -> Answer:
        """RFC 9110 section 13.1.2; the tag is of all that a new signature does not change."""
        timeless = replace(document, issued_at=0, expires_at=0, head=0)
        tag = f'"{digest_header(canonical_json(timeless.claims()))}"'
        if call.headers.get("if-none-match") == tag:
            return Answer(304, b"", {"etag": tag})
        return _jwt(self.sign(document), {"etag": tag})

    # ---- what it takes

    def _register(self, call: Call, service: str) -> Answer:
        body, now = strict_json_object(call.body), int(self.clock())
        owner, us = service_id(self.domain, service), registry_id(self.domain)
        proof = Proof.read(claim(body, "proof", str), issuer=owner, audience=us, now=now)
        kid, known = make_kid(owner, proof.public_key.thumbprint), self._keys.get(proof.public_key.thumbprint)
        if known is not None and known.service != service:
            raise KeyRefused("key_of_another_service")
        if known is not None and self._state(known) != ACTIVE:
            raise KeyRefused(f"key_{self._state(known)}")
        if known is None:
            by, end = self._right(call, body, service, proof), now + self._key_lifetime
            key = _Key(service, proof.public_key, by, self._append(service), now, end, end)
            self._keys[proof.public_key.thumbprint] = key
        return _jwt(self.sign(self.statement(kid)), status=201 if known is None else 200)

    def _right(self, call: Call, body: dict[str, Any], service: str, proof: Proof) -> str:
        """The kid or join token that admits the key."""
        if "authorization" in call.headers:
            voucher = self._caller(call)
            if split_kid(voucher)[0] != proof.issuer or self._state(self._found(voucher)) != ACTIVE:
                raise CallerNotAllowed("only a current key of the same service can vouch")
            return voucher
        if "join" not in body:
            raise MissingToken("neither a voucher nor a join token")
        join = claim(body, "join", dict)
        joining = self._joining.get(claim(join, "id", str))
        if joining is None or joining.service != service or not joining.uses or joining.expires_at <= self.clock():
            raise _JoinRefused("join_refused", "no such join token, or no longer")
        if not join_mac_matches(joining.token.mac_key, proof.jws, claim(join, "mac", str)):
            raise _JoinRefused("join_refused", "the mac is not over this proof")
        joining.uses -= 1
        return joining.token.id

    def _end(self, call: Call, kid: str) -> Answer:
        if self._caller(call) != kid:
            raise CallerNotAllowed("a key can end only itself")
        compromised = parse_qs(urlsplit(call.path).query).get("reason") == ["compromised"]
        (self.revoke if compromised else self.retire)(kid)
        return Answer(204, b"")

    def _caller(self, call: Call) -> str:
        """The kid that signed this call, which is verified as every callee does it."""
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        request: dict[str, Any] = {"method": call.method, "target": call.path, "body": call.body}
        return self._verifier.verify(token, headers=call.headers, **request).kid

    # ---- small parts

    def _append(self, service: str) -> int:
        self._entries.append(service)
        return len(self._entries)

    def _found(self, kid: str) -> _Key:
        owner, thumbprint = split_kid(kid)
        key = self._keys.get(thumbprint)
        if key is None or service_id(self.domain, key.service) != owner:
            raise _NotFound("key_not_found", kid)
        return key

    def _kid(self, key: _Key) -> str:
        return make_kid(service_id(self.domain, key.service), key.public.thumbprint)

    def _state(self, key: _Key) -> str:
        if key.revoked_at is not None:
            return REVOKED
        return ACTIVE if key.active_until > self.clock() else RETIRED

    def _signed_key(self, key: _Key) -> documents.SignedKey:
        times = key.active_from, key.active_until
        return documents.SignedKey(self._kid(key), key.public, self._state(key), *times, key.seq - 1)

    def _frame(self, subject: str, lifetime: int = documents.DOCUMENT_LIFETIME) -> tuple[str, str, int, int]:
        now = int(self.clock())
        return registry_id(self.domain), subject, now, now + lifetime

    def _numbers(self, service: str) -> tuple[int, int]:
        """``seq`` and ``head``: the entry that last changed the service, and the newest."""
        newest = max(seq for seq, changed in enumerate(self._entries, 1) if changed == service)
        return newest, len(self._entries)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


def _jwt(document: str, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Answer:
    return Answer(status, document.encode("ascii"), {"content-type": "application/jwt", **(headers or {})})
