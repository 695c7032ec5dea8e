"""A registry in memory: keys, policies and settings, and the documents that it signs; and a clock that tests set."""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.errors import FetchError, PeersealError, RevokedKey, UnknownKey
from peerseal.identity.identity import Identity
from peerseal.protocol.documents.changes import CHANGES_LIFETIME, Changes
from peerseal.protocol.documents.current import CurrentServices, block_of
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederatedDomain, Federation, FederationDocument, FederationEntry
from peerseal.protocol.documents.frame import DOCUMENT_LIFETIME, Document, sign_document
from peerseal.protocol.documents.key_set import (
    ACTIVE,
    PARTS,
    RETIRED,
    REVOKED,
    KeySetDocument,
    KeySetPart,
    ListedKey,
    PartName,
    keys_digest,
    part_of,
)
from peerseal.protocol.documents.key_set import RevokedKey as ListedRevokedKey
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_LIFETIME, RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger import entries
from peerseal.protocol.ledger.entries import Admission, Entry, evidence_digest
from peerseal.protocol.ledger.quorum import Quorum
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
from peerseal.protocol.policies import ANYONE, CallPolicy, Derivation, DomainSettings, UserIssuer
from peerseal.protocol.problem_document import MEDIA_TYPE, problem
from peerseal.runtime.forks import in_each_child
from peerseal.testing.calls import Call, Endpoints, NotFound
from peerseal.testing.ledger import MemoryLedger
from peerseal.transport.fetch import Answer, Fetcher
from peerseal.trust.beliefs import TrustedKey
from peerseal.trust.store import TrustStore

P = ParamSpec("P")

LISTED_AFTER_RETIREMENT = 960
"""Seconds for which a retired key stays in the JWK Set: the longest life of a transaction token, and leeway."""


@dataclass(slots=True)
class RegisteredKey:
    """A key, and when it ends or was revoked."""

    service: str
    public: PublicKey
    admission: Admission
    active_until: int
    revoked_at: int | None = None
    revoked_seq: int = 0


@dataclass(slots=True)
class IssuedToken:
    """A join token, and how often it can still be used."""

    service: str
    token: JoinToken
    uses: int
    expires_at: float


def _changes(
    method: Callable[Concatenate["MemoryRegistry", P], None],
) -> Callable[Concatenate["MemoryRegistry", P], None]:
    """A method that changes the registry: no call is answered in the middle of the change."""

    @wraps(method)
    def change(registry: "MemoryRegistry", /, *args: P.args, **options: P.kwargs) -> None:
        with registry._lock:
            method(registry, *args, **options)

    return change


class MemoryRegistry(Fetcher):
    """A registry of the trust domain ``domain``. It is the `Fetcher` of its identities and trust stores, and a
    `KeySource`.

    ``down`` makes every call fail. With ``lasting`` its documents are, as the real registry's, as of the last
    change of their service, with the time of that change; else they are as of now. A key set with more than
    ``keys_in_set`` keys names parts, as of the last change of each. ``answers`` maps a path (without
    its query) to the Answer that replaces the real one. ``elsewhere`` maps a foreign registry's URL to the Fetcher that
    reaches it (`federate` adds to it). ``calls`` counts calls by method and path, such as ``"GET
    /v1/changes"``; ``log`` holds all of them. Safe to use from threads.
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
        self.down = self.lasting = False
        self.keys_in_set = 500
        self.answers: dict[str, Answer] = {}
        self.calls: Counter[str] = Counter()
        self.log: list[Call] = []
        self.root, self.signing_key = KeyPair.generate("ES256"), KeyPair.generate("ES256")
        self.past_signing_keys: tuple[PublicKey, ...] = ()
        self.past_ledger_keys: tuple[dict[str, str], ...] = ()
        self.witnesses: Quorum | None = None
        self.version = 1
        self.ledger = MemoryLedger(domain)
        self._key_lifetime = key_lifetime
        self.keys: dict[str, RegisteredKey] = {}  # by thumbprint
        self.joining: dict[str, IssuedToken] = {}
        self._policies: dict[str, CallPolicy | None] = {}
        self._settings = DomainSettings()
        self._federation = Federation()
        self.elsewhere: dict[str, Fetcher] = {}
        self._append(entries.REGISTRY_CREATED, None)
        self.endpoints = Endpoints(self)
        self._opened = ExitStack()
        self._renew_lock()
        in_each_child(self._renew_lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the identities and trust stores of this registry."""
        self._opened.close()

    # ---- for tests

    @property
    def pin(self) -> str:
        """The root key's thumbprint."""
        return self.root.public.thumbprint

    def join_token(self, service: str, *, uses: int = 1, ttl: float = 600.0) -> str:
        """A join token for that service, for ``uses`` registrations within ``ttl`` seconds."""
        token = JoinToken.generate(self.pin)
        self.joining[token.id] = IssuedToken(service, token, uses, self.clock() + ttl)
        return token.encode()

    def identity(self, service: str, **options: Any) -> Identity:
        """A started identity of that service. ``options`` are those of Identity; keys are ES256 by default, since they
        are generated quickly."""
        wired: dict[str, Any] = {"fetcher": self, "clock": self.clock, "alg": "ES256"}
        wired |= {"join_token": self.join_token(service), **options}
        identity = Identity(service, registry="http://registry.test", **wired)
        self._opened.callback(identity.stop)
        return identity.start()

    def trust_store(self, **options: Any) -> TrustStore:
        """A trust store of this registry. ``options`` are those of TrustStore."""
        wired: dict[str, Any] = {"fetcher": self, "clock": self.clock, "pin": self.pin, **options}
        store = TrustStore("http://registry.test", **wired)
        self._opened.callback(store.stop)
        return store

    @_changes
    def roll_signing_key(self, *, keep_old: bool = False) -> None:
        """Sign with a new key from now on. The next version of the root's document names only that key, or with
        ``keep_old`` the earlier keys as well."""
        self.past_signing_keys = (self.signing_key.public, *self.past_signing_keys) if keep_old else ()
        self.signing_key = KeyPair.generate("ES256")
        self._issue_registry_keys()

    @_changes
    def roll_ledger_key(self, *, keep_old: bool = True) -> None:
        """Sign checkpoints with a new key from now on. The next version of the root's document names that key, and with
        ``keep_old`` the earlier keys as well."""
        self.past_ledger_keys = (self.ledger.jwk, *self.past_ledger_keys) if keep_old else ()
        self.ledger.key = Ed25519PrivateKey.generate()
        self._issue_registry_keys()

    @_changes
    def drop_past_keys(self) -> None:
        """Issue the next version of the root's document with only the keys in use."""
        self.past_signing_keys, self.past_ledger_keys = (), ()
        self._issue_registry_keys()

    @_changes
    def name_witnesses(self, quorum: Quorum | None) -> None:
        """Issue the next version of the root's document with these witnesses; their cosignatures are up to the
        test: ``answers["/ledger/checkpoint.cosigned"]``."""
        self.witnesses = quorum
        self._issue_registry_keys()

    @_changes
    def retire(self, kid: str) -> None:
        """Retire a key as of now."""
        key = self.found(kid)
        if self.state(key) == ACTIVE:
            key.active_until = int(self.clock())
            self._append(entries.KEY_RETIRED, key.service, kid)

    @_changes
    def revoke(self, kid: str) -> None:
        """Revoke a key and all keys that it vouched for."""
        key = self.found(kid)
        if key.revoked_at is None:
            key.revoked_at, key.revoked_seq = int(self.clock()), self._append(entries.KEY_REVOKED, key.service, kid)
        for admitted in [self._kid(other) for other in self.keys.values() if other.admission.by.get("kid") == kid]:
            self.revoke(admitted)

    @_changes
    def set_policy(self, service: str, allow: Mapping[str, Iterable[str]] | None, *, restricted: bool = False) -> None:
        """Set the callers of a service, by short name, id or ``"*"``, each with its scopes; None removes the policy."""
        policy = None
        if allow is not None:
            names = {who: who if who == ANYONE else qualify(who, self.domain) for who in allow}
            policy = CallPolicy({names[who]: frozenset(allow[who]) for who in allow}, restricted)
        said = policy and ({"restricted": True} if restricted else policy.to_json())
        self._append(entries.POLICY_SET, service, data={"policy": said})
        self._policies[service] = policy

    @_changes
    def set_domain(
        self,
        *,
        minters: Iterable[str] = (),
        issuers: Iterable[UserIssuer] = (),
        exchange: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
        derived_scopes: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Replace the domain's settings. Minters and clients of the exchange are short names or ids, derived scopes are
        ``{"minter", "from", "to"}``. Raises MalformedToken or InvalidName."""
        granted = {
            qualify(client, self.domain): {audience: frozenset(scopes) for audience, scopes in to.items()}
            for client, to in (exchange or {}).items()
        }
        names = frozenset(qualify(minter, self.domain) for minter in minters)
        derived = tuple(
            Derivation.from_json({**one, "minter": qualify(one["minter"], self.domain)}) for one in derived_scopes
        )
        settings = DomainSettings(names, tuple(issuers), granted, derived)
        self._settings = DomainSettings.from_json(settings.to_json())
        self._append(entries.DOMAIN_SET, None, data={"settings": self._settings.to_json()})

    def federate(
        self,
        other: "MemoryRegistry",
        *,
        services: Iterable[str] | None = None,
        scopes: Iterable[str] | None = None,
        transactions: bool = False,
    ) -> None:
        """Believe the services of another registry in memory from now on, within these limits; None stands for all. A
        federation with the same root is replaced. Raises MalformedToken or InvalidName."""
        named, most = (None if names is None else frozenset(names) for names in (services, scopes))
        entry = FederatedDomain(other.domain, (other.url,), other.pin, named, most, transactions)
        self.elsewhere[other.url] = other
        self.set_federation(Federation((*(one for one in self._federation.domains if one.root != other.pin), entry)))

    def end_federation(self, domain: str) -> None:
        """Take the federation with that trust domain away."""
        self.set_federation(Federation(tuple(one for one in self._federation.domains if one.domain != domain)))

    @_changes
    def set_federation(self, federation: Federation) -> None:
        """Replace the whole federation. Raises MalformedToken or InvalidName."""
        self._federation = Federation.from_json(federation.to_json(), self.domain)
        self._append(entries.FEDERATION_SET, None, data={"federation": self._federation.to_json()})

    # ---- KeySource and Fetcher

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        return self._policies.get(split_service_id(service_id)[1])

    def settings(self) -> DomainSettings:
        """See KeySource."""
        return self._settings

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        try:
            key = self.found(kid)
        except NotFound as error:
            raise UnknownKey("that key is not registered") from error
        if key.revoked_at is not None:
            raise RevokedKey("the key was revoked")
        admission, owner = key.admission, service_id(self.domain, key.service)
        return TrustedKey(kid, owner, key.public, admission.active_from, key.active_until)

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self.key(kid)

    @property
    def url(self) -> str:
        """The URL by which federation documents name this registry."""
        return f"https://registry.{self.domain}/{self.pin}"

    def for_registry(self, urls: Sequence[str]) -> Fetcher:
        """See Fetcher. The registry in memory that ``elsewhere`` has for the first URL."""
        return self.elsewhere.get(urls[0]) or super().for_registry(urls)

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
            answer = self.answers.get(plain) or self._answer(call, plain)
            return replace(answer, headers={"date": formatdate(self.clock(), usegmt=True), **answer.headers})

    def _answer(self, call: Call, path: str) -> Answer:
        try:
            return self.endpoints.answer(call, path)
        except PeersealError as error:
            request_id = secrets.token_hex(16)
            refusal = problem(error.status, error.code, detail=str(error), request_id=request_id)
            return Answer(refusal.status, refusal.body, {"content-type": MEDIA_TYPE, "x-request-id": request_id})

    # ---- documents

    def sign(self, document: Document) -> str:
        """Any document, signed by this registry."""
        return sign_document(document, self.signing_key)

    def jwk_set(self, service: str) -> KeySetDocument:
        """The keys of a service, as of now."""
        held = [key for key in self.keys.values() if key.service == service]
        if not held:
            raise NotFound("service_not_found", service)
        listed, frame = self._listed(held, self.clock()), self._frame_about(service)
        if len(listed) <= self.keys_in_set:
            return KeySetDocument(**frame, **self._lists(listed, frame["head"]))
        return KeySetDocument(**frame, keys=(), parts=tuple(self._part_name(service, n) for n in range(PARTS)))

    def key_set_part(self, service: str, number: int) -> KeySetPart:
        """A part of the key set of a service, as of the last change of one of its keys."""
        name, parts = self._part_name(service, number), self.jwk_set(service).parts
        if not parts or name is None:
            raise NotFound("part_not_found", f"{service} {number}")
        place: dict[str, Any] = {"seq": name.seq, "head": name.seq, "checkpoint": self.ledger.checkpoint(name.seq)}
        lists = self._lists(self._listed_in_part(service, number, name.seq), name.seq)
        frame = self._frame(service_id(self.domain, service))
        return KeySetPart(**frame, **place, **lists, part=number, digest=name.digest)

    def statement(self, kid: str) -> KeyStatement:
        """The statement about one key, as of now."""
        key = self.found(kid)
        frame = self._frame_about(key.service)
        return KeyStatement(
            **frame,
            kid=kid,
            public=key.public,
            state=self.state(key),
            active_until=key.active_until,
            revoked_at=key.revoked_at,
            admission=key.admission,
            proof=self.ledger.inclusion(key.admission.index, frame["head"]),
        )

    def policy_document(self, service: str) -> PolicyDocument:
        """The policy of a service, as of now."""
        return PolicyDocument(**self._frame_about(service), policy=self._policies.get(service))

    def domain_document(self) -> DomainDocument:
        """The domain's settings, as of now."""
        frame = self._frame_about(REGISTRY) | {"subject": self.domain}
        return DomainDocument(**frame, settings=self._settings)

    def federation_document(self) -> FederationDocument:
        """The foreign trust domains that are believed, as of now."""
        frame = self._frame_about(REGISTRY) | {"subject": self.domain}
        made = [entry for entry in self.ledger.entries if entry.type == entries.FEDERATION_SET]
        proofs = [self.ledger.inclusion(entry.index, frame["head"]) for entry in made[-1:]]
        entry = FederationEntry.of(made[-1], proofs[0]) if made else None
        return FederationDocument(**frame, federation=self._federation, entry=entry)

    def changes(self, since: int) -> Changes:
        """The services that changed after entry ``since``."""
        changed = {
            service_id(self.domain, entry.service or REGISTRY): entry.seq for entry in self.ledger.entries[since:]
        }
        names = sorted(changed)
        frame, head = self._frame(self.domain, CHANGES_LIFETIME), len(self.ledger.entries)
        proof = self.ledger.consistency(since, head) if 0 < since <= head else None
        return Changes(
            **frame,
            since=since,
            seq=head,
            checkpoint=self.ledger.checkpoint(),
            services=tuple(names),
            seqs=tuple(changed[name] for name in names),
            reset=since > head,
            revoked=tuple(self._kid(key) for key in self.keys.values() if key.revoked_seq > since),
            proof=proof,
        )

    def current_services(self, block: int) -> CurrentServices:
        """The services that the entries of that block changed last."""
        last = {entry.service or REGISTRY: entry.seq for entry in self.ledger.entries}
        return CurrentServices(
            **self._frame(self.domain),
            block=block,
            seq=len(self.ledger.entries),
            checkpoint=self.ledger.checkpoint(),
            services={service_id(self.domain, name): seq for name, seq in last.items() if block_of(seq) == block},
        )

    def registry_keys(self) -> RegistryKeys:
        """The document of the root, as of now."""
        frame = self._frame(self.domain, REGISTRY_KEYS_LIFETIME)
        return RegistryKeys(
            **frame,
            version=self.version,
            root=self.root.public,
            signing_keys=(self.signing_key.public, *self.past_signing_keys),
            ledger_key=self.ledger.jwk,
            past_ledger_keys=self.past_ledger_keys,
            witnesses=self.witnesses,
        )

    # ---- small parts

    def admit(self, service: str, public: PublicKey, by: Mapping[str, str], proof: str) -> None:
        """Register a key; ``by`` names what admits it, as entries do."""
        now, index = int(self.clock()), len(self.ledger.entries)
        evidence = evidence_digest(canonical_json({"proof": proof}))
        admission = Admission(index, now, now + self._key_lifetime, by, evidence)
        self.ledger.append(admission.entry(self.domain, service, public))
        self.keys[public.thumbprint] = RegisteredKey(service, public, admission, admission.expires_at)

    def _issue_registry_keys(self) -> None:
        self.version += 1
        self._append(entries.REGISTRY_KEYS_ISSUED, None)

    def _append(
        self, kind: str, service: str | None, kid: str | None = None, data: Mapping[str, Any] | None = None
    ) -> int:
        seq = len(self.ledger.entries) + 1
        return self.ledger.append(Entry(seq, int(self.clock()), kind, service, kid, data=data or {}))

    def found(self, kid: str) -> RegisteredKey:
        """The registered key. Raises NotFound."""
        owner, thumbprint = split_kid(kid)
        key = self.keys.get(thumbprint)
        if key is None or service_id(self.domain, key.service) != owner:
            raise NotFound("key_not_found", kid)
        return key

    def _kid(self, key: RegisteredKey) -> str:
        return make_kid(service_id(self.domain, key.service), key.public.thumbprint)

    def state(self, key: RegisteredKey) -> str:
        """Active, retired or revoked."""
        if key.revoked_at is not None:
            return REVOKED
        return ACTIVE if key.active_until > self.clock() else RETIRED

    def _listed(self, keys: Iterable[RegisteredKey], at: float) -> list[RegisteredKey]:
        """Those of the keys that a set lists at that time."""
        retired_after = at - LISTED_AFTER_RETIREMENT
        return [
            key
            for key in keys
            if (key.admission.expires_at > at if key.revoked_at is not None else key.active_until > retired_after)
        ]

    def _lists(self, keys: Sequence[RegisteredKey], head: int) -> dict[str, Any]:
        """The keys as sets list them, with proofs in the tree of that size."""
        good = tuple(self._signed_key(key, head) for key in keys if key.revoked_at is None)
        gone = [key for key in keys if key.revoked_at is not None]
        revoked = (ListedRevokedKey(self._kid(key), key.revoked_at or 0, key.revoked_seq - 1) for key in gone)
        return {"keys": good, "revoked": tuple(revoked)}

    def _part_name(self, service: str, number: int) -> PartName | None:
        owner = service_id(self.domain, service)
        kids = [entry.kid for entry in self.ledger.entries]
        about = [
            seq
            for seq, kid in enumerate(kids, 1)
            if kid is not None and split_kid(kid)[0] == owner and part_of(split_kid(kid)[1]) == number
        ]
        if not about:
            return None
        lists = self._lists(self._listed_in_part(service, number, about[-1]), about[-1])
        return PartName(about[-1], keys_digest({key.kid: key.active_until for key in lists["keys"]}, lists["revoked"]))

    def _listed_in_part(self, service: str, number: int, seq: int) -> list[RegisteredKey]:
        held = [key for key in self.keys.values() if key.service == service]
        held = [key for key in held if part_of(key.public.thumbprint) == number]
        return self._listed(held, self.ledger.entries[seq - 1].time)

    def _signed_key(self, key: RegisteredKey, head: int) -> ListedKey:
        proof = self.ledger.inclusion(key.admission.index, head)
        state = self.state(key)
        return ListedKey(self._kid(key), key.public, state, key.active_until, key.admission, proof)

    def _frame(self, subject: str, lifetime: int = DOCUMENT_LIFETIME) -> dict[str, Any]:
        now = int(self.clock())
        issuer = registry_id(self.domain)
        return {"issuer": issuer, "subject": subject, "issued_at": now, "expires_at": now + lifetime}

    def _frame_about(self, service: str) -> dict[str, Any]:
        """The frame of a document about a service, with its place in the ledger: the last entry about the service, the
        number of entries that the document covers, and the signed checkpoint of that size."""
        about = [entry for entry in self.ledger.entries if (entry.service or REGISTRY) == service]
        frame, seq, head = self._frame(service_id(self.domain, service)), about[-1].seq if about else 0, None
        if self.lasting and about:
            changed_at, head = about[-1].time, seq
            frame |= {"issued_at": changed_at, "expires_at": changed_at + DOCUMENT_LIFETIME}
        place = {"seq": seq, "head": head or len(self.ledger.entries), "checkpoint": self.ledger.checkpoint(head)}
        return frame | place

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


class Clock:
    """A clock that stands still until it is set, for every parameter ``clock``.

    ``now`` is in seconds since the epoch; it begins with the time of day.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        """The time of the clock."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move it forward."""
        self.now += seconds
