"""``peerseal-registry history``: the ledger has lost entries for good and goes on from another head."""

from collections.abc import Sequence
from pathlib import Path

import click

from peerseal.protocol.documents.history_statement import HistoryStatement
from peerseal.runtime.terminal import say
from registry.commands.common import (
    NEW_FILE,
    OLD_FILE,
    checkpoints_option,
    json_option,
    read_file,
    read_notes,
    show,
    the_settings,
    the_store,
)
from registry.services.authority.ledger_memory import LedgerMemory
from registry.services.recovery.histories import HistoryDeclarations, signed, written

_LARGEST = 64 * 1024
"""Bytes of a request for the root, and of the signed statement."""
_kept = checkpoints_option("A kept checkpoint, such as a client's, from before the loss or of lost entries.")


@click.group()
def history() -> None:
    """The root's statement that entries are lost for good, and from where the ledger goes on.

    This is the last resort: first look for the lost entries, and bring them back with `restore`. Clients that saw them
    continue by themselves when they read the statement; keys, policies and revocations in those entries are gone.

    With the root key on this host, run `declare`. With the root key offline, run `request` on this host, `sign` on the
    machine with the root key, and `publish` on this host.
    """


@history.command()
@_kept
@json_option
def declare(kept: tuple[Path, ...], as_json: bool) -> None:
    """Declares the entries lost that this host remembers and the database does not have."""
    settings = the_settings()
    request = written(_requested(kept))
    _publish([signed(request, settings.root_key_file, settings.key_passphrase)], as_json)


@history.command()
@_kept
@click.option("--out", type=NEW_FILE, required=True, help="File for the request.")
@json_option
def request(kept: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Writes the statement to a file, for the root to sign."""
    statement = _requested(kept)
    out.write_bytes(written(statement))
    show({"request": str(out), **_members(statement)}, as_json, f"request for the root: {out}\n{_told(statement)}")


@history.command()
@click.argument("request_file", type=OLD_FILE)
@click.option("--root-key", type=NEW_FILE, required=True, help="The root key's file.")
@click.option("--out", type=NEW_FILE, required=True, help="File for the statement.")
@json_option
def sign(request_file: Path, root_key: Path, out: Path, as_json: bool) -> None:
    """Signs a request. Needs no database and no network."""
    jws = signed(read_file(request_file, _LARGEST), root_key, the_settings().key_passphrase)
    out.write_text(jws, encoding="ascii")
    show({"statement": str(out)}, as_json, f"signed statement: {out}")


@history.command()
@click.argument("files", type=OLD_FILE, nargs=-1, required=True)
@json_option
def publish(files: tuple[Path, ...], as_json: bool) -> None:
    """Writes signed statements into the ledger, oldest first: nodes and clients go on from there."""
    _publish([read_file(file, _LARGEST).decode("ascii", "replace").strip() for file in files], as_json)


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
