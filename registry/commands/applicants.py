"""``peerseal-registry approve`` and ``reject``: what becomes of keys that are pending."""

import click

from registry.commands.common import json_option, operator_client, show, url_option
from registry.services.keys.end_keys import Reason


@click.command()
@click.argument("kid")
@url_option
@json_option
def approve(kid: str, url: str | None, as_json: bool) -> None:
    """Admits the pending key KID. Compare its thumbprint with what the service's own host says."""
    operator_client(url).approve(kid)
    show({"kid": kid, "state": "active"}, as_json, f"active: {kid}")


@click.command()
@click.argument("kid")
@url_option
@json_option
def reject(kid: str, url: str | None, as_json: bool) -> None:
    """Turns the pending key KID away."""
    operator_client(url).end_key(kid, Reason.REJECTED)
    show({"kid": kid, "state": "rejected"}, as_json, f"rejected: {kid}")
