"""``peerseal-registry join-token …`` and ``operator-token …``."""

import click

from registry.commands.common import WholeNumber, duration, json_option, operator_client, show, show_rows, url_option
from registry.commands.operator_client import JOIN_TOKENS, OPERATOR_TOKENS
from registry.services.access.operators import Role


@click.group("join-token")
def join_token() -> None:
    """Join tokens, which admit a service's first keys."""


@join_token.command("create")
@click.argument("service")
@click.option("--ttl", type=duration, default="10m", show_default=True, help="The token's lifetime.")
@click.option("--uses", type=WholeNumber(1), default=1, show_default=True, help="The number of keys that it registers.")
@url_option
@json_option
def create_join_token(service: str, ttl: int, uses: int, url: str | None, as_json: bool) -> None:
    """Makes a join token for SERVICE and prints it. The token is stored nowhere."""
    made = operator_client(url).create_join_token(service, ttl, uses)
    show(made, as_json, made["token"])


@join_token.command("list")
@url_option
@json_option
def list_join_tokens(url: str | None, as_json: bool) -> None:
    """Lists all join tokens, past ones too, without their secrets."""
    names = ("id", "service", "created_at", "expires_at", "uses", "used", "withdrawn")
    show_rows(operator_client(url).rows(JOIN_TOKENS), as_json, names)


@join_token.command("revoke")
@click.argument("token_id")
@url_option
@json_option
def revoke_join_token(token_id: str, url: str | None, as_json: bool) -> None:
    """Makes a join token useless. Keys that it admitted stay."""
    operator_client(url).withdraw_join_token(token_id)
    show({"id": token_id, "withdrawn": True}, as_json, f"withdrawn: {token_id}")


@click.group("operator-token")
def operator_token() -> None:
    """Operator tokens. Over HTTP only admins may use these commands."""


@operator_token.command("create")
@click.option("--role", type=click.Choice([role.label for role in Role]), default="operator", show_default=True)
@click.option("--ttl", type=duration, default="90d", show_default=True, help="The token's lifetime.")
@url_option
@json_option
def create_operator_token(role: str, ttl: int, url: str | None, as_json: bool) -> None:
    """Makes an operator token and prints it. The token is stored nowhere."""
    made = operator_client(url).create_operator_token(Role.of(role), ttl)
    show(made, as_json, made["token"])


@operator_token.command("list")
@url_option
@json_option
def list_operator_tokens(url: str | None, as_json: bool) -> None:
    """Lists all operator tokens, past ones too, without their secrets."""
    rows = operator_client(url).rows(OPERATOR_TOKENS)
    show_rows(rows, as_json, ("id", "role", "created_at", "expires_at", "revoked"))


@operator_token.command("revoke")
@click.argument("token_id")
@url_option
@json_option
def revoke_operator_token(token_id: str, url: str | None, as_json: bool) -> None:
    """Makes an operator token useless."""
    operator_client(url).revoke_operator_token(token_id)
    show({"id": token_id, "revoked": True}, as_json, f"revoked: {token_id}")
