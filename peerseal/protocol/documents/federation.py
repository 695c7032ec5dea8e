"""The federation document: which other trust domains a registry's services may believe (docs/protocol.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.documents.frame import LedgerFrame
from peerseal.protocol.ledger.checkpoint import decode_proof, encode_proof
from peerseal.protocol.ledger.entries import FEDERATION_SET, Entry
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import REGISTRY, check_service, check_thumbprint, check_trust_domain
from peerseal.protocol.plain import text_like
from peerseal.protocol.policies import check_url_in_settings, scopes_from
from peerseal.protocol.tokens.claims import at_least, claim, exactly, number_claim, time_claim

MAX_DOMAINS: Final = 50
"""Foreign trust domains, at most: a trust store follows each of their registries."""
MAX_URLS: Final = 10
"""URLs of one foreign registry, with its mirrors, at most."""
MAX_NAMED: Final = 200
"""Services, or scopes, that are named for one foreign domain, at most."""
MAX_ROOTS: Final = 2
"""Registries of one foreign domain, at most: the present one, and the one that replaces it with a new root."""


@dataclass(frozen=True, slots=True)
class FederatedDomain:
    """A registry of a foreign trust domain that is believed: the domain's name, the registry's URLs, and the thumbprint
    of its ``root``.

    Only the ``services`` (short names) and ``scopes`` that are named are allowed; None stands for all. With
    ``transactions`` its transactions may cross, with these scopes at most.
    """

    domain: str
    urls: tuple[str, ...]
    root: str
    services: frozenset[str] | None = None
    scopes: frozenset[str] | None = None
    transactions: bool = False

    def to_json(self) -> dict[str, Any]:
        """``{"domain", "urls", "root", "transactions"}``, and ``"services"`` and ``"scopes"`` where limited."""
        named = {"services": self.services, "scopes": self.scopes}
        limits = {name: sorted(values) for name, values in named.items() if values is not None}
        return {
            "domain": self.domain,
            "urls": list(self.urls),
            "root": self.root,
            **limits,
            "transactions": self.transactions,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads the JSON. Raises MalformedToken or InvalidName."""
        if type(value) is not dict:
            raise MalformedToken("a federated domain is not an object")
        exactly(value, frozenset(("domain", "urls", "root")), frozenset(("services", "scopes", "transactions")))
        services = _services(claim(value, "services", list)) if "services" in value else None
        scopes = scopes_from(value["scopes"]) if "scopes" in value else None
        if scopes is not None and len(scopes) > MAX_NAMED:
            raise MalformedToken(f"scopes has {len(scopes)} members, expected {MAX_NAMED} at most")
        return cls(
            check_trust_domain(value["domain"]),
            _urls(claim(value, "urls", list)),
            check_thumbprint(value["root"]),
            services,
            scopes,
            claim({"transactions": False, **value}, "transactions", bool),
        )


@dataclass(frozen=True, slots=True)
class Federation:
    """All foreign trust domains that are believed, in the order of their names. While a foreign domain replaces its
    root, two members name it: they differ in ``root`` and ``urls``, and in nothing else."""

    domains: tuple[FederatedDomain, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """``{"domains": […]}``, in one spelling."""
        return {"domains": [domain.to_json() for domain in self.domains]}

    @classmethod
    def from_json(cls, value: Any, own: str) -> Self:
        """Reads the JSON of the registry of the trust domain ``own``, which cannot federate with itself. Raises
        MalformedToken or InvalidName."""
        if type(value) is not dict or value.keys() != {"domains"}:
            raise MalformedToken("expected an object with exactly the member domains")
        listed = claim(value, "domains", list)
        if len(listed) > MAX_DOMAINS:
            raise MalformedToken(f"domains has {len(listed)} members, expected {MAX_DOMAINS} at most")
        domains = [FederatedDomain.from_json(one) for one in listed]
        if own in {one.domain for one in domains}:
            raise MalformedToken(f"domains names {own}, the registry's own trust domain")
        if len({one.root for one in domains}) != len(domains):
            raise MalformedToken("domains has one root twice, expected one registry for each root")
        federation = cls(tuple(sorted(domains, key=lambda one: (one.domain, one.root))))
        for one in federation.domains:
            _check_overlap(federation.of(one.domain))
        return federation

    def of(self, domain: str) -> tuple[FederatedDomain, ...]:
        """The registries of that foreign trust domain which are believed: none, one, or two while it replaces its
        root."""
        return tuple(one for one in self.domains if one.domain == domain)


@dataclass(frozen=True, slots=True)
class FederationEntry:
    """The members of a ``federation_set`` entry except the federation, so that a reader can rebuild the entry.

    ``proof`` leads from the entry to the document's checkpoint.
    ``index`` is the index of the entry, ``time`` when it was made, in seconds since the epoch; ``by`` and ``evidence``
    are those of `Entry`.
    """

    index: int
    time: int
    by: Mapping[str, str]
    evidence: str | None
    proof: Proof = field(repr=False)

    @property
    def seq(self) -> int:
        """The number of the entry."""
        return self.index + 1

    def with_federation(self, federation: Federation) -> Entry:
        """The entry that set that federation."""
        data = {"federation": federation.to_json()}
        return Entry(self.seq, self.time, FEDERATION_SET, by=self.by, evidence=self.evidence, data=data)

    def to_json(self) -> dict[str, Any]:
        """``{"index", "time", "by", "evidence", "proof"}``."""
        ours = {"index": self.index, "time": self.time, "by": dict(self.by), "evidence": self.evidence}
        return {**ours, "proof": encode_proof(self.proof)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises MalformedToken."""
        if type(value) is not dict:
            raise MalformedToken("the entry that set the federation is not an object")
        at_least(value, {"evidence", "proof"})
        index, time, by = number_claim(value, "index"), time_claim(value, "time"), claim(value, "by", dict)
        evidence = None if value["evidence"] is None else claim(value, "evidence", str)
        return cls(index, time, by, evidence, decode_proof(value["proof"]))

    @classmethod
    def of(cls, entry: Entry, proof: Proof) -> Self:
        """From that entry, with its proof."""
        return cls(entry.index, entry.time, entry.by, entry.evidence, proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationDocument(LedgerFrame):
    """The registry's signed answer about which foreign trust domains are believed. The subject is its own domain.

    ``entry`` is the ledger entry that set the federation; None where none ever was set.
    """

    TYP: ClassVar[str] = "peerseal-federation+jwt"
    MAX_SIZE: ClassVar[int] = 256 * 1024
    federation: Federation
    entry: FederationEntry | None

    @property
    def set_by(self) -> int:
        """The number of the entry that set the federation; 0 for none."""
        return 0 if self.entry is None else self.entry.seq

    def members(self) -> dict[str, Any]:
        """The claims that only the federation document has."""
        entry = None if self.entry is None else self.entry.to_json()
        return {**self.ledger_claims(), **self.federation.to_json(), "entry": entry}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the federation document has."""
        at_least(claims, {"domains", "entry"})
        federation = Federation.from_json({"domains": claims["domains"]}, claim(claims, "sub", str))
        entry = None if claims["entry"] is None else FederationEntry.from_json(claims["entry"])
        place = cls.read_ledger_claims(claims)
        if entry is not None and entry.seq > place["seq"]:
            raise MalformedToken(f"entry {entry.seq} set the federation, after the last change {place['seq']}")
        return {**place, "federation": federation, "entry": entry}


def _check_overlap(registries: Sequence[FederatedDomain]) -> None:
    """Raises MalformedToken for more registries of one domain than a change of the root needs, or for two that may not
    do the same."""
    first = registries[0]
    if len(registries) > MAX_ROOTS:
        raise MalformedToken(f"domains has {len(registries)} roots of {first.domain}, expected {MAX_ROOTS} at most")
    if any(replace(one, root=first.root, urls=first.urls) != first for one in registries):
        raise MalformedToken(
            f"the members for {first.domain} differ in more than root and urls, expected the same services, scopes and "
            "transactions"
        )


def _urls(urls: list[Any]) -> tuple[str, ...]:
    if not 0 < len(urls) <= MAX_URLS:
        raise MalformedToken(f"urls has {len(urls)} members, expected 1 to {MAX_URLS}")
    for url in urls:
        check_url_in_settings(url, "a registry's URL")
    if len(set(urls)) != len(urls):
        raise MalformedToken("urls has one URL twice")
    return tuple(urls)


def _services(names: list[Any]) -> frozenset[str]:
    """Short names: the registry itself is no service that may call."""
    if len(names) > MAX_NAMED:
        raise MalformedToken(f"services has {len(names)} members, expected {MAX_NAMED} at most")
    services = frozenset(check_service(name) for name in names)
    if len(services) != len(names):
        raise MalformedToken("services names one service twice")
    if REGISTRY in services:
        raise InvalidName(f"{text_like(REGISTRY)} is reserved, expected a service")
    return services
