"""The registry keys document: which keys sign for a registry (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peerseal.errors import DocumentRefused, InvalidName, MalformedToken
from peerseal.protocol.documents.frame import Frame, UnverifiedDocument, check_issued, errors_as_document_refused
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.checkpoint import ledger_public_key
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.names import make_kid, registry_id, split_kid, split_service_id
from peerseal.protocol.tokens.claims import at_least, claim, number_claim

REGISTRY_KEYS_PATH = "/.well-known/peerseal-registry"
REGISTRY_KEYS_LIFETIME = 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryKeys(Frame):
    """The versioned document, signed by the root key, that names the registry's keys. The subject is the trust domain.

    ``root`` is the key that signs this document; clients pin its thumbprint. ``ledger_key`` is the Ed25519 key (a JWK,
    RFC 8037) that signs checkpoints. ``past_ledger_keys`` are earlier ledger keys. Clients still accept the
    checkpoints that those signed, so that a ledger key can be replaced. ``witnesses`` says which witnesses cosign
    checkpoints, and how many of them a client needs; None where it needs none.
    """

    TYP: ClassVar[str] = "peerseal-registry+jwt"
    MAX_SIZE: ClassVar[int] = 64 * 1024
    version: int
    root: PublicKey
    signing_keys: tuple[PublicKey, ...]
    ledger_key: Mapping[str, str]
    urls: tuple[str, ...] = ()
    past_ledger_keys: tuple[Mapping[str, str], ...] = ()
    witnesses: Quorum | None = None

    @property
    def ledger_keys(self) -> tuple[Mapping[str, str], ...]:
        """All keys that may sign checkpoints."""
        return (self.ledger_key, *self.past_ledger_keys)

    def members(self) -> dict[str, Any]:
        """The claims that only the registry keys document has."""
        return {
            "version": self.version,
            "root": dict(self.root.jwk),
            "signing_keys": [
                {**key.jwk, "alg": key.alg, "kid": make_kid(self.issuer, key.thumbprint)} for key in self.signing_keys
            ],
            "ledger_key": dict(self.ledger_key),
            "past_ledger_keys": [dict(key) for key in self.past_ledger_keys],
            "urls": list(self.urls),
            **({} if self.witnesses is None else self.witnesses.members()),
        }

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the registry keys document has."""
        at_least(claims, {"version", "root", "signing_keys", "ledger_key", "urls"})
        jwks, urls, ledger_key = (claims[name] for name in ("signing_keys", "urls", "ledger_key"))
        past = claims.get("past_ledger_keys", [])
        if not (_all_of(jwks, dict) and _all_of(urls, str) and _all_of([ledger_key], dict) and _all_of(past, dict)):
            raise MalformedToken("signing keys, ledger keys or URLs are of the wrong type")
        for key in (ledger_key, *past):
            ledger_public_key(key)
        return {
            "version": number_claim(claims, "version"),
            "root": PublicKey.from_jwk(claim(claims, "root", dict)),
            "signing_keys": tuple(PublicKey.from_jwk(jwk) for jwk in jwks),
            "ledger_key": ledger_key,
            "urls": tuple(urls),
            "past_ledger_keys": tuple(past),
            "witnesses": Quorum.read(claims),
        }


def read_registry_keys(jws: str, *, pin: str | None, now: float) -> RegistryKeys:
    """The registry keys document, believed because its root key has the thumbprint ``pin``. With no pin any root key is
    believed (first use, on loopback only). Raises DocumentRefused.

    The root key is only in the payload, so the payload is read before the signature is checked. Which root and which
    registry it is of is only told after that: a document that was damaged on the way is of no other registry.
    """
    unverified = UnverifiedDocument.parse(RegistryKeys, jws)
    with errors_as_document_refused():
        root = PublicKey.from_jwk(claim(unverified.payload(), "root", dict))
    signed_by_it = unverified.kid.rpartition("/")[2] == root.thumbprint
    unverified.check_signature({unverified.kid: root} if signed_by_it else {})
    if pin is not None and root.thumbprint != pin:
        raise DocumentRefused("document_wrong_root", f"the root key is {root.thumbprint}, the pinned one is {pin}")
    try:
        issuer, _ = split_kid(unverified.kid)
        domain = split_service_id(issuer)[0]
    except InvalidName as error:
        raise DocumentRefused("document_wrong_issuer", str(error)) from error
    document = unverified.read()
    if issuer != registry_id(domain):
        raise DocumentRefused("document_wrong_issuer", f"{issuer} is not a registry")
    check_issued(document, issuer, now)
    if document.subject != domain:
        raise DocumentRefused("document_wrong_subject", f"sub is {document.subject}, expected {domain}")
    return document


def _all_of(values: Any, kind: type) -> bool:
    return type(values) is list and all(type(value) is kind for value in values)
