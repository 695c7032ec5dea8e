"""``peerseal-registry verify`` and ``restore``."""

import time
from collections.abc import Iterator
from pathlib import Path

import click

from peerseal.protocol.documents.history_statement import Head
from peerseal.runtime.terminal import say, say_folded
from peerseal.runtime.times import rfc3339
from registry.commands.common import (
    checkpoints_option,
    end_progress,
    json_option,
    read_notes,
    show_json,
    show_progress,
    the_settings,
    the_store,
)
from registry.services.authority.ledger_memory import FILE, LedgerMemory, Remembered
from registry.services.recovery import restore as restoring
from registry.services.recovery import verify as verifying
from registry.services.recovery.histories import is_in
from registry.services.recovery.parallel_checks import MOST, processors
from registry.services.recovery.public_copy import Source
from registry.services.recovery.restore import Lost, Restored


@click.command()
@checkpoints_option("A kept checkpoint: the ledger must begin with it.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Processes that check signatures, 70 MB each. Default: the processors that this one may use, {MOST} at most.",
)
@json_option
def verify(kept: tuple[Path, ...], processes: int | None, as_json: bool) -> None:
    """Replays the whole ledger and compares every row of the database with it.

    A million keys take some minutes on two processors.
    Ends with 0 if they agree, and with 1 if they differ; every row that differs is named.
    """
    notes = read_notes(kept)
    found = verifying.verify(
        the_store(),
        the_settings().limits,
        checkpoints=notes,
        progress=show_progress,
        processes=processes or min(processors(), MOST),
    )
    end_progress()
    if as_json:
        show_json(found.to_json())
    else:
        _show_verified(found)
    if not found.whole:
        click.get_current_context().exit(1)


def _show_verified(found: verifying.Verified) -> None:
    for difference in found.differences:
        say_folded(str(difference))
    if found.unbound:
        say(f"{found.unbound} vouchers are for bodies in a spelling of their own: their signatures are good")
    if found.unproven:
        say(f"{found.unproven} entries are unproven: their evidence was lost before a restore")
    state = "whole" if found.whole else f"NOT WHOLE, {len(found.differences)} differences"
    say(f"{state}: {found.size} entries, root hash {found.to_json()['root']}")


@click.command()
@click.option(
    "--from",
    "places",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="A copy of the registry's public answers: a mirror's URL, or a folder. May be repeated: the longest is taken.",
)
@checkpoints_option("A kept checkpoint: the copy must reach as far.")
@click.option(
    "--drop-branch",
    is_flag=True,
    help="Remove the entries that only the database has: nodes wrote them after it had lost others.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@json_option
def restore(places: tuple[str, ...], kept: tuple[Path, ...], drop_branch: bool, dry_run: bool, as_json: bool) -> None:
    """Adds the entries of public copies of the ledger to a database that came back from a backup.

    Run it before any node starts on the database: a registry that went on from the backup would contradict what clients
    have seen. Entries are written byte for byte; revoked keys stay revoked, spent join tokens spent. Data that no copy
    holds is named. May be repeated. Ends with 0: restored, or nothing to do; 1: refused, and nothing written; 3: the
    database or a mirror cannot be reached.
    """
    notes, settings = read_notes(kept), the_settings()
    sources = [Source.of(place) for place in places]
    store, memory = the_store(), LedgerMemory(settings.home)
    remembered = memory.read()
    if remembered is not None and drop_branch and is_in(store, remembered.head):
        remembered = None  # this host wrote the branch that is to be dropped
    if remembered is not None and remembered.note is not None:
        notes[f"{settings.home}/{FILE}"] = remembered.note
    done = restoring.restore(
        store,
        settings.limits,
        sources,
        kept=notes,
        reached=0 if remembered is None else remembered.size,
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
        _show_restored(done)


def _show_restored(done: Restored) -> None:
    members = done.to_json()
    head = f"{done.size} entries, root hash {members['root']}"
    if not done.anything:
        say(f"nothing to do: {head}; {done.source} has no more")
        _show_closed(done)
        return
    for entry in done.dropped:
        say(f"dropped: entry {entry}")
    say(f"entries {members['first']} to {members['last']}, byte for byte, from {done.source}")
    if done.rows:
        say_folded("rows put right: " + ", ".join(f"{table} {count}" for table, count in done.rows.items()))
    for line in _lost(done.lost):
        say_folded(f"lost: {line}")
    _show_closed(done)
    say_folded(f"{'dry run, nothing is written; would be' if done.dry_run else 'restored'}: {head}")


def _show_closed(done: Restored) -> None:
    if done.closed_until is not None:
        until = rfc3339(done.closed_until)
        say_folded(f"until {until} calls that services sign are answered 503: replays could not be told")


def _lost(lost: Lost) -> Iterator[str]:
    """The data that is in no copy, and what to do about it."""
    yield "the audit trail since the backup, and the applicants of that time"
    if lost.evidence:
        yield f"the evidence of {lost.evidence} entries, which verify calls unproven from now on"
    for token, service in lost.join_tokens:
        yield f"the key of join token {token} for {service}, which admits no key now: make another token"
    for service, entry in lost.policies:
        again = f"peerseal-registry policy set {service} --if-match {entry} --file FILE"
        yield f"the restricted policy of {service}; nothing is signed in its place: {again}"
    if lost.applicants:
        yield f"{lost.applicants} applicants of the backup: they must apply again"
