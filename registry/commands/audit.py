"""``peerseal-registry audit``."""

import json

import click

from registry.commands.common import WholeNumber, json_option, operator_client, show_rows, url_option


@click.command()
@click.option("--after", type=WholeNumber(0), default=0, metavar="ID", help="Show only the rows after this one.")
@url_option
@json_option
def audit(after: int, url: str | None, as_json: bool) -> None:
    """Lists what operators did, oldest first."""
    rows = operator_client(url).audit(after)
    if not as_json:
        rows = ({**row, "done_at": row.get("time"), "by": json.dumps(row.get("by"))} for row in rows)
    show_rows(rows, as_json, ("id", "done_at", "by", "act", "service", "subject", "seq"))
