"""``peerseal-registry``: the commands of whoever runs a registry.

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the database or the registry cannot be reached, 130 after Ctrl-C, 141
where the reader of the output is gone.
"""

import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from peerseal.errors import FetchError, PeersealError
from peerseal.runtime.terminal import ended_quietly, on_terminal, say
from registry.commands.applicants import approve, reject
from registry.commands.audit import audit
from registry.commands.common import (
    WholeNumber,
    duration,
    json_option,
    operator_client,
    show,
    show_json,
    show_rows,
    the_settings,
    url_option,
)
from registry.commands.history import history
from registry.commands.operator_tokens import operator_token
from registry.commands.policies import domain, policy
from registry.commands.restore import restore
from registry.commands.root import root
from registry.commands.status import remember, status
from registry.commands.tidy import tidy
from registry.commands.verify import verify
from registry.domain.errors import LedgerContradicted, Unavailable
from registry.services.keys.end_keys import Reason
from registry.services.setup.initialise import Initialised, initialise
from registry.settings import Settings
from registry.storage.engine import OPERATOR_TIMEOUTS, create_engine
from registry.storage.migrate import migrate as migrate_database
from registry.storage.migrate import migrate_down
from registry.storage.unit import Store

UNREACHABLE = 3
LOOPBACK = "127.0.0.1"
REFUSED = 1
DEV_DOMAIN = "dev.internal"
"""The trust domain that ``serve --dev`` makes where none was configured and there is no registry yet."""


class Commands(click.Group):
    """Turns our errors, and the operating system's, into one line and an exit code."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """See click.Group; it prints the help."""
        with ended_quietly():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        try:
            with ended_quietly():
                return super().invoke(ctx)
        except PeersealError as error:
            text = str(error) or error.code
            say(f"Error: {text if error.code in text else f'{error.code}: {text}'}", error=True)
            ctx.exit(_code_of(error))


def _code_of(error: PeersealError) -> int:
    """A ledger that is shorter than it was, or contradicts what is known, is refused: no waiting mends it."""
    lasting = isinstance(error, LedgerContradicted)
    return UNREACHABLE if isinstance(error, (Unavailable, FetchError)) and not lasting else REFUSED


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="peerseal", prog_name="peerseal-registry")
def main() -> None:
    """Runs and administers a Peerseal registry.

    Settings come from the environment: REGISTRY_HOME (./registry-data), REGISTRY_DATABASE_URL (an SQLite file in the
    home), REGISTRY_TRUST_DOMAIN, REGISTRY_ROOT_KEY_FILE, REGISTRY_SIGNING_KEY_FILE, REGISTRY_LEDGER_KEY_FILE,
    REGISTRY_SEALING_KEY_FILE, REGISTRY_KEY_PASSPHRASE, REGISTRY_PUBLIC_URLS, REGISTRY_CHECKPOINT_URLS,
    REGISTRY_APPLICANTS (off), REGISTRY_OIDC_FILE, REGISTRY_PROXIES (0), REGISTRY_RATE_LIMIT_STORAGE (memory://),
    REGISTRY_EXCHANGED_TOKEN_LIFETIME (7d), REGISTRY_DRAIN_SECONDS (5), REGISTRY_WAITING_CALLS,
    REGISTRY_ALLOW_ASYNC_REPLICATION (off), REGISTRY_LISTEN_URL.
    """


@main.command()
@click.option("--trust-domain", metavar="NAME", help="What the registry speaks for, such as acme.internal.")
@click.option(
    "--root-key-out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the root key there, to be kept offline.",
)
@json_option
def init(trust_domain: str | None, root_key_out: Path | None, as_json: bool) -> None:
    """Makes what is missing: schema, keys, root-signed document, first operator token. May be repeated."""
    settings = the_settings()
    if root_key_out is not None:
        settings = replace(settings, root_key_file=root_key_out.absolute())
    done = _initialise(settings, trust_domain)
    if as_json:
        show_json({"trust_domain": done.domain, "pin": done.pin, "made": list(done.made)})
        return
    for name in done.made:
        say(f"made: {name}", error=True)
    if done.operator_token:
        say(f"The first operator token is in {done.operator_token_file}", error=True)
        if on_terminal():
            say(f"and reads: {done.operator_token}", error=True)
    say(f"trust domain: {done.domain}")
    say(f"root pin: {done.pin}")


def _initialise(settings: Settings, trust_domain: str | None, default_domain: str | None = None) -> Initialised:
    store = Store(create_engine(settings.database_url, OPERATOR_TIMEOUTS))
    try:
        return initialise(settings, store, trust_domain, default_domain=default_domain)
    finally:
        store.engine.dispose()


@main.command()
@click.option("--host", default=None, help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", default=8080, show_default=True, type=WholeNumber(1, 65535))
@click.option("--workers", default=2, show_default=True, type=WholeNumber(1, 64))
@click.option(
    "--dev",
    is_flag=True,
    help="Laptop mode: makes what is missing, loopback only, first come first served. Protects nothing.",
)
def serve(host: str | None, port: int, workers: int, dev: bool) -> None:
    """Runs the registry under gunicorn."""
    from registry.serving.server import run

    if dev and host is not None:
        raise click.UsageError("--dev listens on loopback only; leave --host away")
    address = _listening(LOOPBACK if host is None else host)
    settings = replace(the_settings(), dev=dev)
    if dev:
        settings = replace(settings, drain_seconds=0)  # no balancer is in front
        click.secho(
            "DEV MODE: whoever comes first gets a name, on this machine only. NOT FOR REAL USE.", fg="red", err=True
        )
        done = _initialise(settings, None, default_domain=DEV_DOMAIN)
        say(f"trust domain: {done.domain}, in {settings.home}", error=True)
    run(settings, f"{address}:{port}", workers)


@main.command()
@click.option("--down", is_flag=True, help="Back to the last release's schema instead, before its nodes serve alone.")
@json_option
def migrate(down: bool, as_json: bool) -> None:
    """Brings the database's schema up to date. Several nodes may do so at once.

    Nodes of the last release may serve meanwhile. With --down nothing is changed where data would be lost.
    """
    engine = create_engine(the_settings().database_url, OPERATOR_TIMEOUTS)
    revision = migrate_down(engine) if down else migrate_database(engine)
    show({"revision": revision}, as_json, f"schema revision: {revision}")


@main.group("join-token")
def join_token() -> None:
    """Join tokens, which let a service's first keys in."""


@join_token.command("create")
@click.argument("service")
@click.option("--ttl", type=duration, default="10m", show_default=True, help="How long it is good for.")
@click.option("--uses", type=WholeNumber(1), default=1, show_default=True, help="How many keys it registers.")
@url_option
@json_option
def create_join_token(service: str, ttl: int, uses: int, url: str | None, as_json: bool) -> None:
    """Makes a join token for SERVICE and prints it. It is kept nowhere."""
    made = operator_client(url).create_join_token(service, ttl, uses)
    show(made, as_json, made["token"])


@join_token.command("list")
@url_option
@json_option
def list_join_tokens(url: str | None, as_json: bool) -> None:
    """Lists all join tokens, past ones too, without their secrets."""
    names = ("id", "service", "created_at", "expires_at", "uses", "used", "withdrawn")
    show_rows(operator_client(url).join_tokens(), as_json, names)


@join_token.command("revoke")
@click.argument("token_id")
@url_option
@json_option
def revoke_join_token(token_id: str, url: str | None, as_json: bool) -> None:
    """Makes a join token useless. Keys that it let in stay."""
    operator_client(url).withdraw_join_token(token_id)
    show({"id": token_id, "withdrawn": True}, as_json, f"withdrawn: {token_id}")


@main.command()
@url_option
@json_option
def services(url: str | None, as_json: bool) -> None:
    """Lists all services."""
    show_rows(operator_client(url).services(), as_json, ("service", "active_keys", "seq"))


@main.command()
@click.argument("service", required=False)
@click.option("--pending", is_flag=True, help="Those that wait for an operator instead: see approve and reject.")
@url_option
@json_option
def keys(service: str | None, pending: bool, url: str | None, as_json: bool) -> None:
    """Lists the keys of SERVICE, or of all services, past ones too."""
    console = operator_client(url)
    if pending:
        waiting = (row for row in console.applicants() if service in (None, row["service"]))
        show_rows(waiting, as_json, ("kid", "state", "alg", "created_at", "expires_at"))
        return
    names = [service] if service else [row["service"] for row in console.services()]
    rows = (key for name in names for key in console.keys(name))
    show_rows(rows, as_json, ("kid", "state", "alg", "active_from", "active_until"))


@main.command()
@click.argument("kid")
@click.option("--reason", type=click.Choice(["retired", "compromised"]), default="compromised", show_default=True)
@url_option
@json_option
def revoke(kid: str, reason: str, url: str | None, as_json: bool) -> None:
    """Revokes the key KID, and every key that it vouched for; or, with --reason retired, only retires it."""
    operator_client(url).end_key(kid, Reason(reason))
    state = "retired" if reason == Reason.RETIRED.value else "revoked"
    show({"kid": kid, "state": state}, as_json, f"{state}: {kid}")


for command in (approve, audit, domain, history, operator_token, policy, reject, remember, restore, tidy, verify):
    main.add_command(command)


main.add_command(root)
main.add_command(status)


def _listening(host: str) -> str:
    """The address as gunicorn takes it, IPv6 in brackets. Raises click.BadParameter for what is none, or another
    host's: gunicorn would try it for seconds."""
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host
    if not plain or "[" in plain or "]" in plain or not _is_here(plain):
        message = f"{host[:100]!r} is no address of this host, such as 127.0.0.1, ::1 or 0.0.0.0"
        raise click.BadParameter(message, param_hint="'--host'")
    return f"[{plain}]" if ":" in plain else plain


def _is_here(host: str) -> bool:
    """Whether one of the host's addresses can be listened on here: ``localhost`` may have one that cannot."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    for family, kind, _, _, place in found:
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(place)
            return True
    return False
