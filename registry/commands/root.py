"""``peerseal-registry root``: new keys for the registry, signed by the root, which may be offline."""

import time
from pathlib import Path

import click

from peerseal.runtime.terminal import say
from registry.commands.common import (
    NEW_FILE,
    OLD_FILE,
    json_option,
    read_file,
    show,
    the_confirmed_registry,
    the_settings,
)
from registry.services.setup.ceremony import SETTLED_AFTER, Ceremony, NotSettled, Rolled, signed, written

_LARGEST = 8 * 1024 * 1024
"""Bytes of a request for the root, and of the signed document."""
_WHAT = click.Choice([rolled.value for rolled in Rolled])


@click.group()
def root() -> None:
    """New signing and ledger keys, and the removal of stolen ones.

    With the root key on this host, run `roll` or `drop`. With the root key offline, run `request` on this host, `sign`
    on the machine with the root key, and `publish` on this host.
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
@click.argument("what", type=_WHAT, nargs=-1)
@click.option("--drop-past", is_flag=True, help="Make the previous keys invalid.")
@click.option("--out", type=NEW_FILE, required=True, help="File for the request.")
@json_option
def request(what: tuple[str, ...], drop_past: bool, out: Path, as_json: bool) -> None:
    """Writes the next document to a file, for the root to sign. WHAT names the keys to replace; without WHAT the
    document is renewed with the same keys."""
    out.write_bytes(written(_ceremony().requested([Rolled(one) for one in what], drop_past=drop_past)))
    show({"request": str(out)}, as_json, f"request for the root: {out}")


@root.command()
@click.argument("request_file", type=OLD_FILE)
@click.option("--root-key", type=NEW_FILE, required=True, help="The root key's file.")
@click.option("--out", type=NEW_FILE, required=True, help="File for the document.")
@json_option
def sign(request_file: Path, root_key: Path, out: Path, as_json: bool) -> None:
    """Signs a request. Needs no database and no network."""
    jws = signed(read_file(request_file, _LARGEST), root_key, the_settings().key_passphrase)
    out.write_text(jws, encoding="ascii")
    show({"document": str(out)}, as_json, f"signed document: {out}")


@root.command()
@click.argument("document_file", type=OLD_FILE)
@json_option
def publish(document_file: Path, as_json: bool) -> None:
    """Puts a signed document into force, and after some seconds the new keys that it names."""
    _publish(read_file(document_file, _LARGEST).decode("ascii", "replace").strip(), as_json)


def _at_once(what: tuple[str, ...], drop_past: bool, as_json: bool) -> None:
    document = _ceremony().requested([Rolled(one) for one in what], drop_past=drop_past)
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
    show(members, as_json, f"registry keys version {document.version}: {len(signing)} signing key(s) named")


def _ceremony() -> Ceremony:
    return Ceremony(the_settings(), the_confirmed_registry().store)
