"""``peerseal-registry verify``."""

from pathlib import Path

import click

from peerseal.runtime.terminal import say
from registry.commands.common import (
    end_progress,
    json_option,
    read_notes,
    show_json,
    show_progress,
    the_settings,
    the_store,
)
from registry.services.recovery.verify import Verified
from registry.services.recovery.verify import verify as verified


@click.command()
@click.option(
    "--checkpoint",
    "kept",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A checkpoint that somebody kept: the ledger must begin with it. May be repeated.",
)
@json_option
def verify(kept: tuple[Path, ...], as_json: bool) -> None:
    """Replays the whole ledger and compares every row of the database with it.

    Ends with 0 where everything is whole, 1 where something differs; every row that does is named.
    """
    notes = read_notes(kept)
    found = verified(the_store(), the_settings().limits, checkpoints=notes, progress=show_progress)
    end_progress()
    if as_json:
        show_json(found.to_json())
    else:
        _show(found)
    if not found.whole:
        click.get_current_context().exit(1)


def _show(found: Verified) -> None:
    for difference in found.differences:
        say(str(difference))
    if found.unbound:
        say(f"{found.unbound} vouchers are for bodies in a spelling of their own: their signatures are good")
    if found.unproven:
        say(f"{found.unproven} entries are unproven: what they rest on was lost, before a restore")
    told = found.to_json()
    state = "whole" if found.whole else f"NOT WHOLE, {len(found.differences)} differences"
    say(f"{state}: {found.size} entries, root hash {told['root']}")
