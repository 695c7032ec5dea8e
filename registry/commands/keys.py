"""``peerseal-registry services``, ``keys``, ``revoke``, ``approve``, ``reject``, ``join-token`` and ``operator-token``:
the services with their keys, and the tokens that admit keys and operators."""

import textwrap
from collections.abc import Iterable
from typing import Any

import click

from peerseal.protocol.names import split_kid
from peerseal.protocol.words import words_of
from peerseal.runtime.terminal import say
from registry.commands.common import WholeNumber, duration, json_option, operator_client, show, show_rows, url_option
from registry.commands.operator_client import APPLICANTS, JOIN_TOKENS, OPERATOR_TOKENS, SERVICES, keys_of
from registry.services.access.operators import Role
from registry.services.keys.records import Reason


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
        _show_pending([row for row in client.rows(APPLICANTS) if service in (None, row["service"])], as_json)
        return
    names = [service] if service else [row["service"] for row in client.rows(SERVICES)]
    rows = (key for name in names for key in client.rows(keys_of(name)))
    show_rows(rows, as_json, ("kid", "state", "alg", "active_from", "active_until"))


def _show_pending(rows: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Prints the applicants, each with its thumbprint in words, as ``peerseal join`` on the service's host does."""
    waiting = [{**row, "words": list(words_of(split_kid(row["kid"])[1]))} for row in rows]
    show_rows(waiting, as_json, ("kid", "state", "alg", "created_at", "expires_at"))
    if not as_json:
        for row in waiting:
            say(
                "",
                row["kid"],
                *textwrap.wrap(" ".join(row["words"]), 80, initial_indent="  words  ", subsequent_indent=" " * 9),
            )


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
    """Admits the pending key KID. First compare its thumbprint with the one that the service's host shows: `peerseal
    join` there and `peerseal-registry keys --pending` here print it in the same words."""
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
