"""``peerseal-registry history``: the ledger lost entries for good, and goes on from another head."""

from collections.abc import Sequence
from pathlib import Path

import click

from peerseal.protocol.ledger.history_statement import HistoryStatement
from peerseal.runtime.settings import read_bytes
from peerseal.runtime.terminal import say
from registry.commands.common import json_option, read_notes, show, the_settings, the_store, without_mark
from registry.services.authority.ledger_memory import LedgerMemory
from registry.services.recovery.histories import HistoryDeclarations, signed, written

_LARGEST = 64 * 1024
"""Bytes of a request for the root and of what it signs."""
_FILE = click.Path(dir_okay=False, path_type=Path)
_THERE = click.Path(exists=True, dir_okay=False, path_type=Path)
_kept = click.option(
    "--checkpoint",
    "kept",
    multiple=True,
    type=_THERE,
    help="A kept checkpoint, such as a client's, from before the loss or of lost entries. May be repeated.",
)


@click.group()
def history() -> None:
    """A statement of the root that entries are lost for good, and where the ledger goes on.

    The last resort: first look for the lost entries, and bring them back with `restore`. Clients that saw them go on by
    themselves when they read the statement; keys, policies and revocations in those entries are gone. With the root key
    at hand `declare` does it all. With the root key offline: `request` here, `sign` there, `publish` here.
    """


@history.command()
@_kept
@json_option
def declare(kept: tuple[Path, ...], as_json: bool) -> None:
    """Declares lost for good what this host remembers and the database does not have."""
    settings = the_settings()
    request = written(_requested(kept))
    _publish([signed(request, settings.root_key_file, settings.key_passphrase)], as_json)


@history.command()
@_kept
@click.option("--out", type=_FILE, required=True, help="File for the request.")
@json_option
def request(kept: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Writes the statement to a file, for the root to sign."""
    statement = _requested(kept)
    out.write_bytes(written(statement))
    show({"request": str(out), **_members(statement)}, as_json, f"request for the root: {out}\n{_told(statement)}")


@history.command()
@click.argument("request_file", type=_THERE)
@click.option("--root-key", type=_FILE, required=True, help="The root key's file.")
@click.option("--out", type=_FILE, required=True, help="File for the statement.")
@json_option
def sign(request_file: Path, root_key: Path, out: Path, as_json: bool) -> None:
    """Signs a request. Needs no database and no network."""
    jws = signed(without_mark(_read(request_file)), root_key, the_settings().key_passphrase)
    out.write_text(jws, encoding="ascii")
    show({"statement": str(out)}, as_json, f"signed statement: {out}")


@history.command()
@click.argument("files", type=_THERE, nargs=-1, required=True)
@json_option
def publish(files: tuple[Path, ...], as_json: bool) -> None:
    """Writes signed statements into the ledger, oldest first: nodes and clients go on from there."""
    _publish([without_mark(_read(file)).decode("ascii", "replace").strip() for file in files], as_json)


def _requested(kept: Sequence[Path]) -> HistoryStatement:
    return HistoryDeclarations(the_store()).requested(LedgerMemory(the_settings().home).read(), read_notes(kept))


def _publish(statements: Sequence[str], as_json: bool) -> None:
    done = HistoryDeclarations(the_store()).publish(statements)
    say("nodes sign again within seconds; clients go on by themselves", error=True)
    show({"statements": [_members(one) for one in done]}, as_json, "\n".join(_told(one) for one in done))


def _members(statement: HistoryStatement) -> dict[str, object]:
    return {name: getattr(statement, name).to_json() for name in ("common", "lost", "new")}


def _told(statement: HistoryStatement) -> str:
    return f"lost for good: {statement.lost}; back to {statement.common}; goes on from {statement.new}"


def _read(file: Path) -> bytes:
    return read_bytes(file, str(file), _LARGEST)
