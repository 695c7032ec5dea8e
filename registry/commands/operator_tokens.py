"""``peerseal-registry operator-token …``."""

import click

from registry.commands.common import duration, json_option, operator_client, show, show_rows, url_option
from registry.services.access.operators import Role


@click.group("operator-token")
def operator_token() -> None:
    """Tokens of operators; over HTTP for admins only."""


@operator_token.command()
@click.option("--role", type=click.Choice([role.label for role in Role]), default="operator", show_default=True)
@click.option("--ttl", type=duration, default="90d", show_default=True, help="How long it is good for.")
@url_option
@json_option
def create(role: str, ttl: int, url: str | None, as_json: bool) -> None:
    """Makes an operator token and prints it. It is kept nowhere."""
    made = operator_client(url).create_operator_token(Role.of(role), ttl)
    show(made, as_json, made["token"])


@operator_token.command("list")
@url_option
@json_option
def listed(url: str | None, as_json: bool) -> None:
    """Lists all operator tokens, past ones too, without their secrets."""
    rows = operator_client(url).operator_tokens()
    show_rows(rows, as_json, ("id", "role", "created_at", "expires_at", "revoked"))


@operator_token.command()
@click.argument("token_id")
@url_option
@json_option
def revoke(token_id: str, url: str | None, as_json: bool) -> None:
    """Makes an operator token useless."""
    operator_client(url).revoke_operator_token(token_id)
    show({"id": token_id, "revoked": True}, as_json, f"revoked: {token_id}")
