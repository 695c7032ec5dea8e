"""A registry in memory that shows two histories: each view is a registry of its own, with the same keys."""

from peerseal.testing import MemoryLedger, MemoryRegistry


def second_view(registry: MemoryRegistry) -> MemoryRegistry:
    """A registry that has the same keys and entries until now, and goes on alone."""
    view = MemoryRegistry(registry.domain, clock=registry.clock)
    view.root, view.signing_key, view.version = registry.root, registry.signing_key, registry.version
    view.past_signing_keys, view.past_ledger_keys = registry.past_signing_keys, registry.past_ledger_keys
    view.keys = dict(registry.keys)
    view.ledger = MemoryLedger(registry.domain)
    view.ledger.key = registry.ledger.key
    for entry in registry.ledger.entries:
        view.ledger.append(entry)
    return view


def grow(registry: MemoryRegistry, entries: int = 1, *, caller: str = "someone") -> None:
    """Append entries that are the caller's own: another caller makes another history."""
    for number in range(entries):
        registry.set_policy("grown", {f"{caller}{number % 2}": ["read"]})
