"""How the registry's documents are signed and read, and the members that most kinds share (docs/protocol.md).

Every kind but the history statement is a `Frame`: it has an issuer, a subject and times. Every document is a compact
JWS; each kind has its own ``typ`` and its own greatest size. `sign_document` makes one; `read_document` reads one, in
these steps:

1. `UnverifiedDocument.parse`: size, three segments, the members of the header, ``typ``
2. `UnverifiedDocument.verify_signature`: the signer by its kid, its ``alg``, the signature; then the strict payload
3. `read_document`: ``iss``, and that the document is valid now

The signature is checked before the payload is parsed. `read_registry_keys` alone parses the payload first: the root key
is in it. `peerseal.trust.documents` checks the subject. `peerseal.trust.beliefs` refuses a document that is older than
one that was seen before. All times are seconds since the epoch.

Unlike a token, a document may hold members that this version does not know: the registry that signs it may be newer
than its clients, which ignore members that they do not know.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from peerseal.errors import (
    BadSignature,
    DocumentRefused,
    Expired,
    InvalidName,
    KeyRefused,
    MalformedToken,
    NotYetValid,
    PeersealError,
    TokenError,
    WrongType,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.plain import text_like
from peerseal.protocol.tokens.claims import LEEWAY, check_times, claim, number_claim, time_claim

MAX_DOCUMENT = 8 * 1024 * 1024
"""Characters of the longest kind of signed document: a key set of about 4,000 keys with their inclusion proofs."""
_MAX_HEADER = 1024
"""Characters of a document's first segment: the longest kid, with its names, takes 650."""
_MAX_SIGNATURE = 2048
"""Characters of a document's last segment: an RSA key of 8192 bits takes 1,366."""

DOCUMENT_LIFETIME = 24 * 3600
"""Seconds for which a document is valid, where its kind has no lifetime of its own."""

_CODES: Mapping[type[PeersealError], str] = {
    WrongType: "document_wrong_type",
    BadSignature: "document_bad_signature",
    NotYetValid: "document_from_future",
    Expired: "document_expired",
}


class Document(Protocol):
    """What signing and reading need of a kind of document. ``MAX_SIZE`` bounds the characters of its compact JWS."""

    TYP: ClassVar[str]
    MAX_SIZE: ClassVar[int]

    @property
    def issuer(self) -> str:
        """The registry's service id (``iss``)."""

    @property
    def issued_at(self) -> int:
        """When it was signed (``iat``)."""

    def claims(self) -> dict[str, Any]:
        """The payload."""

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """From a payload. Raises MalformedToken, KeyRefused or InvalidName."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The base of the documents: issuer (``iss``, the registry's service id), subject (``sub``, a service id or the
    trust domain) and times (``iat``, ``exp``). A kind adds its own `members`."""

    TYP: ClassVar[str]
    MAX_SIZE: ClassVar[int]
    issuer: str
    subject: str
    issued_at: int
    expires_at: int

    def claims(self) -> dict[str, Any]:
        """The payload."""
        frame = {"iss": self.issuer, "sub": self.subject, "iat": self.issued_at, "exp": self.expires_at}
        return {**frame, **self.members()}

    def members(self) -> dict[str, Any]:
        """The claims that only this kind of document has."""
        raise NotImplementedError

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """From a payload. Raises MalformedToken, KeyRefused or InvalidName."""
        return cls(
            issuer=claim(claims, "iss", str),
            subject=claim(claims, "sub", str),
            issued_at=time_claim(claims, "iat"),
            expires_at=time_claim(claims, "exp"),
            **cls.read_members(claims),
        )

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only this kind of document has. Raises MalformedToken, KeyRefused or InvalidName."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFrame(Frame):
    """A document about a subject whose changes the ledger records.

    ``seq`` is the number of the last entry that changed the subject; entries count from 1, and 0 means that none did.
    ``head`` is the number of entries in the ledger when the document was signed: those after ``seq`` changed other
    subjects. ``checkpoint`` is the signed head of the ledger at size ``head``.
    """

    seq: int
    head: int
    checkpoint: str = field(repr=False)

    def ledger_claims(self) -> dict[str, Any]:
        """The claims about the ledger."""
        return {"seq": self.seq, "head": self.head, "checkpoint": self.checkpoint}

    @staticmethod
    def read_ledger_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields about the ledger. Raises MalformedToken."""
        place = {name: number_claim(claims, name) for name in ("seq", "head")}
        return {**place, "checkpoint": claim(claims, "checkpoint", str)}


D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class UnverifiedDocument(Generic[D]):
    """A document of which only the header was read. The payload is not parsed, and the signature is not checked."""

    kind: type[D]
    kid: str
    alg: str
    encoded_payload: bytes
    signature: bytes
    signing_input: bytes

    @classmethod
    def parse(cls, kind: type[D], jws: str) -> "UnverifiedDocument[D]":
        """Step 1. Raises DocumentRefused."""
        with errors_as_document_refused():
            header_segment, payload, signature, signing_input = jose.split_segments(jws, limit=kind.MAX_SIZE)
            if len(header_segment) > _MAX_HEADER or len(signature) > _MAX_SIGNATURE:
                raise MalformedToken("the header or the signature is longer than any may be")
            header, decoded = jose.parse_header(header_segment), b64url_decode(signature)
            if header.typ != kind.TYP:
                raise WrongType(f"not a {kind.TYP}")
        return UnverifiedDocument(kind, header.kid, header.alg, payload, decoded, signing_input)

    def payload(self) -> dict[str, Any]:
        """The payload, strictly read. Raises MalformedToken."""
        return strict_json_object(b64url_decode(self.encoded_payload))

    def verify_signature(self, signers: Mapping[str, PublicKey]) -> D:
        """Step 2: the document, signed by one of these keys (by kid). Raises DocumentRefused."""
        self.check_signature(signers)
        return self.read()

    def read(self) -> D:
        """The second half of step 2: the document, whose signature was checked. Raises DocumentRefused."""
        with errors_as_document_refused():
            return self.kind.from_claims(self.payload())

    def check_signature(self, signers: Mapping[str, PublicKey]) -> None:
        """The first half of step 2: one of these keys signed the document, which is not read. Raises
        DocumentRefused."""
        signer = signers.get(self.kid)
        if signer is None or signer.alg != self.alg:
            raise DocumentRefused(
                "document_unknown_signer", f"a {self.kind.TYP} signed by an unknown key, {text_like(self.kid)}"
            )
        with errors_as_document_refused():
            signer.check_signature(self.alg, self.signing_input, self.signature)


@contextmanager
def errors_as_document_refused() -> Iterator[None]:
    """Inside this block an error about a token, a key or a name becomes a DocumentRefused."""
    try:
        yield
    except (TokenError, KeyRefused, InvalidName) as error:
        raise DocumentRefused(_CODES.get(type(error), "document_malformed"), str(error)) from error


def sign_document(document: Document, key: KeyPair) -> str:
    """The document as a compact JWS, signed by ``key``, which is the registry's."""
    kid = make_kid(document.issuer, key.public.thumbprint)
    header = jose.encode_header(jose.Header(key.public.alg, kid, document.TYP))
    return jose.compact(header, canonical_json(document.claims()), key.sign)


F = TypeVar("F", bound=Frame)


def read_document(kind: type[F], jws: str, signers: Mapping[str, PublicKey], *, now: float, domain: str) -> F:
    """A document of that kind, signed by one of ``signers`` (by kid) for the registry of ``domain``, and valid now.

    Raises DocumentRefused. It does not check the subject.
    """
    document = UnverifiedDocument.parse(kind, jws).verify_signature(signers)
    check_issued(document, registry_id(domain), now)
    return document


def check_issued(document: Frame, issuer: str, now: float) -> None:
    """Step 3: the document is of that issuer, and valid now. Raises DocumentRefused."""
    if document.issuer != issuer:
        raise DocumentRefused("document_wrong_issuer", f"a document of {document.issuer}, not of {issuer}")
    begin, end = document.issued_at, document.expires_at
    with errors_as_document_refused():
        check_times(begin, begin, end, now=now, leeway=LEEWAY, cap=math.inf)
