"""Shared parts of the commands: options, settings, files, and output."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from peerseal.identity.environment import settings_of
from peerseal.protocol.tokens.claims import LATEST_TIME
from peerseal.protocol.tokens.oidc import BYTE_ORDER_MARK
from peerseal.runtime.settings import named, read_bytes, whole_number
from peerseal.runtime.terminal import on_terminal, printable, say, say_json, terminal_width
from peerseal.runtime.times import rfc3339
from registry.commands.operator_client import HttpOperatorClient, LocalOperatorClient, OperatorClient
from registry.domain.errors import SchemaRefused
from registry.services.access.operators import check_operator_token
from registry.services.registry import Registry
from registry.settings import Settings
from registry.storage.engine import BULK_TIMEOUTS, OPERATOR_TIMEOUTS, create_engine
from registry.storage.schema import read_schema
from registry.storage.unit import Store

F = TypeVar("F", bound=Callable[..., Any])

NEW_FILE = click.Path(dir_okay=False, path_type=Path)
OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> int:
    """``90s``, ``10m``, ``12h`` or ``7d``, as seconds. Raises click.BadParameter."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 10m, 12h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


class WholeNumber(click.IntRange):
    """click's IntRange for plain digits only: Python also accepts ``8_080`` and the digits of other scripts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        if isinstance(value, str) and whole_number(value) is None:
            self.fail(f"{value[:40]!r} is no whole number", param, ctx)
        return super().convert(value, param, ctx)


def json_option(command: F) -> F:
    """``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def url_option(command: F) -> F:
    """``--url``, as ``url``: for `operator_client`."""
    text = "Call the registry at this URL, with the token in PEERSEAL_OPERATOR_TOKEN, instead of this host's database."
    return click.option("--url", metavar="URL", help=text)(command)


def checkpoints_option(text: str) -> Callable[[F], F]:
    """``--checkpoint``, as ``kept``: files with checkpoints, for `read_notes`."""
    return click.option("--checkpoint", "kept", multiple=True, type=OLD_FILE, help=f"{text} May be repeated.")


def read_file(file: Path, largest: int) -> bytes:
    """The content of a file, without the byte order mark of an editor. Raises ConfigurationError."""
    return without_mark(read_bytes(file, str(file), largest))


def without_mark(content: bytes) -> bytes:
    """The content without a byte order mark."""
    return content.removeprefix(BYTE_ORDER_MARK)


def read_notes(files: Iterable[Path]) -> dict[str, str]:
    """The checkpoints in these files, by file name."""
    return {str(file): file.read_text(encoding="utf-8-sig", errors="replace") for file in files}


def the_settings() -> Settings:
    """From the environment. Raises ConfigurationError."""
    return Settings.from_environ(os.environ)


def the_store() -> Store:
    """This host's database. Raises SchemaRefused for a schema that this version cannot work with."""
    return _checked(Store(create_engine(the_settings().database_url, BULK_TIMEOUTS)))


def _checked(store: Store) -> Store:
    with store.look() as connection:
        trouble = read_schema(connection).trouble
    if trouble is not None:
        raise SchemaRefused(trouble)
    return store


def the_registry() -> Registry:
    """All use cases on this host's database. Raises SchemaRefused as `the_store` does."""
    registry = Registry(the_settings(), timeouts=OPERATOR_TIMEOUTS)
    _checked(registry.store)
    return registry


def the_confirmed_registry() -> Registry:
    """The registry for commands that append entries: a host that remembers no ledger first asks
    `Settings.checkpoint_urls`, which a thread does in a serving process."""
    registry = the_registry()
    registry.watch.confirm()
    return registry


def operator_client(url: str | None, *, option: str = "--url", instead: str = "") -> OperatorClient:
    """The client for the registry at ``url``, which the ``option`` named, or for this host's database. ``instead`` is
    what a caller without a token may do. Raises SchemaRefused as `the_store` does, and click.UsageError."""
    if url is None:
        return LocalOperatorClient(the_confirmed_registry())
    token = settings_of(os.environ).secret("PEERSEAL_OPERATOR_TOKEN")
    if not token:
        raise click.UsageError(f"{option} needs an operator's token in PEERSEAL_OPERATOR_TOKEN{instead}")
    return HttpOperatorClient(url, named("PEERSEAL_OPERATOR_TOKEN", check_operator_token, token))


def show(members: dict[str, Any], as_json: bool, text: str) -> None:
    """Prints the members as JSON, or the text."""
    if as_json:
        show_json(members)
    else:
        say(*text.split("\n"))


def show_json(value: Any) -> None:
    """Prints JSON: indented on a terminal, in one line for programs."""
    say_json(value, indent=2 if on_terminal() else None)


def show_rows(rows: Iterable[dict[str, Any]], as_json: bool, names: Sequence[str]) -> None:
    """A table of these columns, or a JSON list of whole rows. Where the terminal is too narrow for the table, each cell
    has a line."""
    if as_json:
        show_json(list(rows))
        return
    cells = [[_cell(name, row.get(name)) for name in names] for row in rows]
    lines = list(_aligned([[name.upper() for name in names], *cells]))
    if on_terminal() and max(map(len, lines)) > terminal_width():
        records = ("\n".join(_aligned(list(zip(names, row, strict=True)))) for row in cells)
        lines = "\n\n".join(records).split("\n")
    say(*lines)


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cell(name: str, value: Any) -> str:
    if name.endswith(("_at", "_from", "_until")) and isinstance(value, int) and 0 <= value <= LATEST_TIME:
        return rfc3339(value)
    return printable(value)


def show_progress(done: int, of: int) -> None:
    """Shows on a terminal how many entries of the ledger are done."""
    if sys.stderr.isatty():
        click.echo(f"\rentries: {done:,} of {of:,}", nl=False, err=True)


def end_progress() -> None:
    """Removes the progress line."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
