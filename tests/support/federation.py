"""A federation document as a registry in memory signs it."""

from typing import Any, Final

from peerseal.protocol.documents.federation import Federation, FederationDocument
from peerseal.testing import MemoryRegistry

PARTNER: Final[dict[str, Any]] = {
    "domain": "partner.example",
    "root": "BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ",
    "scopes": ["orders:read"],
    "services": ["billing"],
    "transactions": False,
    "urls": ["https://registry.partner.example"],
}
"""A foreign domain with all its members, as a document has them."""


def federation_document(registry: MemoryRegistry, *domains: dict[str, Any]) -> FederationDocument:
    """The document in which the registry believes these domains from now on."""
    registry.set_federation(Federation.from_json({"domains": list(domains)}, registry.domain))
    return registry.federation_document()
