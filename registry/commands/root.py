"""``peerseal-registry root`` and ``history``: documents that the root signs, which may be offline.

``root`` names new keys for the registry. ``history`` declares ledger entries lost for good. Both have the same steps:
request, sign, publish.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from peerseal.errors import MalformedToken
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.documents.history_statement import HistoryStatement
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.ledger.quorum import MAX_WITNESSES, Quorum
from peerseal.runtime.terminal import folded, say
from registry.commands.common import (
    NEW_FILE,
    OLD_FILE,
    WholeNumber,
    checkpoints_option,
    json_option,
    read_file,
    read_notes,
    show,
    the_confirmed_registry,
    the_settings,
    the_store,
)
from registry.services.authority.ledger_memory import LedgerMemory
from registry.services.recovery import histories
from registry.services.recovery.histories import HistoryDeclarations
from registry.services.setup.ceremony import SETTLED_AFTER, Ceremony, NotSettled, Rolled, signed, written

_LARGEST_DOCUMENT = 8 * 1024 * 1024
"""Bytes of a request for a document, and of the signed document."""
_LARGEST_STATEMENT = 64 * 1024
"""Bytes of a request for a statement, and of the signed statement."""
_WHAT = click.Choice([rolled.value for rolled in Rolled])

_kept = checkpoints_option("A kept checkpoint, such as a client's, from before the loss or of lost entries.")
_request_file = click.argument("request_file", type=OLD_FILE)
_root_key = click.option("--root-key", type=NEW_FILE, required=True, help="The root key's file.")


def _out(content: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--out``, the file for the content."""
    return click.option("--out", type=NEW_FILE, required=True, help=f"File for the {content}.")


_witnesses = click.option(
    "--witness", "vkeys", multiple=True, metavar="VKEY", help="The key of a witness, NAME+ID+KEY."
)
_quorum = click.option(
    "--quorum", type=WholeNumber(1, MAX_WITNESSES), metavar="K", help="How many of them a client needs."
)
_no_witnesses = click.option("--no-witnesses", is_flag=True, help="Name no witnesses any more.")


@click.group()
def root() -> None:
    """New signing and ledger keys, the removal of stolen ones, and the witnesses of the ledger.

    With the root key on this host, run `roll`, `drop` or `witnesses`. With the root key offline, run `request` on this
    host, `sign` on the machine with the root key, and `publish` on this host.
    """


@root.command()
@click.argument("what", type=_WHAT, nargs=-1, required=True)
@click.option("--drop-past", is_flag=True, help="For a stolen key: replace it at once, without overlap.")
@json_option
def roll(what: tuple[str, ...], drop_past: bool, as_json: bool) -> None:
    """Replaces the signing key, the ledger key or both. The previous keys stay valid until `drop`."""
    _at_once(what, drop_past, as_json)


@root.command()
@json_option
def drop(as_json: bool) -> None:
    """Makes the previous keys invalid: clients refuse what they signed. After a roll it waits for some seconds, until
    no node signs with the previous key; `roll --drop-past` does not wait."""
    try:
        _at_once((), drop_past=True, as_json=as_json)
    except NotSettled as error:
        say(str(error), error=True)
        time.sleep(error.wait)
        _at_once((), drop_past=True, as_json=as_json)


@root.command()
@_witnesses
@_quorum
@_no_witnesses
@json_option
def witnesses(vkeys: tuple[str, ...], quorum: int | None, no_witnesses: bool, as_json: bool) -> None:
    """Names the witnesses of the ledger, and how many of them must have cosigned what clients believe.

    Give all of them: they replace those named before. First have every node submit its checkpoints to them
    (REGISTRY_WITNESSES): clients that know this version refuse what is not cosigned.
    """
    if not vkeys and not no_witnesses:
        raise click.UsageError("name each witness with --witness VKEY, or none with --no-witnesses")
    _sign_at_once(_witnessed(_ceremony().requested((), drop_past=False), vkeys, quorum, no_witnesses), as_json)


@root.command()
@click.argument("what", type=_WHAT, nargs=-1)
@click.option("--drop-past", is_flag=True, help="Make the previous keys invalid.")
@_witnesses
@_quorum
@_no_witnesses
@_out("request")
@json_option
def request(
    what: tuple[str, ...],
    drop_past: bool,
    vkeys: tuple[str, ...],
    quorum: int | None,
    no_witnesses: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Writes the next document to a file, for the root to sign. WHAT names the keys to replace; without WHAT the
    document is renewed with the same keys, and with the same witnesses unless others are named."""
    document = _ceremony().requested([Rolled(one) for one in what], drop_past=drop_past)
    out.write_bytes(written(_witnessed(document, vkeys, quorum, no_witnesses)))
    show({"request": str(out)}, as_json, f"request for the root: {out}")


@root.command()
@_request_file
@_root_key
@_out("document")
@json_option
def sign(request_file: Path, root_key: Path, out: Path, as_json: bool) -> None:
    """Signs a request. Needs no database and no network."""
    _sign(signed, read_file(request_file, _LARGEST_DOCUMENT), root_key, out)
    show({"document": str(out)}, as_json, f"signed document: {out}")


@root.command()
@click.argument("document_file", type=OLD_FILE)
@json_option
def publish(document_file: Path, as_json: bool) -> None:
    """Puts a signed document into force, and after some seconds the new keys that it names."""
    _publish(_read_jws(document_file, _LARGEST_DOCUMENT), as_json)


def _witnessed(document: RegistryKeys, vkeys: Sequence[str], quorum: int | None, no_witnesses: bool) -> RegistryKeys:
    """The document with these witnesses; with those that it names where no option is given. Raises click.UsageError."""
    if no_witnesses and (vkeys or quorum is not None):
        raise click.UsageError("--no-witnesses together with --witness or --quorum")
    if no_witnesses:
        return replace(document, witnesses=None)
    if bool(vkeys) != (quorum is not None):
        raise click.UsageError("--witness and --quorum belong together")
    if quorum is None:
        return document
    try:
        return replace(document, witnesses=Quorum.of(vkeys, quorum))
    except MalformedToken as error:
        raise click.UsageError(f"--witness: {error}") from error


def _at_once(what: tuple[str, ...], drop_past: bool, as_json: bool) -> None:
    _sign_at_once(_ceremony().requested([Rolled(one) for one in what], drop_past=drop_past), as_json)


def _sign_at_once(document: RegistryKeys, as_json: bool) -> None:
    settings = the_settings()
    _publish(signed(written(document), settings.root_key_file, settings.key_passphrase), as_json)


def _publish(jws: str, as_json: bool) -> None:
    ceremony = _ceremony()
    document = ceremony.publish(jws)
    if len(document.signing_keys) > 1 or document.past_ledger_keys:  # else the previous keys are refused from now on
        say(f"in force; new keys sign in {SETTLED_AFTER} s, when clients know them", error=True)
        time.sleep(SETTLED_AFTER)
    ceremony.put_in_place(document)
    signing = [key.thumbprint for key in document.signing_keys]
    members = {"version": document.version, "signing_keys": signing, "ledger_keys": list(document.ledger_keys)}
    told = f"registry keys version {document.version}: {len(signing)} signing key(s) named"
    if (quorum := document.witnesses) is not None:
        members |= quorum.members()
        told += f", {quorum.needed} of {len(quorum.witnesses)} witness(es) needed"
    show(members, as_json, told)


def _ceremony() -> Ceremony:
    return Ceremony(the_settings(), the_confirmed_registry().store)


@click.group()
def history() -> None:
    """The root's statement that entries are lost for good, and from where the ledger goes on.

    This is the last resort: first look for the lost entries, and bring them back with `restore`. Clients that saw them
    continue by themselves when they read the statement; keys, policies and revocations in those entries are gone.

    With the root key on this host, run `declare`. With the root key offline, run `request` on this host, `sign` on the
    machine with the root key, and `publish` on this host.
    """


@history.command("declare")
@_kept
@json_option
def declare_history(kept: tuple[Path, ...], as_json: bool) -> None:
    """Declares the entries lost that this host remembers and the database does not have."""
    settings = the_settings()
    request = histories.written(_requested_statement(kept))
    _publish_statements([histories.signed(request, settings.root_key_file, settings.key_passphrase)], as_json)


@history.command("request")
@_kept
@_out("request")
@json_option
def request_history(kept: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Writes the statement to a file, for the root to sign."""
    statement = _requested_statement(kept)
    out.write_bytes(histories.written(statement))
    members = {"request": str(out), **_statement_members(statement)}
    show(members, as_json, folded(f"request for the root: {out}\n{_told(statement)}"))


@history.command("sign")
@_request_file
@_root_key
@_out("statement")
@json_option
def sign_history(request_file: Path, root_key: Path, out: Path, as_json: bool) -> None:
    """Signs a request. Needs no database and no network."""
    _sign(histories.signed, read_file(request_file, _LARGEST_STATEMENT), root_key, out)
    show({"statement": str(out)}, as_json, f"signed statement: {out}")


@history.command("publish")
@click.argument("files", type=OLD_FILE, nargs=-1, required=True)
@json_option
def publish_history(files: tuple[Path, ...], as_json: bool) -> None:
    """Writes signed statements into the ledger, oldest first: nodes and clients go on from there."""
    _publish_statements([_read_jws(file, _LARGEST_STATEMENT) for file in files], as_json)


def _requested_statement(kept: Sequence[Path]) -> HistoryStatement:
    return HistoryDeclarations(the_store()).requested(LedgerMemory(the_settings().home).read(), read_notes(kept))


def _publish_statements(statements: Sequence[str], as_json: bool) -> None:
    done = HistoryDeclarations(the_store()).publish(statements)
    say("nodes sign again within seconds; clients go on by themselves", error=True)
    show(
        {"statements": [_statement_members(one) for one in done]},
        as_json,
        folded("\n".join(_told(one) for one in done)),
    )


def _statement_members(statement: HistoryStatement) -> dict[str, object]:
    return {name: getattr(statement, name).to_json() for name in ("common", "lost", "new")}


def _told(statement: HistoryStatement) -> str:
    return f"lost for good: {statement.lost}; back to {statement.common}; goes on from {statement.new}"


def _sign(by: Callable[[bytes, Path, KeyPassphrase], str], request: bytes, root_key: Path, out: Path) -> None:
    out.write_text(by(request, root_key, the_settings().key_passphrase), encoding="ascii")


def _read_jws(file: Path, largest: int) -> str:
    return read_file(file, largest).decode("ascii", "replace").strip()
