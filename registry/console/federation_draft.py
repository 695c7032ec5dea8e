"""A foreign trust domain as an operator types it: what `peerseal-registry federation add` and `accept` take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from registry.domain.errors import BadRequest
from registry.domain.federation import with_domain, with_second_root

LONGEST: Final = 32 * 1024
"""Characters of one field: a form has 64 KiB in all."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What was typed. ``document`` is the registry keys document that the other side exported, if any; blanks stand
    between ``urls``, ``services`` and ``scopes``. With ``overlap`` the root is a second one."""

    domain: str = ""
    urls: str = ""
    pin: str = ""
    document: str = ""
    services: str = ""
    scopes: str = ""
    transactions: bool = False
    overlap: bool = False

    @classmethod
    def of(cls, one: FederatedDomain) -> "Draft":
        """The draft that says the same as a domain that is believed."""
        services, scopes = (" ".join(sorted(names or ())) for names in (one.services, one.scopes))
        return cls(one.domain, "\n".join(one.urls), one.root, "", services, scopes, one.transactions)

    @classmethod
    def read(cls, form: Mapping[str, str]) -> "Draft":
        """From the form. Raises BadRequest for a text that is too long."""
        names = ("domain", "urls", "pin", "document", "services", "scopes")
        texts = {name: form.get(name, "").strip() for name in names}
        for name, text in texts.items():
            if len(text) > LONGEST:
                raise BadRequest("invalid_parameter", f"{name} has {len(text)} characters, expected {LONGEST} at most")
        return cls(**texts, transactions="transactions" in form, overlap="overlap" in form)

    def added_to(self, federation: Federation, now: float) -> Federation:
        """The federation with what was typed. Raises BadRequest, NotFound, MalformedToken, InvalidName or
        DocumentRefused."""
        if self.overlap and (self.services or self.scopes or self.transactions):
            raise BadRequest("malformed_body", "overlap excludes limits: the domain may do the same under both roots")
        new = self._domain(now)
        if self.overlap:
            return with_second_root(federation, new.domain, new.urls, new.root)
        _check_not_opened(federation, new)
        return with_domain(federation, new)

    def _domain(self, now: float) -> FederatedDomain:
        pin = "".join(self.pin.split())
        if not pin:
            raise BadRequest(
                "malformed_body", "the thumbprint of the root is missing, expected as its operators told it"
            )
        told = read_registry_keys(self.document, pin=pin, now=now) if self.document else None
        named = {"services": self.services.split(), "scopes": self.scopes.split()}
        return FederatedDomain.from_json(
            {
                "domain": self._name(told),
                "urls": self._urls(told),
                "root": pin,
                "transactions": self.transactions,
                **{name: values for name, values in named.items() if values},
            }
        )

    def _name(self, told: RegistryKeys | None) -> str:
        if told is not None and self.domain not in ("", told.subject):
            raise BadRequest(
                "malformed_body", f"the document is of {told.subject}, and the domain is {self.domain!r:.80}"
            )
        return self.domain if told is None else told.subject

    def _urls(self, told: RegistryKeys | None) -> list[str]:
        urls = self.urls.split() or list(told.urls if told else ())
        if not urls:
            raise BadRequest("malformed_body", "no URL of its registry is given, expected one at least")
        return urls


def _check_not_opened(federation: Federation, new: FederatedDomain) -> None:
    """Passes unless the domain lets nothing in now, and an empty field would let all in. Raises BadRequest."""
    for one in federation.of(new.domain):
        services_opened = one.services == frozenset() and new.services is None
        if services_opened or (one.scopes == frozenset() and new.scopes is None):
            raise BadRequest(
                "malformed_body",
                "no service, or no scope, is let in now, and an empty field lets all in: name some here, or change it"
                " with peerseal-registry federation add",
            )
