"""What the registry signs: registry keys, signed JWK Sets, key statements, policies, the domain's settings and changes
(docs/protocol.md).

Every document is a compact JWS with its own ``typ`` and its own greatest size. `sign_document` makes one;
`read_document` checks size, header, type and signature, then syntax, issuer and times, and leaves to its caller
(`peerseal.trust.beliefs`) which subject was asked for and whether something newer was seen before. Before the signature
was checked no more is parsed than finding the signer takes. All times are seconds since the epoch.

Unlike a token, a document may hold members that this version does not know: the registry that signs it may be newer
than its clients, and what they do not know they do not need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeVar

from peerseal.errors import DocumentRefused, InvalidName, KeyRefused, MalformedToken
from peerseal.protocol import jose
from peerseal.protocol.documents.named_keys import (
    ACTIVE,
    RETIRED,
    REVOKED,
    RevokedKey,
    SignedKey,
    admission_from,
    admission_json,
)
from peerseal.protocol.encoding import b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.checkpoint import decode_proof, encode_proof, ledger_public_key
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import make_kid, registry_id, split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.protocol.tokens.claims import at_least, claim, number_claim, time_claim
from peerseal.protocol.tokens.request import LEEWAY

MAX_DOCUMENT = 8 * 1024 * 1024
"""Characters of the longest kind of signed document: a JWK Set of some 4,000 keys with their inclusion proofs."""
_MAX_HEADER = 1024
"""Characters of a document's first segment: the longest kid, with its names, takes 650."""
_MAX_SIGNATURE = 2048
"""Characters of a document's last segment: an RSA key of 8192 bits takes 1,366."""

DOCUMENT_LIFETIME = 24 * 3600
CHANGES_LIFETIME = 60
REGISTRY_KEYS_LIFETIME = 365 * 24 * 3600

_FRAME = frozenset(("iss", "sub", "iat", "exp"))
_PLACE = frozenset(("seq", "head", "checkpoint"))


class Document(Protocol):
    """What all kinds have in common. ``subject`` is whom or what the document speaks of; ``MAX_SIZE`` is how many
    characters its compact JWS may have."""

    TYP: ClassVar[str]
    MAX_SIZE: ClassVar[int]

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
    entries when this was signed: what lies between changed other services only. ``checkpoint`` is the signed head of
    the ledger at that size.
    """

    TYP: ClassVar[str] = "jwk-set+jwt"
    MAX_SIZE: ClassVar[int] = MAX_DOCUMENT
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    checkpoint: str = field(repr=False)
    keys: tuple[SignedKey, ...]
    revoked: tuple[RevokedKey, ...] = ()

    def claims(self) -> dict[str, Any]:
        """The payload: a JWK Set (RFC 7517 section 5) in the frame of OpenID Federation's signed JWK Set."""
        keys = [key.to_json() for key in self.keys]
        revoked = [key.to_json() for key in self.revoked]
        return {**_frame_of(self), **_place_of(self), "keys": keys, "revoked": revoked}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken, KeyRefused or InvalidName."""
        at_least(claims, _FRAME | _PLACE | {"keys", "revoked"})
        owner = claim(claims, "sub", str)
        keys = tuple(SignedKey.from_json(key, owner) for key in claim(claims, "keys", list))
        revoked = tuple(RevokedKey.from_json(key, owner) for key in claim(claims, "revoked", list))
        return cls(*_frame_from(claims), *_place_from(claims), keys, revoked)


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """The registry's signed answer about one key, past or present. ``subject`` is its service; ``admission`` and
    ``proof`` are those of `SignedKey`."""

    TYP: ClassVar[str] = "peerseal-key+jwt"
    MAX_SIZE: ClassVar[int] = 64 * 1024
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    checkpoint: str = field(repr=False)
    kid: str
    public: PublicKey = field(repr=False)
    state: str
    active_until: int
    revoked_at: int | None
    admission: Admission
    proof: Proof = field(repr=False)

    @property
    def active_from(self) -> int:
        """When it was admitted."""
        return self.admission.active_from

    def claims(self) -> dict[str, Any]:
        """The payload."""
        ours = {name: getattr(self, name) for name in ("kid", "state", "active_until", "revoked_at")}
        key = {"jwk": dict(self.public.jwk), "alg": self.public.alg}
        return {**_frame_of(self), **_place_of(self), **ours, **admission_json(self.admission, self.proof), **key}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken, KeyRefused or InvalidName."""
        at_least(claims, _FRAME | _PLACE | {"kid", "state", "active_until", "revoked_at", "jwk", "alg"})
        public = PublicKey.from_jwk(claim(claims, "jwk", dict), claim(claims, "alg", str))
        kid, state, owner = (claim(claims, name, str) for name in ("kid", "state", "sub"))
        if kid != make_kid(owner, public.thumbprint) or state not in (ACTIVE, RETIRED, REVOKED):
            raise MalformedToken("the key's kid or state is wrong")
        revoked_at = time_claim(claims, "revoked_at") if state == REVOKED else None
        if claims["revoked_at"] != revoked_at:
            raise MalformedToken("a time of revocation for a key that is not revoked")
        frame = *_frame_from(claims), *_place_from(claims)
        until = time_claim(claims, "active_until")
        return cls(*frame, kid, public, state, until, revoked_at, *admission_from(claims))


@dataclass(frozen=True, slots=True)
class Changes:
    """Which services (ids) changed after entry ``since``, up to entry ``seq``, the newest. ``subject`` is the domain.

    The registry's own id stands for its keys and the domain's settings. ``reset`` says: too many to list, or a
    ``since`` from another history; fetch all anew. ``checkpoint`` is the signed head of the ledger at size ``seq``,
    ``proof`` that the ledger begins with the one of size ``since``: whoever had that needs no call to be sure.
    """

    TYP: ClassVar[str] = "peerseal-changes+jwt"
    MAX_SIZE: ClassVar[int] = 1024 * 1024
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    since: int
    seq: int
    checkpoint: str = field(repr=False)
    services: tuple[str, ...]
    reset: bool = False
    proof: Proof | None = field(default=None, repr=False)

    def claims(self) -> dict[str, Any]:
        """The payload."""
        ours: dict[str, Any] = {"since": self.since, "seq": self.seq, "checkpoint": self.checkpoint}
        if self.proof is not None:
            ours["proof"] = encode_proof(self.proof)
        return {**_frame_of(self), **ours, "services": list(self.services), "reset": self.reset}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken or InvalidName."""
        at_least(claims, _FRAME | {"since", "seq", "checkpoint", "services", "reset"})
        services = claim(claims, "services", list)
        for name in services:
            if type(name) is not str:
                raise MalformedToken("a service that is not a string")
            split_service_id(name)
        place = number_claim(claims, "since"), number_claim(claims, "seq"), claim(claims, "checkpoint", str)
        proof = decode_proof(claims["proof"]) if "proof" in claims else None
        return cls(*_frame_from(claims), *place, tuple(services), claim(claims, "reset", bool), proof)


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """The registry's signed answer about who may call the service ``subject``. ``policy`` is None where no operator
    laid one down: then what the service's code allows is allowed. ``seq`` is the last entry that changed the service,
    0 where none did."""

    TYP: ClassVar[str] = "peerseal-policy+jwt"
    MAX_SIZE: ClassVar[int] = 256 * 1024
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    checkpoint: str = field(repr=False)
    policy: CallPolicy | None

    def claims(self) -> dict[str, Any]:
        """The payload."""
        policy = None if self.policy is None else self.policy.to_json()
        return {**_frame_of(self), **_place_of(self), "policy": policy}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken or InvalidName."""
        at_least(claims, _FRAME | _PLACE | {"policy"})
        policy = None if claims["policy"] is None else CallPolicy.from_json(claims["policy"])
        return cls(*_frame_from(claims), *_place_from(claims), policy)


@dataclass(frozen=True, slots=True)
class DomainDocument:
    """The registry's signed answer about the trust domain ``subject``: minters and issuers of users' tokens. ``seq`` is
    the last entry that changed these, 0 where none did."""

    TYP: ClassVar[str] = "peerseal-domain+jwt"
    MAX_SIZE: ClassVar[int] = 256 * 1024
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    checkpoint: str = field(repr=False)
    settings: DomainSettings

    def claims(self) -> dict[str, Any]:
        """The payload."""
        return {**_frame_of(self), **_place_of(self), **self.settings.to_json()}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken or InvalidName."""
        at_least(claims, _FRAME | _PLACE | {"minters", "issuers"})
        known = ("minters", "issuers", "exchange", "derived_scopes", "access_tokens")
        settings = DomainSettings.from_json({name: claims[name] for name in known if name in claims})
        return cls(*_frame_from(claims), *_place_from(claims), settings)


@dataclass(frozen=True, slots=True)
class RegistryKeys:
    """The root-signed, versioned document: which keys sign for the domain's registry. ``subject`` is the domain.

    ``root`` is the key that signs it, and that clients pin by thumbprint; ``ledger_key`` is the Ed25519 JWK (RFC 8037)
    that signs checkpoints, and ``past_ledger_keys`` are those that still may, while one follows another.
    """

    TYP: ClassVar[str] = "peerseal-registry+jwt"
    MAX_SIZE: ClassVar[int] = 64 * 1024
    issuer: str
    subject: str
    issued_at: int
    expires_at: int
    version: int
    root: PublicKey
    signing_keys: tuple[PublicKey, ...]
    ledger_key: Mapping[str, str]
    urls: tuple[str, ...] = ()
    past_ledger_keys: tuple[Mapping[str, str], ...] = ()

    @property
    def ledger_keys(self) -> tuple[Mapping[str, str], ...]:
        """All keys that may sign checkpoints."""
        return (self.ledger_key, *self.past_ledger_keys)

    def claims(self) -> dict[str, Any]:
        """The payload."""
        signing_keys = [
            {**key.jwk, "alg": key.alg, "kid": make_kid(self.issuer, key.thumbprint)} for key in self.signing_keys
        ]
        ours = {"version": self.version, "root": dict(self.root.jwk), "signing_keys": signing_keys}
        ledger = {"ledger_key": dict(self.ledger_key), "past_ledger_keys": [dict(key) for key in self.past_ledger_keys]}
        return {**_frame_of(self), **ours, **ledger, "urls": list(self.urls)}

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Raises MalformedToken or KeyRefused."""
        at_least(claims, _FRAME | {"version", "root", "signing_keys", "ledger_key", "urls"})
        jwks, urls, ledger_key = (claims[name] for name in ("signing_keys", "urls", "ledger_key"))
        past = claims.get("past_ledger_keys", [])
        if not (_all_of(jwks, dict) and _all_of(urls, str) and _all_of([ledger_key], dict) and _all_of(past, dict)):
            raise MalformedToken("signing keys, ledger keys or URLs are of the wrong type")
        for key in (ledger_key, *past):
            ledger_public_key(key)
        root = PublicKey.from_jwk(claim(claims, "root", dict))
        signing_keys = tuple(PublicKey.from_jwk(jwk) for jwk in jwks)
        version = number_claim(claims, "version")
        return cls(*_frame_from(claims), version, root, signing_keys, ledger_key, tuple(urls), tuple(past))


def sign_document(document: Document, key: KeyPair) -> str:
    """The document as a compact JWS, signed by the registry's ``key``."""
    kid = make_kid(document.issuer, key.public.thumbprint)
    header = jose.encode_header(jose.Header(key.public.alg, kid, document.TYP))
    return jose.compact(header, canonical_json(document.claims()), key.sign)


def read_document(kind: type[D], jws: str, signers: Mapping[str, PublicKey], *, now: float, domain: str) -> D:
    """A document of that kind, signed by one of ``signers`` (by kid) for the registry of ``domain``, and in force.

    Raises DocumentRefused. It does not check which subject the document speaks of.
    """
    document = _decode(kind, _checked_payload(_Unverified.parse(kind, jws), signers))
    if document.issuer != registry_id(domain):
        raise DocumentRefused("document_wrong_issuer", "the document of another registry")
    _check_in_force(document, now)
    return document


def read_registry_keys(jws: str, *, pin: str | None, now: float) -> RegistryKeys:
    """The root-signed document, believed because its root key has the thumbprint ``pin``; with no pin, whatever root
    it brings along is believed (first use, on loopback only). Raises DocumentRefused."""
    unverified = _Unverified.parse(RegistryKeys, jws)
    root = _root_in(unverified)
    if pin is not None and root.thumbprint != pin:
        raise DocumentRefused("document_wrong_root", f"the root key is {root.thumbprint}, the pinned one is {pin}")
    try:
        issuer, thumbprint = split_kid(unverified.kid)
        domain = split_service_id(issuer)[0]
    except InvalidName as error:
        raise DocumentRefused("document_wrong_issuer", str(error)) from error
    signers = {unverified.kid: root} if thumbprint == root.thumbprint else {}
    document = _decode(RegistryKeys, _checked_payload(unverified, signers))
    if not document.issuer == issuer == registry_id(domain):
        raise DocumentRefused("document_wrong_issuer", "the document of another registry")
    _check_in_force(document, now)
    if document.subject != domain:
        raise DocumentRefused("document_wrong_subject", f"the registry of {domain} speaks of {document.subject}")
    return document


@dataclass(frozen=True, slots=True)
class _Unverified:
    """A document of which only the header was parsed; the other segments are as they came."""

    typ: str
    kid: str
    alg: str
    payload: bytes
    signature: bytes
    signing_input: bytes

    @classmethod
    def parse(cls, kind: type[Document], jws: str) -> Self:
        """Raises DocumentRefused."""
        try:
            header_segment, payload, signature, signing_input = jose.split(jws, limit=kind.MAX_SIZE)
            if len(header_segment) > _MAX_HEADER or len(signature) > _MAX_SIGNATURE:
                raise MalformedToken("the header or the signature is longer than any may be")
            header = jose.parse_header(header_segment)
            decoded = b64url_decode(signature)
        except MalformedToken as error:
            raise DocumentRefused("document_malformed", str(error)) from error
        if header.typ != kind.TYP:
            raise DocumentRefused("document_wrong_type", f"not a {kind.TYP}")
        return cls(header.typ, header.kid, header.alg, payload, decoded, signing_input)


def _checked_payload(unverified: _Unverified, signers: Mapping[str, PublicKey]) -> bytes:
    """The payload, signed by one of these. Raises DocumentRefused."""
    signer = signers.get(unverified.kid)
    if signer is None or signer.alg != unverified.alg:
        raise DocumentRefused("document_unknown_signer", "signed by a key that the root does not name")
    if not signer.verify(unverified.signing_input, unverified.signature):
        raise DocumentRefused("document_bad_signature", f"a {unverified.typ}")
    return _payload_of(unverified)


def _payload_of(unverified: _Unverified) -> bytes:
    try:
        return b64url_decode(unverified.payload)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", str(error)) from error


def _root_in(unverified: _Unverified) -> PublicKey:
    """The root key that the document brings along: who signed it stands nowhere else. Raises DocumentRefused."""
    try:
        return PublicKey.from_jwk(claim(strict_json_object(_payload_of(unverified)), "root", dict))
    except (MalformedToken, KeyRefused) as error:
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


def _place_of(document: "JwkSetDocument | KeyStatement | PolicyDocument | DomainDocument") -> dict[str, Any]:
    return {"seq": document.seq, "head": document.head, "checkpoint": document.checkpoint}


def _place_from(claims: Mapping[str, Any]) -> tuple[int, int, str]:
    return number_claim(claims, "seq"), number_claim(claims, "head"), claim(claims, "checkpoint", str)


def _all_of(values: Any, kind: type) -> bool:
    return type(values) is list and all(type(value) is kind for value in values)
