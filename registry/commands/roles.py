"""``peerseal-registry roles``."""

import click

from registry.commands.common import json_option, show
from registry.storage.migrate import scripts


@click.command()
@json_option
def roles(as_json: bool) -> None:
    """Prints the SQL that makes and limits the two roles of a registry on PostgreSQL, for psql.

    Run it as a superuser before the first init, and as peerseal_owner after init and after each migrate.
    """
    sql = (scripts() / "roles.sql").read_text("utf-8")
    show({"sql": sql}, as_json, sql.rstrip("\n"))
