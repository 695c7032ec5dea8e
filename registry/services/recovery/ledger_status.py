"""Compares the database's ledger with the one that was seen, and names the remedy for operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peerseal.protocol.documents.history_statement import Head
from registry.domain.errors import Lagging, LedgerContradicted, LedgerUnconfirmed
from registry.services.registry import Registry
from registry.storage.queries import ledger
from registry.storage.unit import Store

FORKED = (
    "The database has lost or replaced entries that were signed: it was promoted from a replica that lagged behind, or "
    "restored. No node signs or writes.",
    "1. Find the lost entries: the former primary, a folder of peerseal keep-ledger, a mirror. Stop every node, then: "
    "peerseal-registry restore --from COPY (with --drop-branch where nodes of an earlier release went on writing).",
    "2. Only where no copy has them: peerseal-registry history declare, where the root key is. Clients go on by "
    "themselves; what the lost entries said is gone.",
)
BEHIND = (
    "This node is connected to a standby. It signs when that has caught up.",
    "Name all hosts in REGISTRY_DATABASE_URL, with target_session_attrs=read-write. A standby that is promoted before "
    "it has caught up has lost entries: the state is forked then.",
)
UNCONFIRMED = (
    "This host does not know which ledger was seen.",
    "Start one of those, or compare the head above with a kept checkpoint, and then run: peerseal-registry remember",
)


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """``state`` is ``sound``, ``forked``, ``behind`` or ``unconfirmed``. ``remembered`` is the newest head that this
    host has seen, if any. ``detail`` is the reason for a state that is not sound, ``remedy`` the steps to take."""

    state: str
    database: Head
    remembered: Head | None
    detail: str = ""
    remedy: Sequence[str] = ()

    @property
    def sound(self) -> bool:
        """Whether nodes sign."""
        return self.state == "sound"

    def to_json(self) -> dict[str, Any]:
        """``{"state", "database", "remembered", "detail", "remedy"}``."""
        remembered = None if self.remembered is None else self.remembered.to_json()
        told = {"state": self.state, "database": self.database.to_json(), "remembered": remembered}
        return {**told, "detail": self.detail, "remedy": list(self.remedy)}


def ledger_status(registry: Registry) -> LedgerStatus:
    """Compares the database with this host's memory and with the checkpoints of `Settings.checkpoint_urls`. Raises
    StorageUnavailable, ConfigurationError."""
    with Store(registry.store.engine).look() as connection:
        edge = ledger.frontier(connection)
    known, database = registry.fork_guard.known, Head(edge.size, edge.root)
    remembered = None if known is None else known.head
    registry.watch.ask()
    try:
        registry.watch.look()
    except Lagging as error:
        return LedgerStatus("behind", database, remembered, str(error), BEHIND)
    except LedgerUnconfirmed as error:
        return LedgerStatus("unconfirmed", database, remembered, str(error), UNCONFIRMED)
    except LedgerContradicted as error:
        return LedgerStatus("forked", database, remembered, str(error), FORKED)
    return LedgerStatus("sound", database, remembered)


def remember(registry: Registry) -> Head:
    """Replaces this host's memory by the database's ledger. Raises StorageUnavailable, and ConfigurationError where the
    file cannot be written."""
    with Store(registry.store.engine).look() as connection:
        edge = ledger.frontier(connection)
    registry.fork_guard.believe(edge, registry.authority.in_force().checkpoint(edge))
    return Head(edge.size, edge.root)
