"""``peerseal-registry restore``."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from peerseal.protocol.documents.history_statement import Head
from peerseal.runtime.terminal import say
from registry.commands.common import (
    end_progress,
    json_option,
    read_notes,
    show_json,
    show_progress,
    the_settings,
    the_store,
)
from registry.services.authority.ledger_memory import FILE, LedgerMemory, Remembered
from registry.services.recovery.histories import is_in
from registry.services.recovery.public_copy import Source
from registry.services.recovery.restore import Lost, Restored
from registry.services.recovery.restore import restore as restored


@click.command()
@click.option(
    "--from",
    "places",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="A copy of the registry's public answers: a mirror's URL, or a folder. May be repeated: the longest is taken.",
)
@click.option(
    "--checkpoint",
    "kept",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A checkpoint that somebody kept: the copy must reach as far. May be repeated.",
)
@click.option(
    "--drop-branch",
    is_flag=True,
    help="Remove the entries that nodes wrote after the database had lost others: those that only the database has.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@json_option
def restore(places: tuple[str, ...], kept: tuple[Path, ...], drop_branch: bool, dry_run: bool, as_json: bool) -> None:
    """Brings a database that came back from a backup up to the ledger's public copies.

    Before any node is started on it: a registry that went on from the backup would contradict what clients have seen.
    Entries are written byte for byte; revoked keys stay revoked, spent join tokens spent. What no copy holds is named.
    May be repeated. Ends with 0: restored, or nothing to do; 1: refused, and nothing written; 3: the database or a
    mirror cannot be reached.
    """
    notes = read_notes(kept)
    sources, settings = [Source.of(place) for place in places], the_settings()
    store, memory = the_store(), LedgerMemory(settings.home)
    remembered = memory.read()
    if remembered is not None and drop_branch and is_in(store, remembered.head):
        remembered = None  # this host took part in what is to be dropped
    reached = 0 if remembered is None else remembered.size
    if remembered is not None and remembered.note is not None:
        notes[f"{settings.home}/{FILE}"] = remembered.note
    done = restored(
        store,
        settings.limits,
        sources,
        kept=notes,
        reached=reached,
        drop_branch=drop_branch,
        dry_run=dry_run,
        progress=show_progress,
    )
    end_progress()
    if done.dropped and not dry_run:
        now = int(time.time())
        memory.replace(Remembered(done.size, Head(done.size, done.root), None, now, declared_at=now))
    if as_json:
        show_json(done.to_json())
    else:
        _show(done)


def _show(done: Restored) -> None:
    told = done.to_json()
    head = f"{done.size} entries, root hash {told['root']}"
    if not done.anything:
        say(f"nothing to do: {head}; {done.source} has no more")
        _show_closed(done)
        return
    for entry in done.dropped:
        say(f"dropped: entry {entry}")
    say(f"entries {told['first']} to {told['last']}, byte for byte, from {done.source}")
    if done.rows:
        say("rows put right: " + ", ".join(f"{table} {count}" for table, count in done.rows.items()))
    for line in _lost(done.lost):
        say(f"lost: {line}")
    _show_closed(done)
    say(f"{'dry run, nothing is written; would be' if done.dry_run else 'restored'}: {head}")


def _show_closed(done: Restored) -> None:
    if done.closed_until is not None:
        until = datetime.fromtimestamp(done.closed_until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        say(f"until {until} calls that services sign are answered 503: replays could not be told")


def _lost(lost: Lost) -> Iterator[str]:
    """What is in no copy, and what there is to do about it."""
    yield "what the audit trail said since the backup, and who waited for an operator"
    if lost.evidence:
        yield f"the evidence of {lost.evidence} entries, which verify calls unproven from now on"
    for token, service in lost.join_tokens:
        yield f"the key of join token {token} for {service}, which admits nobody now: make another"
    for service, entry in lost.policies:
        again = f"peerseal-registry policy set {service} --if-match {entry} --file FILE"
        yield f"the restricted policy of {service}; nothing is signed in its place: {again}"
    if lost.applicants:
        yield f"{lost.applicants} applicants of the backup: they apply again"
