"""``peerseal-registry services``, ``keys``, ``revoke``, ``approve`` and ``reject``: the services and their keys."""

import click

from registry.commands.common import json_option, operator_client, show, show_rows, url_option
from registry.commands.operator_client import APPLICANTS, SERVICES, keys_of
from registry.services.keys.end_keys import Reason


@click.command()
@url_option
@json_option
def services(url: str | None, as_json: bool) -> None:
    """Lists all services."""
    show_rows(operator_client(url).rows(SERVICES), as_json, ("service", "active_keys", "seq"))


@click.command()
@click.argument("service", required=False)
@click.option("--pending", is_flag=True, help="List the keys that wait for approve or reject instead.")
@url_option
@json_option
def keys(service: str | None, pending: bool, url: str | None, as_json: bool) -> None:
    """Lists the keys of SERVICE, or of all services, past ones too."""
    client = operator_client(url)
    if pending:
        waiting = (row for row in client.rows(APPLICANTS) if service in (None, row["service"]))
        show_rows(waiting, as_json, ("kid", "state", "alg", "created_at", "expires_at"))
        return
    names = [service] if service else [row["service"] for row in client.rows(SERVICES)]
    rows = (key for name in names for key in client.rows(keys_of(name)))
    show_rows(rows, as_json, ("kid", "state", "alg", "active_from", "active_until"))


@click.command()
@click.argument("kid")
@click.option("--reason", type=click.Choice(["retired", "compromised"]), default="compromised", show_default=True)
@url_option
@json_option
def revoke(kid: str, reason: str, url: str | None, as_json: bool) -> None:
    """Revokes the key KID and every key that it vouched for. With --reason retired, retires KID alone."""
    operator_client(url).end_key(kid, Reason(reason))
    state = "retired" if reason == Reason.RETIRED.value else "revoked"
    show({"kid": kid, "state": state}, as_json, f"{state}: {kid}")


@click.command()
@click.argument("kid")
@url_option
@json_option
def approve(kid: str, url: str | None, as_json: bool) -> None:
    """Admits the pending key KID. First compare its thumbprint with the one that the service's host shows."""
    operator_client(url).approve(kid)
    show({"kid": kid, "state": "active"}, as_json, f"active: {kid}")


@click.command()
@click.argument("kid")
@url_option
@json_option
def reject(kid: str, url: str | None, as_json: bool) -> None:
    """Rejects the pending key KID."""
    operator_client(url).end_key(kid, Reason.REJECTED)
    show({"kid": kid, "state": "rejected"}, as_json, f"rejected: {kid}")
