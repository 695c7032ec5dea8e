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
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar
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
from peerseal.protocol import documents, merkle, named_keys
from peerseal.protocol.checkpoint import Checkpoint, encode_proof, ledger_jwk, sign_checkpoint
from peerseal.protocol.claims import claim
from peerseal.protocol.documents import (
    Changes,
    DomainDocument,
    JwkSetDocument,
    KeyStatement,
    PolicyDocument,
    RegistryKeys,
)
from peerseal.protocol.encoding import canonical_json, digest_header, strict_json_object
from peerseal.protocol.join import JoinToken, join_mac_matches
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger import (
    DOMAIN_SET,
    KEY_RETIRED,
    KEY_REVOKED,
    POLICY_SET,
    REGISTRY_CREATED,
    REGISTRY_KEYS_ISSUED,
    Admission,
    Entry,
    evidence_digest,
)
from peerseal.protocol.named_keys import ACTIVE, RETIRED, REVOKED
from peerseal.protocol.names import (
    REGISTRY,
    check_trust_domain,
    make_kid,
    qualify,
    registry_id,
    service_id,
    split_kid,
    split_service_id,
)
from peerseal.protocol.policies import ANYONE, CallPolicy, DomainSettings, UserIssuer
from peerseal.protocol.tokens import Proof

__all__ = ["Answer", "Call", "Clock", "MemoryLedger", "MemoryRegistry"]

LISTED_AFTER_RETIREMENT = 960
"""Seconds for which a retired key stays in the JWK Set: longer than any transaction token lives, leeway included."""

T = TypeVar("T")

_KEYS: Final = re.compile(r"/v1/services/([^/]+)/keys(?:/([^/.]+)(\.jwt)?)?")
_POLICY: Final = re.compile(r"/v1/services/([^/]+)/policy\.jwt")
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
    admission: Admission
    active_until: int
    revoked_at: int | None = None
    revoked_seq: int = 0


class MemoryLedger:
    """A ledger in memory: entries, the tree over them, and the key that signs its checkpoints."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.key = Ed25519PrivateKey.generate()
        self.entries: list[Entry] = []
        self._leaves: list[bytes] = []
        self._nodes: dict[tuple[int, int], bytes] = {}

    @property
    def jwk(self) -> dict[str, str]:
        """The public key."""
        return ledger_jwk(self.key.public_key())

    def append(self, entry: Entry) -> int:
        """Add an entry, whose seq must be the next; the ledger's size after it."""
        if entry.seq != len(self.entries) + 1:
            raise ValueError(f"entry {entry.seq} after entry {len(self.entries)}")
        self.entries.append(entry)
        self._leaves.append(entry.leaf)
        return entry.seq

    def checkpoint(self) -> str:
        """The signed head."""
        size = len(self.entries)
        return sign_checkpoint(Checkpoint(self.origin, size, merkle.root_hash(size, self.node)), self.key)

    def inclusion(self, index: int) -> merkle.Proof:
        """The proof of an entry in the whole tree."""
        return merkle.inclusion_proof(index, len(self.entries), self.node)

    def consistency(self, old: int, new: int) -> merkle.Proof:
        """The proof that the tree of size ``new`` begins with that of size ``old``."""
        return merkle.consistency_proof(old, new, self.node)

    def node(self, level: int, number: int) -> bytes:
        """A `peerseal.protocol.merkle.NodeReader`."""
        if level == 0:
            return self._leaves[number]
        found = self._nodes.get((level, number))
        if found is None:
            left, right = self.node(level - 1, 2 * number), self.node(level - 1, 2 * number + 1)
            found = self._nodes[level, number] = merkle.node_hash(left, right)
        return found


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
        self.past_signing_keys: tuple[PublicKey, ...] = ()
        self.past_ledger_keys: tuple[dict[str, str], ...] = ()
        self.version = 1
        self.ledger = MemoryLedger(domain)
        self._key_lifetime = key_lifetime
        self._keys: dict[str, _Key] = {}  # by thumbprint
        self._joining: dict[str, _Joining] = {}
        self._policies: dict[str, CallPolicy | None] = {}
        self._settings, self._settings_seq = DomainSettings(), 0
        self._append(REGISTRY_CREATED, None)
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

    def roll_signing_key(self, *, keep_old: bool = False) -> None:
        """Sign with a new key from now on; the root's document, one version on, names no other, or with ``keep_old``
        those before as well."""
        self.past_signing_keys = (self.signing_key.public, *self.past_signing_keys) if keep_old else ()
        self.signing_key = KeyPair.generate("ES256")
        self._issue_registry_keys()

    def roll_ledger_key(self, *, keep_old: bool = True) -> None:
        """Sign checkpoints with a new key from now on; the root's document, one version on, still names those before,
        unless ``keep_old`` is False."""
        self.past_ledger_keys = (self.ledger.jwk, *self.past_ledger_keys) if keep_old else ()
        self.ledger.key = Ed25519PrivateKey.generate()
        self._issue_registry_keys()

    def drop_past_keys(self) -> None:
        """Name no other keys than those in use in the root's document, one version on."""
        self.past_signing_keys, self.past_ledger_keys = (), ()
        self._issue_registry_keys()

    def retire(self, kid: str) -> None:
        """Retire a key as of now."""
        key = self._found(kid)
        if self._state(key) == ACTIVE:
            key.active_until = int(self.clock())
            self._append(KEY_RETIRED, key.service, kid)

    def revoke(self, kid: str) -> None:
        """Revoke a key, and every key that it vouched for."""
        key = self._found(kid)
        if key.revoked_at is None:
            key.revoked_at, key.revoked_seq = int(self.clock()), self._append(KEY_REVOKED, key.service, kid)
        for admitted in [self._kid(other) for other in self._keys.values() if other.admission.by.get("kid") == kid]:
            self.revoke(admitted)

    def set_policy(self, service: str, allow: Mapping[str, Iterable[str]] | None, *, restricted: bool = False) -> None:
        """Lay down who may call a service, by short name, id or ``"*"``, each with its scopes; None for no policy."""
        policy = None
        if allow is not None:
            names = {who: who if who == ANYONE else qualify(who, self.domain) for who in allow}
            policy = CallPolicy({names[who]: frozenset(allow[who]) for who in allow}, restricted)
        said = policy and ({"restricted": True} if restricted else policy.to_json())
        self._append(POLICY_SET, service, data={"policy": said})
        self._policies[service] = policy

    def set_domain(
        self,
        *,
        minters: Iterable[str] = (),
        issuers: Iterable[UserIssuer] = (),
        exchange: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
    ) -> None:
        """Lay down the domain's settings: minters and clients of the exchange by short name or id."""
        granted = {
            qualify(client, self.domain): {audience: frozenset(scopes) for audience, scopes in to.items()}
            for client, to in (exchange or {}).items()
        }
        names = frozenset(qualify(minter, self.domain) for minter in minters)
        self._settings = DomainSettings(names, tuple(issuers), granted)
        self._settings_seq = self._append(DOMAIN_SET, None, data={"settings": self._settings.to_json()})

    # ---- the seams

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        return self._policies.get(split_service_id(service_id)[1])

    def settings(self) -> DomainSettings:
        """See KeySource."""
        return self._settings

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        try:
            key = self._found(kid)
        except _NotFound as error:
            raise UnknownKey("nobody registered that key") from error
        if key.revoked_at is not None:
            raise RevokedKey("the key was revoked")
        return TrustedKey(
            kid, service_id(self.domain, key.service), key.public, key.admission.active_from, key.active_until
        )

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource. Past keys stay."""
        return self.key(kid)

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

    def ask(
        self,
        path: str,
        read: Callable[[Answer], T | None],
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> T | None:
        """See Fetcher: there is one mirror, and it keeps no question."""
        return read(self.call("GET", path, headers=headers))

    def hang_up(self) -> None:
        """See Fetcher."""

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
        revoked = [key for key in held if key.revoked_at is not None and key.admission.expires_at > now]
        return JwkSetDocument(
            *self._frame(service_id(self.domain, service)),
            *self._place(service),
            keys=tuple(self._signed_key(key) for key in good),
            revoked=tuple(named_keys.RevokedKey(self._kid(k), k.revoked_at or 0, k.revoked_seq - 1) for k in revoked),
        )

    def statement(self, kid: str) -> KeyStatement:
        """The document about one key, as of now."""
        key = self._found(kid)
        return KeyStatement(
            *self._frame(service_id(self.domain, key.service)),
            *self._place(key.service),
            kid=kid,
            public=key.public,
            state=self._state(key),
            active_until=key.active_until,
            revoked_at=key.revoked_at,
            admission=key.admission,
            proof=self.ledger.inclusion(key.admission.index),
        )

    def policy_document(self, service: str) -> PolicyDocument:
        """The document about who may call a service, as of now."""
        frame = *self._frame(service_id(self.domain, service)), *self._place(service)
        return PolicyDocument(*frame, self._policies.get(service))

    def domain_document(self) -> DomainDocument:
        """The document about the domain's settings, as of now."""
        place = self._settings_seq, len(self.ledger.entries), self.ledger.checkpoint()
        return DomainDocument(*self._frame(self.domain), *place, self._settings)

    def changes(self, since: int) -> Changes:
        """The document about what changed after entry ``since``."""
        entries = self.ledger.entries
        names = sorted({service_id(self.domain, entry.service or REGISTRY) for entry in entries[since:]})
        frame, head = self._frame(self.domain, documents.CHANGES_LIFETIME), len(entries)
        proof = self.ledger.consistency(since, head) if 0 < since <= head else None
        return Changes(*frame, since, head, self.ledger.checkpoint(), tuple(names), since > head, proof)

    def registry_keys(self) -> RegistryKeys:
        """The root's document, as of now."""
        frame = self._frame(self.domain, documents.REGISTRY_KEYS_LIFETIME)
        signing = (self.signing_key.public, *self.past_signing_keys)
        keys = RegistryKeys(*frame, self.version, self.root.public, signing, self.ledger.jwk)
        return replace(keys, past_ledger_keys=self.past_ledger_keys)

    def _answer(self, call: Call, path: str) -> Answer:
        if call.method == "GET" and path == "/.well-known/peerseal-registry":
            return _jwt(documents.sign_document(self.registry_keys(), self.root))
        if call.method == "GET" and path == "/v1/changes":
            return _jwt(self.sign(self.changes(_number(call, "since"))))
        if call.method == "GET" and path == "/ledger/checkpoint":
            return Answer(200, self.ledger.checkpoint().encode("utf-8"), {"content-type": "text/plain; charset=utf-8"})
        if call.method == "GET" and path == "/ledger/proof":
            old, new = _number(call, "from"), _number(call, "to")
            return Answer(200, canonical_json({"from": old, "to": new, "proof": self._consistency(old, new)}))
        if call.method == "GET" and path == "/v1/domain.jwt":
            return _jwt(self.sign(self.domain_document()))
        if call.method == "GET" and (found := _JWK_SET.fullmatch(path)):
            return self._conditional(call, self.jwk_set(found[1]))
        if call.method == "GET" and (found := _POLICY.fullmatch(path)):
            return self._told_policy(call, found[1])
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
        keys = tuple(replace(key, proof=()) for key in document.keys)
        timeless = replace(document, issued_at=0, expires_at=0, head=0, checkpoint="", keys=keys)
        tag = f'"{digest_header(canonical_json(timeless.claims()))}"'
        if call.headers.get("if-none-match") == tag:
            return Answer(304, b"", {"etag": tag})
        return _jwt(self.sign(document), {"etag": tag})

    def _told_policy(self, call: Call, service: str) -> Answer:
        """A restricted policy is told to its service and those that it names."""
        document = self.policy_document(service)
        if document.policy is not None and document.policy.restricted:
            if "authorization" not in call.headers:
                raise MissingToken("the policy is restricted")
            caller = split_kid(self._caller(call))[0]
            if caller != document.subject and document.policy.scopes(caller) is None:
                raise CallerNotAllowed("the policy names others")
        return _jwt(self.sign(document))

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
            self._admit(service, proof.public_key, self._right(call, body, service, proof), proof.jws)
        return _jwt(self.sign(self.statement(kid)), status=201 if known is None else 200)

    def _admit(self, service: str, public: PublicKey, by: Mapping[str, str], proof: str) -> None:
        now, index = int(self.clock()), len(self.ledger.entries)
        evidence = evidence_digest(canonical_json({"proof": proof}))
        admission = Admission(index, now, now + self._key_lifetime, by, evidence)
        self.ledger.append(admission.entry(self.domain, service, public))
        self._keys[public.thumbprint] = _Key(service, public, admission, admission.expires_at)

    def _right(self, call: Call, body: dict[str, Any], service: str, proof: Proof) -> dict[str, str]:
        """The kid or join token that admits the key, as entries name it."""
        if "authorization" in call.headers:
            voucher = self._caller(call)
            if split_kid(voucher)[0] != proof.issuer or self._state(self._found(voucher)) != ACTIVE:
                raise CallerNotAllowed("only a current key of the same service can vouch")
            return {"kid": voucher}
        if "join" not in body:
            raise MissingToken("neither a voucher nor a join token")
        join = claim(body, "join", dict)
        joining = self._joining.get(claim(join, "id", str))
        if joining is None or joining.service != service or not joining.uses or joining.expires_at <= self.clock():
            raise _JoinRefused("join_refused", "no such join token, or no longer")
        if not join_mac_matches(joining.token.mac_key, proof.jws, claim(join, "mac", str)):
            raise _JoinRefused("join_refused", "the mac is not over this proof")
        joining.uses -= 1
        return {"join_token": joining.token.id}

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

    def _issue_registry_keys(self) -> None:
        self.version += 1
        self._append(REGISTRY_KEYS_ISSUED, None)

    def _append(
        self, kind: str, service: str | None, kid: str | None = None, data: Mapping[str, Any] | None = None
    ) -> int:
        seq = len(self.ledger.entries) + 1
        return self.ledger.append(Entry(seq, int(self.clock()), kind, service, kid, data=data or {}))

    def _consistency(self, old: int, new: int) -> list[str]:
        if not 0 < old <= new <= len(self.ledger.entries):
            raise _NotFound("not_found", "no such trees")
        return encode_proof(self.ledger.consistency(old, new))

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

    def _signed_key(self, key: _Key) -> named_keys.SignedKey:
        proof = self.ledger.inclusion(key.admission.index)
        state = self._state(key)
        return named_keys.SignedKey(self._kid(key), key.public, state, key.active_until, key.admission, proof)

    def _frame(self, subject: str, lifetime: int = documents.DOCUMENT_LIFETIME) -> tuple[str, str, int, int]:
        now = int(self.clock())
        return registry_id(self.domain), subject, now, now + lifetime

    def _place(self, service: str) -> tuple[int, int, str]:
        """``seq``, ``head`` and ``checkpoint``: the entry that last changed the service, how many there are, and the
        ledger's signed head."""
        newest = max((entry.seq for entry in self.ledger.entries if entry.service == service), default=0)
        return newest, len(self.ledger.entries), self.ledger.checkpoint()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


def _number(call: Call, name: str) -> int:
    return int(parse_qs(urlsplit(call.path).query).get(name, ["0"])[0])


def _jwt(document: str, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Answer:
    return Answer(status, document.encode("ascii"), {"content-type": "application/jwt", **(headers or {})})
