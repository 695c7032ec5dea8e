"""The policies of many services at once, for the graph of trust. Their bodies are not compared with the ledger."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from registry.storage.tables import policies


def page(connection: Connection, after: str, limit: int) -> list[tuple[str, str]]:
    """The services with a policy, after the name ``after``, each with its policy in canonical JSON."""
    found = select(policies.c.service, policies.c.body).where(policies.c.service > after)
    return [(row[0], row[1]) for row in connection.execute(found.order_by(policies.c.service).limit(limit))]


def of(connection: Connection, services: Sequence[str]) -> dict[str, str]:
    """The policies of these services; some have none."""
    found = select(policies.c.service, policies.c.body).where(policies.c.service.in_(services))
    return {row[0]: row[1] for row in connection.execute(found)}
