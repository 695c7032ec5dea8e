"""``peerseal-registry``: the commands of whoever runs a registry.

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the database or the registry cannot be reached.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from peerseal.errors import FetchError, PeersealError
from registry.console import Console, HttpConsole, LocalConsole
from registry.domain.errors import Unavailable
from registry.services.end_keys import Reason
from registry.services.initialise import Initialised, initialise
from registry.services.operators import Operators, Role
from registry.services.registry import Registry
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.migrate import migrate as migrate_database
from registry.storage.unit import Store

F = TypeVar("F", bound=Callable[..., Any])

UNREACHABLE = 3
DEV_DOMAIN = "dev.internal"
"""The trust domain that ``serve --dev`` makes where none was configured and there is no registry yet."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> int:
    """``90s``, ``10m``, ``12h`` or ``7d``, as seconds. Raises click.BadParameter."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 10m, 12h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


class Commands(click.Group):
    """Turns our errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        try:
            return super().invoke(ctx)
        except PeersealError as error:
            text = str(error) or error.code
            click.echo(f"Error: {text if error.code in text else f'{error.code}: {text}'}", err=True)
            ctx.exit(UNREACHABLE if isinstance(error, (Unavailable, FetchError)) else 1)


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def _url_option(command: F) -> F:
    text = "Work on the registry at this URL, with the token in PEERSEAL_OPERATOR_TOKEN, not on this host's database."
    return click.option("--url", metavar="URL", help=text)(command)


def _settings() -> Settings:
    return Settings.from_environ(os.environ)


def _store() -> Store:
    return Store(create_engine(_settings().database_url))


def _operators() -> Operators:
    settings = _settings()
    return Operators(Store(create_engine(settings.database_url)), settings.limits)


def _console(url: str | None) -> Console:
    if url is None:
        return LocalConsole(Registry.of(_settings()))
    token = os.environ.get("PEERSEAL_OPERATOR_TOKEN", "").strip()
    if not token:
        raise click.UsageError("--url needs an operator's token in PEERSEAL_OPERATOR_TOKEN")
    return HttpConsole(url, token)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="peerseal", prog_name="peerseal-registry")
def main() -> None:
    """Runs and administers a Peerseal registry.

    Settings come from the environment: REGISTRY_HOME (./registry-data), REGISTRY_DATABASE_URL (an SQLite file in the
    home), REGISTRY_TRUST_DOMAIN, REGISTRY_ROOT_KEY_FILE, REGISTRY_SIGNING_KEY_FILE, REGISTRY_LEDGER_KEY_FILE,
    REGISTRY_SEALING_KEY_FILE, REGISTRY_PUBLIC_URLS.
    """


@main.command()
@click.option("--trust-domain", metavar="NAME", help="What the registry speaks for, such as acme.internal.")
@click.option(
    "--root-key-out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the root key there, to be kept offline.",
)
@_json_option
def init(trust_domain: str | None, root_key_out: Path | None, as_json: bool) -> None:
    """Makes what is missing: schema, keys, root-signed document, first operator token. May be repeated."""
    settings = _settings()
    if root_key_out is not None:
        settings = replace(settings, root_key_file=root_key_out.absolute())
    done = _initialise(settings, trust_domain)
    if as_json:
        _print_json({"trust_domain": done.domain, "pin": done.pin, "made": list(done.made)})
        return
    for name in done.made:
        click.echo(f"made: {name}", err=True)
    if done.operator_token:
        click.echo(f"The first operator token is in {done.operator_token_file}", err=True)
        if sys.stdout.isatty():
            click.echo(f"and reads: {done.operator_token}", err=True)
    click.echo(f"trust domain: {done.domain}")
    click.echo(f"root pin: {done.pin}")


def _initialise(settings: Settings, trust_domain: str | None, default_domain: str | None = None) -> Initialised:
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store(create_engine(settings.database_url))
    try:
        return initialise(settings, store, trust_domain, default_domain=default_domain)
    finally:
        store.engine.dispose()


@main.command()
@click.option("--host", default=None, help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option(
    "--dev",
    is_flag=True,
    help="Laptop mode: makes what is missing, loopback only, first come first served. Protects nothing.",
)
def serve(host: str | None, port: int, workers: int, dev: bool) -> None:
    """Runs the registry under gunicorn."""
    from registry.server import run

    if dev and host is not None:
        raise click.UsageError("--dev listens on loopback only; leave --host away")
    settings = replace(_settings(), dev=dev)
    if dev:
        click.secho(
            "DEV MODE: whoever comes first gets a name, on this machine only. NOT FOR REAL USE.", fg="red", err=True
        )
        done = _initialise(settings, None, default_domain=DEV_DOMAIN)
        click.echo(f"trust domain: {done.domain}, in {settings.home}", err=True)
    run(settings, f"{_bracketed(host or '127.0.0.1')}:{port}", workers)


@main.command()
@_json_option
def migrate(as_json: bool) -> None:
    """Brings the database's schema up to date. Several nodes may do so at once."""
    revision = migrate_database(_store().engine)
    _print({"revision": revision}, as_json, f"schema revision: {revision}")


@main.group("operator-token")
def operator_token() -> None:
    """Tokens of operators. These commands work on this host's database only."""


@operator_token.command("create")
@click.option("--role", type=click.Choice([role.label for role in Role]), default="operator", show_default=True)
@click.option("--ttl", type=duration, default="90d", show_default=True, help="How long it is good for.")
@_json_option
def create_operator_token(role: str, ttl: int, as_json: bool) -> None:
    """Makes an operator token and prints it. It is kept nowhere."""
    record, token = _operators().create(Role[role.upper()], ttl)
    members = {"token": token, "id": record.id, "role": record.role, "expires_at": record.expires_at}
    _print(members, as_json, token)


@operator_token.command("list")
@_json_option
def list_operator_tokens(as_json: bool) -> None:
    """Lists all operator tokens, past ones too, without their secrets."""
    names = ("id", "role", "created_at", "expires_at", "revoked")
    rows = [{name: getattr(record, name) for name in names} for record in _operators().listed()]
    _print_rows(rows, as_json, names)


@operator_token.command("revoke")
@click.argument("token_id")
def revoke_operator_token(token_id: str) -> None:
    """Makes an operator token useless."""
    _operators().revoke(token_id)


@main.group("join-token")
def join_token() -> None:
    """Join tokens, which let a service's first keys in."""


@join_token.command("create")
@click.argument("service")
@click.option("--ttl", type=duration, default="10m", show_default=True, help="How long it is good for.")
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many keys it registers.")
@_url_option
@_json_option
def create_join_token(service: str, ttl: int, uses: int, url: str | None, as_json: bool) -> None:
    """Makes a join token for SERVICE and prints it. It is kept nowhere."""
    made = _console(url).create_join_token(service, ttl, uses)
    _print(made, as_json, made["token"])


@join_token.command("list")
@_url_option
@_json_option
def list_join_tokens(url: str | None, as_json: bool) -> None:
    """Lists all join tokens, past ones too, without their secrets."""
    names = ("id", "service", "created_at", "expires_at", "uses", "used", "withdrawn")
    _print_rows(_console(url).join_tokens(), as_json, names)


@join_token.command("revoke")
@click.argument("token_id")
@_url_option
def revoke_join_token(token_id: str, url: str | None) -> None:
    """Makes a join token useless. Keys that it let in stay."""
    _console(url).withdraw_join_token(token_id)


@main.command()
@_url_option
@_json_option
def services(url: str | None, as_json: bool) -> None:
    """Lists all services."""
    _print_rows(_console(url).services(), as_json, ("service", "active_keys", "seq"))


@main.command()
@click.argument("service", required=False)
@_url_option
@_json_option
def keys(service: str | None, url: str | None, as_json: bool) -> None:
    """Lists the keys of SERVICE, or of all services, past ones too."""
    console = _console(url)
    names = [service] if service else [row["service"] for row in console.services()]
    rows = (key for name in names for key in console.keys(name))
    _print_rows(rows, as_json, ("kid", "state", "alg", "active_from", "active_until"))


@main.command()
@click.argument("kid")
@click.option(
    "--reason", type=click.Choice([reason.value for reason in Reason]), default="compromised", show_default=True
)
@_url_option
def revoke(kid: str, reason: str, url: str | None) -> None:
    """Revokes the key KID, and every key that it vouched for; or, with --reason retired, only retires it."""
    _console(url).end_key(kid, Reason(reason))


def _print(members: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        _print_json(members)
    else:
        click.echo(text)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def _print_rows(rows: Iterable[dict[str, Any]], as_json: bool, names: Iterable[str]) -> None:
    """A table of these columns, or a JSON list of whole rows."""
    if as_json:
        _print_json(list(rows))
        return
    table = [[name.upper() for name in names], *([_cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _cell(name: str, value: Any) -> str:
    if name.endswith(("_at", "_from", "_until")) and isinstance(value, int):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return str(value)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
