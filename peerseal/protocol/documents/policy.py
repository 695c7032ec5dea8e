"""Policies as the registry signs them (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peerseal.protocol.documents.frame import LedgerFrame
from peerseal.protocol.policies import CallPolicy
from peerseal.protocol.tokens.claims import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument(LedgerFrame):
    """The registry's signed answer about who may call the service that is the subject. ``policy`` is None where no
    operator set one: then only the service's code decides."""

    TYP: ClassVar[str] = "peerseal-policy+jwt"
    MAX_SIZE: ClassVar[int] = 256 * 1024
    policy: CallPolicy | None

    def members(self) -> dict[str, Any]:
        """The claims that only the policy document has."""
        return {**self.ledger_claims(), "policy": None if self.policy is None else self.policy.to_json()}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the policy document has."""
        at_least(claims, {"policy"})
        policy = None if claims["policy"] is None else CallPolicy.from_json(claims["policy"])
        return {**cls.read_ledger_claims(claims), "policy": policy}
