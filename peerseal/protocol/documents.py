"""What the registry signs: registry keys, signed JWK Sets, key statements and changes (SPEC sections 3 and 5).

Every document is a compact JWS with its own ``typ``. `sign_document` makes one; `read_document` checks syntax, type,
signature, issuer and times, and leaves to its caller (`peerseal.peers.trusted`) which subject was asked for and
whether something newer was seen before. All times are seconds since the epoch.

Unlike a token, a document may hold members that this version does not know: the registry that signs it may be newer
than its clients, and what they do not know they do not need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar

from peerseal.errors import DocumentRefused, InvalidName, KeyRefused, MalformedToken
from peerseal.protocol import jose
from peerseal.protocol.claims import at_least, claim, time_claim
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid, registry_id, split_kid, split_service_id
from peerseal.protocol.tokens import LEEWAY

MAX_DOCUMENT = 4 * 1024 * 1024
"""The longest signed document, in characters: a JWK Set of some 5,000 keys."""

DOCUMENT_LIFETIME = 24 * 3600
CHANGES_LIFETIME = 60
REGISTRY_KEYS_LIFETIME = 365 * 24 * 3600

ACTIVE: Final = "active"
RETIRED: Final = "retired"
REVOKED: Final = "revoked"

_FRAME = frozenset(("iss", "sub", "iat", "exp"))


@dataclass(frozen=True, slots=True)
class SignedKey:
    """A key in a signed JWK Set: good for tokens whose ``iat`` lies between ``active_from`` and ``active_until``.

    ``state`` is active, or retired for a while after, for requests still under way. ``index`` is the index of the
    ledger entry that admitted it.
    """

    kid: str
    public: PublicKey = field(repr=False)
    state: str
    active_from: int
    active_until: int
    index: int

    def to_json(self) -> dict[str, Any]:
        """A JWK (RFC 7517) with members of ours, which its section 4 allows."""
        members = ("kid", "state", "active_from", "active_until", "index")
        ours = {name: getattr(self, name) for name in members}
        return {**self.public.jwk, **ours, "alg": self.public.alg, "use": "sig"}

    @classmethod
    def from_json(cls, jwk: Any, owner: str) -> Self:
        """Checked: the kid is computed from the key and names ``owner``. Raises MalformedToken or KeyRefused."""
        if type(jwk) is not dict:
            raise MalformedToken("a key is not an object")
        public = PublicKey.from_jwk(jwk)
        kid, state = claim(jwk, "kid", str), claim(jwk, "state", str)
        if kid != make_kid(owner, public.thumbprint) or state not in (ACTIVE, RETIRED):
            raise MalformedToken("a key's kid or state is wrong")
        times = time_claim(jwk, "active_from"), time_claim(jwk, "active_until")
        return cls(kid, public, state, *times, claim(jwk, "index", int))


@dataclass(frozen=True, slots=True)
class RevokedKey:
    """A key that is good for nothing any more, listed until its natural end, so that a peer can say why it refuses."""

    kid: str
    revoked_at: int
    index: int

    def to_json(self) -> dict[str, Any]:
        """``{"kid", "revoked_at", "index"}``; the index is that of the ledger entry that revoked it."""
        return {"kid": self.kid, "revoked_at": self.revoked_at, "index": self.index}

    @classmethod
    def from_json(cls, value: Any, owner: str) -> Self:
        """Raises MalformedToken."""
        if type(value) is not dict:
            raise MalformedToken("a revoked key is not an object")
        kid = claim(value, "kid", str)
        if split_kid(kid)[0] != owner:
            raise MalformedToken("a revoked key of another service")
        return cls(kid, time_claim(value, "revoked_at"), claim(value, "index", int))


class Document(Protocol):
    """What the four kinds have in common. ``subject`` is whom or what the document speaks of."""

    TYP: ClassVar[str]

    @property
    def issuer(self) -> str:
        """``iss``: the registry's service id."""

    @property
    def subject(self) -> str:
        """``sub``: a service id or the trust domain."""

    @property
    def issued_at(self) -> int:
        """``iat``."""

    @property
    def expires_at(self) -> int:
        """``exp``."""

    def claims(self) -> dict[str, Any]:
        """The payload."""

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """From a payload whose frame is checked. Raises MalformedToken, KeyRefused or InvalidName."""


D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class JwkSetDocument:
    """The registry's signed answer about a service's current keys.

    ``seq`` is the last ledger entry that changed the service (the first entry has seq 1), ``head`` the number of
    entries when this was signed: what lies between changed other services only.
    """

    TYP: ClassVar[str] = "jwk-set+jwt"
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    keys: tuple[SignedKey, ...]
    revoked: tuple[RevokedKey, ...] = ()

    def claims(self) -> dict[str, Any]:
        """The payload: a JWK Set (RFC 7517 section 5) in the frame of OpenID Federation's signed JWK Set."""
        keys = [key.to_json() for key in self.keys]
        revoked = [key.to_json() for key in self.revoked]
        return {**_frame_of(self), "seq": self.seq, "head": self.head, "keys": keys, "revoked": revoked}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken, KeyRefused or InvalidName."""
        at_least(claims, _FRAME | {"seq", "head", "keys", "revoked"})
        owner = claim(claims, "sub", str)
        keys = tuple(SignedKey.from_json(key, owner) for key in claim(claims, "keys", list))
        revoked = tuple(RevokedKey.from_json(key, owner) for key in claim(claims, "revoked", list))
        return cls(*_frame_from(claims), claim(claims, "seq", int), claim(claims, "head", int), keys, revoked)


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """The registry's signed answer about one key, past or present. ``subject`` is its service."""

    TYP: ClassVar[str] = "peerseal-key+jwt"
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    kid: str
    public: PublicKey
    state: str
    active_from: int
    active_until: int
    revoked_at: int | None
    index: int

    def claims(self) -> dict[str, Any]:
        """The payload."""
        members = ("seq", "head", "kid", "state", "active_from", "active_until", "revoked_at", "index")
        ours = {name: getattr(self, name) for name in members}
        return {**_frame_of(self), **ours, "jwk": dict(self.public.jwk), "alg": self.public.alg}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken, KeyRefused or InvalidName."""
        members = {"seq", "head", "kid", "state", "active_from", "active_until", "revoked_at", "index", "jwk", "alg"}
        at_least(claims, _FRAME | members)
        public = PublicKey.from_jwk(claim(claims, "jwk", dict), claim(claims, "alg", str))
        kid, state, owner = (claim(claims, name, str) for name in ("kid", "state", "sub"))
        if kid != make_kid(owner, public.thumbprint) or state not in (ACTIVE, RETIRED, REVOKED):
            raise MalformedToken("the key's kid or state is wrong")
        revoked_at = time_claim(claims, "revoked_at") if state == REVOKED else None
        if claims["revoked_at"] != revoked_at:
            raise MalformedToken("a time of revocation for a key that is not revoked")
        times = time_claim(claims, "active_from"), time_claim(claims, "active_until")
        numbers = claim(claims, "seq", int), claim(claims, "head", int)
        return cls(*_frame_from(claims), *numbers, kid, public, state, *times, revoked_at, claim(claims, "index", int))


@dataclass(frozen=True, slots=True)
class Changes:
    """Which services (ids) changed after entry ``since``, up to entry ``seq``, the newest. ``subject`` is the domain.

    ``reset`` says: too many to list, or a ``since`` from another history; fetch all anew.
    """

    TYP: ClassVar[str] = "peerseal-changes+jwt"
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    since: int
    seq: int
    services: tuple[str, ...]
    reset: bool = False

    def claims(self) -> dict[str, Any]:
        """The payload."""
        ours = {"since": self.since, "seq": self.seq, "services": list(self.services), "reset": self.reset}
        return {**_frame_of(self), **ours}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken or InvalidName."""
        at_least(claims, _FRAME | {"since", "seq", "services", "reset"})
        services = claim(claims, "services", list)
        for name in services:
            if type(name) is not str:
                raise MalformedToken("a service that is not a string")
            split_service_id(name)
        numbers = claim(claims, "since", int), claim(claims, "seq", int)
        return cls(*_frame_from(claims), *numbers, tuple(services), claim(claims, "reset", bool))


@dataclass(frozen=True, slots=True)
class RegistryKeys:
    """The root-signed, versioned document: which keys sign for the domain's registry. ``subject`` is the domain.

    ``root`` is the key that signs it, and that clients pin by thumbprint; ``ledger_key`` an Ed25519 JWK (RFC 8037).
    """

    TYP: ClassVar[str] = "peerseal-registry+jwt"
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    version: int
    root: PublicKey
    signing_keys: tuple[PublicKey, ...]
    ledger_key: Mapping[str, str]
    urls: tuple[str, ...] = ()

    def claims(self) -> dict[str, Any]:
        """The payload."""
        signing_keys = [
            {**key.jwk, "alg": key.alg, "kid": make_kid(self.issuer, key.thumbprint)} for key in self.signing_keys
        ]
        ours = {"version": self.version, "root": dict(self.root.jwk), "signing_keys": signing_keys}
        return {**_frame_of(self), **ours, "ledger_key": dict(self.ledger_key), "urls": list(self.urls)}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken or KeyRefused."""
        at_least(claims, _FRAME | {"version", "root", "signing_keys", "ledger_key", "urls"})
        jwks, urls, ledger_key = (claims[name] for name in ("signing_keys", "urls", "ledger_key"))
        if not (_all_of(jwks, dict) and _all_of(urls, str) and type(ledger_key) is dict):
            raise MalformedToken("signing keys, ledger key or URLs are of the wrong type")
        root = PublicKey.from_jwk(claim(claims, "root", dict))
        signing_keys = tuple(PublicKey.from_jwk(jwk) for jwk in jwks)
        return cls(*_frame_from(claims), claim(claims, "version", int), root, signing_keys, ledger_key, tuple(urls))


def sign_document(document: Document, key: KeyPair) -> str:
    """The document as a compact JWS, signed by the registry's ``key``."""
    kid = make_kid(document.issuer, key.public.thumbprint)
    header = jose.encode_header(jose.Header(key.public.alg, kid, document.TYP))
    return jose.compact(header, canonical_json(document.claims()), key.sign)


def read_document(kind: type[D], jws: str, signers: Mapping[str, PublicKey], *, now: float, domain: str) -> D:
    """A document of that kind, signed by one of ``signers`` (by kid) for the registry of ``domain``, and in force.

    Raises DocumentRefused. It does not check which subject the document speaks of.
    """
    token = _parse(jws)
    if token.header.typ != kind.TYP:
        raise DocumentRefused("document_wrong_type", f"not a {kind.TYP}")
    signer = signers.get(token.header.kid)
    if signer is None or signer.alg != token.header.alg:
        raise DocumentRefused("document_unknown_signer", "signed by a key that the root does not name")
    if not signer.verify(token.signing_input, token.signature):
        raise DocumentRefused("document_bad_signature", f"a {kind.TYP}")
    document = _decode(kind, token.payload)
    if document.issuer != registry_id(domain):
        raise DocumentRefused("document_wrong_issuer", "the document of another registry")
    _check_in_force(document, now)
    return document


def read_registry_keys(jws: str, *, pin: str | None, now: float) -> RegistryKeys:
    """The root-signed document, believed because its root key has the thumbprint ``pin``; with no pin, whatever root
    it brings along is believed (first use, on loopback only). Raises DocumentRefused."""
    token = _parse(jws)
    if token.header.typ != RegistryKeys.TYP:
        raise DocumentRefused("document_wrong_type", f"not a {RegistryKeys.TYP}")
    claimed = _decode(RegistryKeys, token.payload)
    if pin is not None and claimed.root.thumbprint != pin:
        raise DocumentRefused("document_wrong_root", "the root key is not the pinned one")
    try:
        domain = split_service_id(claimed.issuer)[0]
        signers = {make_kid(claimed.issuer, claimed.root.thumbprint): claimed.root}
    except InvalidName as error:
        raise DocumentRefused("document_wrong_issuer", str(error)) from error
    document = read_document(RegistryKeys, jws, signers, now=now, domain=domain)
    if document.subject != domain:
        raise DocumentRefused("document_wrong_subject", "it speaks of another domain")
    return document


def _parse(jws: str) -> jose.UnverifiedJws:
    try:
        return jose.parse(jws, limit=MAX_DOCUMENT)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", str(error)) from error


def _decode(kind: type[D], payload: bytes) -> D:
    try:
        return kind.from_claims(strict_json_object(payload))
    except (MalformedToken, KeyRefused, InvalidName) as error:
        raise DocumentRefused("document_malformed", str(error)) from error


def _check_in_force(document: Document, now: float) -> None:
    if document.issued_at > now + LEEWAY:
        raise DocumentRefused("document_from_future", f"issued {document.issued_at - now:.0f} s in the future")
    if now >= document.expires_at + LEEWAY:
        raise DocumentRefused("document_expired", f"expired {now - document.expires_at:.0f} s ago")


def _frame_of(document: Document) -> dict[str, Any]:
    frame = {"iss": document.issuer, "sub": document.subject}
    return {**frame, "iat": document.issued_at, "exp": document.expires_at}


def _frame_from(claims: Mapping[str, Any]) -> tuple[str, str, int, int]:
    names = claim(claims, "iss", str), claim(claims, "sub", str)
    return *names, time_claim(claims, "iat"), time_claim(claims, "exp")


def _all_of(values: Any, kind: type) -> bool:
    return type(values) is list and all(type(value) is kind for value in values)
