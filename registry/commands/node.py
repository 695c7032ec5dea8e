"""The commands for this host's node and its database: set up, serve, migrate, tidy up, and inspect."""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from peerseal.errors import ConfigurationError
from peerseal.runtime.terminal import folded, on_terminal, say
from registry.commands.common import (
    NEW_FILE,
    WholeNumber,
    json_option,
    operator_client,
    show,
    show_json,
    show_rows,
    the_registry,
    the_settings,
    the_store,
    url_option,
)
from registry.commands.operator_client import AUDIT
from registry.services.authority.authority import NotInitialised
from registry.services.housekeeping import Housekeeping
from registry.services.setup.initialise import Initialised, initialise, make_keys
from registry.settings import Settings
from registry.storage.engine import OPERATOR_TIMEOUTS, create_engine
from registry.storage.migrate import apply_roles, migrate_down, roles_sql
from registry.storage.migrate import migrate as migrate_database
from registry.storage.unit import Store

NOT_SOUND = 1
LOOPBACK = "127.0.0.1"
DEV_DOMAIN = "dev.internal"
"""The trust domain of a registry that ``serve --dev`` makes where none is configured."""


@click.command()
@click.option("--trust-domain", metavar="NAME", help="The registry's trust domain, such as acme.internal.")
@click.option("--root-key-out", type=NEW_FILE, help="File for the root key, which is then kept offline.")
@click.option("--keys-only", is_flag=True, help="Make the key files only, without a database, such as for Secrets.")
@json_option
def init(trust_domain: str | None, root_key_out: Path | None, keys_only: bool, as_json: bool) -> None:
    """Makes what is missing: schema, keys, root-signed document, first operator token. May be repeated."""
    settings = the_settings()
    if root_key_out is not None:
        settings = replace(settings, root_key_file=root_key_out.absolute())
    if keys_only:
        pin, made = make_keys(settings)
        show(
            {"pin": pin, "made": list(made)},
            as_json,
            "\n".join([*(f"made: {name}" for name in made), f"root pin: {pin}"]),
        )
        return
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


@click.command()
@click.option("--host", default=None, help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", default=8080, show_default=True, type=WholeNumber(1, 65535))
@click.option("--workers", default=2, show_default=True, type=WholeNumber(1, 64))
@click.option(
    "--dev",
    is_flag=True,
    help="Laptop mode: makes what is missing, on loopback only; the first key of a name is admitted. Protects nothing.",
)
def serve(host: str | None, port: int, workers: int, dev: bool) -> None:
    """Runs the registry under gunicorn."""
    from registry.web.log_context import configure_logging  # imports Flask

    if dev and host is not None:
        raise click.UsageError("--dev listens on loopback only; leave --host away")
    address = _listening(LOOPBACK if host is None else host)
    configure_logging(os.environ)
    settings = replace(the_settings(), dev=dev)
    _check_metrics_port(settings.metrics_port, port)
    if dev:
        settings = replace(settings, drain_seconds=0, console=True)  # no load balancer is in front
        warning = "DEV MODE: every process of this machine can register the first key of a name. NOT FOR REAL USE."
        click.secho(warning, fg="red", err=True)
        done = _initialise(settings, None, default_domain=DEV_DOMAIN)
        say(f"trust domain: {done.domain}, in {settings.home}", error=True)
    run_gunicorn(settings, f"{address}:{port}", workers)


def _check_metrics_port(only_at: int | None, port: int) -> None:
    """Raises ConfigurationError for a port at which this server does not listen: no port would answer /metrics."""
    if only_at not in (None, port):
        raise ConfigurationError(
            f"REGISTRY_METRICS_ONLY_AT={only_at}: serve listens at port {port} only, so /metrics would be answered"
            " nowhere: unset it, or start gunicorn with two --bind (docs/how-to/operations.md)"
        )


def run_gunicorn(settings: Settings, bind: str, workers: int) -> None:
    """Serves until a signal stops it. The application is made before the fork: a wrong setting fails the start. The
    workers share it unless REGISTRY_PRELOAD is off.

    Flask and gunicorn are imported here: all other commands start without them, in less time.
    """
    from flask import Flask
    from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

    from registry.app import create_app, watching
    from registry.serving import gunicorn_conf
    from registry.serving.drain import DRAIN

    options: dict[str, Any] = {
        "bind": bind,
        "workers": workers,
        "when_ready": lambda master: DRAIN.delay_stop_of(master, settings.drain_seconds),
    }

    class Server(BaseApplication):  # type: ignore[misc]
        """gunicorn with the settings of `registry.serving.gunicorn_conf` and ``options``."""

        def load_config(self) -> None:
            """See BaseApplication."""
            for name, value in {**vars(gunicorn_conf), **options}.items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)

        def load(self) -> Flask:
            """See BaseApplication."""
            return watching(create_app(settings))

    if not gunicorn_conf.preload_app:
        create_app(settings)  # each worker makes its own, too late for an error in one line
    Server().run()


@click.command()
@click.option("--down", is_flag=True, help="Go back to the schema of the last release, before its nodes serve alone.")
@json_option
def migrate(down: bool, as_json: bool) -> None:
    """Brings the database's schema up to date. Several nodes may run it at once.

    Nodes of the last release may serve meanwhile. With --down nothing is changed if data would be lost.
    """
    engine = create_engine(the_settings().database_url, OPERATOR_TIMEOUTS)
    revision = migrate_down(engine) if down else migrate_database(engine)
    show({"revision": revision}, as_json, f"schema revision: {revision}")


@click.command()
@click.option("--apply", is_flag=True, help="Run it on REGISTRY_DATABASE_URL instead, without psql.")
@json_option
def roles(apply: bool, as_json: bool) -> None:
    """Prints the SQL that makes the two roles of a registry on PostgreSQL and grants their privileges, for psql.

    Run it as a superuser before the first init, and as peerseal_owner after init and after each migrate.
    """
    if not apply:
        sql = roles_sql()
        show({"sql": sql}, as_json, sql.rstrip("\n"))
        return
    apply_roles(create_engine(the_settings().database_url, OPERATOR_TIMEOUTS))
    show({"granted": True}, as_json, "privileges granted")


@click.command()
@json_option
def tidy(as_json: bool) -> None:
    """Removes expired applicants and tokens from this host's database.

    A running registry does so by itself once an hour. Entries and keys stay.
    """
    removed = Housekeeping(the_store(), the_settings().limits).tidy()
    show(removed, as_json, "\n  ".join(("removed:", *(f"{count} {name}" for name, count in removed.items()))))


@click.command()
@click.option("--after", type=WholeNumber(0), default=0, metavar="ID", help="Show only the rows after this one.")
@url_option
@json_option
def audit(after: int, url: str | None, as_json: bool) -> None:
    """Lists what operators did, oldest first."""
    rows = operator_client(url).rows(AUDIT, after)
    if not as_json:
        rows = ({**row, "done_at": row.get("time"), "by": json.dumps(row.get("by"))} for row in rows)
    show_rows(rows, as_json, ("id", "done_at", "by", "act", "service", "subject", "seq"))


@click.command()
@json_option
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Compares the database's ledger with the one that this host and REGISTRY_CHECKPOINT_URLS have seen, and says what
    to do if they differ, and what each of REGISTRY_WITNESSES, and the root's quorum, has cosigned. Ends with 0 if nodes
    sign, and with 1 if they do not."""
    registry = the_registry()
    found, witnesses, quorum = registry.watch.status(), registry.cosigning.states(), None
    with suppress(NotInitialised, ConfigurationError):  # no document of the root is in force
        quorum = registry.cosigning.quorum()
    seen = "nothing" if found.remembered is None else str(found.remembered)
    lines = [f"ledger: {found.state}", f"database: {found.database}", f"remembered: {seen}"]
    lines += [f"witness {name}: {state}" for name, state in witnesses.items()]
    lines += [] if quorum is None else [f"quorum: {quorum}"]
    members: dict[str, Any] = {} if quorum is None else {"quorum": asdict(quorum)}
    members |= {"witnesses": {name: asdict(state) for name, state in witnesses.items()}} if witnesses else {}
    text = folded("\n".join([*lines, *filter(None, [found.detail]), *found.remedy]))
    show(found.to_json() | members, as_json, text)
    context.exit(0 if found.sound else NOT_SOUND)


@click.command()
@json_option
def remember(as_json: bool) -> None:
    """Makes this host remember the database's ledger as it is now, in place of what it remembered.

    For a host that remembers no ledger and has no other node or copy to ask, and for one that remembers a branch which
    was dropped. First compare the head with a kept checkpoint: the host never contradicts what it remembers here.
    """
    head = the_registry().watch.replace_memory()
    show(head.to_json(), as_json, f"remembered: {head}")


def _listening(host: str) -> str:
    """The address in gunicorn's form, IPv6 in brackets. Raises click.BadParameter for an address that is invalid or of
    another host, which gunicorn would try for seconds."""
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host
    if not plain or "[" in plain or "]" in plain or not _is_here(plain):
        message = f"{host[:100]!r} is no address of this host, such as 127.0.0.1, ::1 or 0.0.0.0"
        raise click.BadParameter(message, param_hint="'--host'")
    return f"[{plain}]" if ":" in plain else plain


def _is_here(host: str) -> bool:
    """Whether a socket can listen on one of the host's addresses: ``localhost`` may have one on which none can."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    for family, kind, _, _, address in found:
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(address)
            return True
    return False
