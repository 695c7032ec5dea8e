"""The trust domain's settings as the registry signs them (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peerseal.protocol.documents.frame import LedgerFrame
from peerseal.protocol.policies import DomainSettings
from peerseal.protocol.tokens.claims import at_least

_MEMBERS = ("minters", "issuers", "exchange", "derived_scopes", "access_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDocument(LedgerFrame):
    """The registry's signed answer about the trust domain, which is the subject: minters, issuers of users' tokens, and
    what else `DomainSettings` holds."""

    TYP: ClassVar[str] = "peerseal-domain+jwt"
    MAX_SIZE: ClassVar[int] = 256 * 1024
    settings: DomainSettings

    def members(self) -> dict[str, Any]:
        """The claims that only the domain document has."""
        return {**self.ledger_claims(), **self.settings.to_json()}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the domain document has."""
        at_least(claims, {"minters", "issuers"})
        settings = DomainSettings.from_json({name: claims[name] for name in _MEMBERS if name in claims})
        return {**cls.read_ledger_claims(claims), "settings": settings}
