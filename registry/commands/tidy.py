"""``peerseal-registry tidy``."""

import click

from registry.commands.common import json_option, show, the_settings, the_store
from registry.services.housekeeping import Housekeeping


@click.command()
@json_option
def tidy(as_json: bool) -> None:
    """Removes applicants that waited in vain and tokens long past from this host's database.

    A registry that is running does so by itself, once an hour. Entries and keys stay.
    """
    removed = Housekeeping(the_store(), the_settings().limits).tidy()
    show(removed, as_json, "removed: " + ", ".join(f"{count} {name}" for name, count in removed.items()))
