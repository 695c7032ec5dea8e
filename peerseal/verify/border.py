"""What may cross the border between two trust domains: scopes, transactions and events.

An entry of the own registry's federation document names the scopes that services of a foreign domain may have here at
most. A transaction or an event crosses only where the entry says so (``transactions``), and then with the scopes that
it names: with none, where it leaves them open. There is no transit: a foreign service brings transactions of its own
domain or of this one, and not of a third.
"""

from peerseal.errors import BadTransactionToken, CallerNotAllowed
from peerseal.protocol.documents.federation import FederatedDomain
from peerseal.protocol.names import split_service_id
from peerseal.trust.beliefs import ForeignKeySource, KeySource, RemoteKeySource

Scopes = frozenset[str]


def scopes_of_foreigner(scopes: Scopes, entry: FederatedDomain) -> Scopes:
    """Those of the scopes that a service of the foreign domain may have here."""
    return scopes if entry.scopes is None else scopes & entry.scopes


def event_scopes(scopes: Scopes, entry: FederatedDomain) -> Scopes:
    """Those of the scopes that an event of the foreign domain may have here. Raises CallerNotAllowed where no event of
    it may cross."""
    if not entry.transactions:
        raise CallerNotAllowed(
            f"events of {entry.domain} do not cross: its entry in the federation does not allow transactions"
        )
    return scopes & _named(entry)


def foreign_minters(trust: KeySource | RemoteKeySource, minter: str) -> ForeignKeySource:
    """The source for the domain of a foreign service that may mint transactions there, and whose transactions may
    cross. Raises BadTransactionToken or TrustUnavailable."""
    domain, foreign = split_service_id(minter)[0], getattr(trust, "foreign", None)
    source: ForeignKeySource | None = None if foreign is None or domain == trust.domain else foreign(domain)
    if source is None:
        raise BadTransactionToken(f"{minter} is not among the domain's minters").at_step(3)
    if not source.federated.transactions:
        raise BadTransactionToken(f"{minter}: {_closed(source.federated)}").at_step(3)
    if minter not in source.settings().minters:
        raise BadTransactionToken(f"{minter} is not among the minters of {domain}").at_step(3)
    return source


def crossing_scopes(minted: FederatedDomain | None, carried: FederatedDomain | None) -> Scopes | None:
    """The scopes that a transaction has here at most; None for no limit. ``minted`` is the entry of the domain in which
    it was minted, ``carried`` that of the service that brings it; None stands for the own domain. Raises
    BadTransactionToken."""
    entry = minted or carried
    if entry is None:
        return None
    if minted is not None and carried is not None and minted.domain != carried.domain:
        raise BadTransactionToken(f"a service of {carried.domain} brings a transaction of {minted.domain}").at_step(3)
    if not entry.transactions:
        raise BadTransactionToken(_closed(entry)).at_step(3)
    return _named(entry)


def _named(entry: FederatedDomain) -> Scopes:
    return frozenset() if entry.scopes is None else entry.scopes


def _closed(entry: FederatedDomain) -> str:
    return f"transactions do not cross to or from {entry.domain}: its entry in the federation does not allow it"
