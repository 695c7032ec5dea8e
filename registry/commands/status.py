"""``peerseal-registry status`` and ``remember``: is the database's ledger the one that was seen?"""

import click

from registry.commands.common import json_option, show, the_registry
from registry.services.recovery.ledger_status import LedgerStatus, ledger_status
from registry.services.recovery.ledger_status import remember as remembered

NOT_SOUND = 1


@click.command()
@json_option
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Says which ledger the database has, which one this host and those in REGISTRY_CHECKPOINT_URLS have seen, and what
    to do where the two differ. Ends with 0 where nodes sign, and 1 where they do not."""
    found = ledger_status(the_registry())
    show(found.to_json(), as_json, "\n".join(_lines(found)))
    context.exit(0 if found.sound else NOT_SOUND)


@click.command()
@json_option
def remember(as_json: bool) -> None:
    """Makes this host remember the database's ledger as it is now, in place of what it remembered.

    For a host that remembers no ledger and has no other node or copy to ask, and for one that remembers a branch which
    was dropped. First compare the head with a kept checkpoint: the host never contradicts what it remembers here.
    """
    head = remembered(the_registry())
    show(head.to_json(), as_json, f"remembered: {head}")


def _lines(found: LedgerStatus) -> list[str]:
    seen = "nothing" if found.remembered is None else str(found.remembered)
    detail = [found.detail] if found.detail else []
    return [f"ledger: {found.state}", f"database: {found.database}", f"remembered: {seen}", *detail, *found.remedy]
