"""``peerseal mirror``: all that the registry publishes, as files; ``peerseal keep-ledger``: its ledger alone."""

import argparse
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple

from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.mirror import LedgerMirror
from peerseal.audit.mirror_metrics import MirrorMetrics
from peerseal.audit.public_mirror import PublicMirror
from peerseal.audit.serving import served
from peerseal.audit.waiting_peers import WAITING, WaitingPeers
from peerseal.commands.arguments import Subcommands, add_command, seconds
from peerseal.commands.registry_options import add_registry_options, registry_of, until_interrupted
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, PeersealError
from peerseal.protocol.documents.key_set import LONGEST_LIFE
from peerseal.runtime.descriptors import connections_allowed
from peerseal.runtime.files import is_of_disk
from peerseal.runtime.settings import whole_number
from peerseal.runtime.terminal import say, say_json

LEDGER_INCONSISTENT: Final = 4
"""The exit code where the ledger contradicts what was seen before, or the registry is another one."""
SAID_EVERY: Final = 60.0
"""Seconds after which the command says again why the mirror is not updated."""
_EXIT_CODES: Final = (
    "0 interrupted, or up to date; 2 wrong usage or settings; 4 the ledger contradicts the mirror, or the registry is"
    " not the pinned one. With --once also: 1 a document is refused, or the disk is full; 3 registry not reached."
    " Without it the command says so, and tries again"
)


class _Wait(NamedTuple):
    """How to wait until an update is due, for that many seconds where nothing tells earlier; and how to end the wait
    early, where the event alone does not."""

    until_due: Callable[[float, threading.Event], object] = lambda interval, ended: ended.wait(interval)
    interrupt: Callable[[], None] = lambda: None


def add_mirror(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "mirror",
        _mirror,
        summary="keep a verified copy of all that the registry publishes",
        description="Keeps the public documents and the ledger in FOLDER under the registry's own paths, for any web"
        " server. Peers name the server in PEERSEAL_REGISTRY_URL, after the registry, and need no trust in it.",
        examples=(
            "peerseal mirror /srv/mirror --registry https://registry:8443",
            "peerseal mirror /srv/mirror --serve 127.0.0.1:8080 --json",
        ),
        exit_codes=_EXIT_CODES,
        as_json="print a JSON object for each update",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two updates, where the registry does not tell of changes [1]",
    )
    parser.add_argument("--once", action="store_true", help="update once and exit")
    statements = parser.add_mutually_exclusive_group()
    statements.add_argument(
        "--no-statements", action="store_true", help="leave out the statements of single keys, which events need"
    )
    statements.add_argument(
        "--statements-for",
        type=_past_lives,
        default=math.inf,
        metavar="TIME",
        help="leave out those of keys that were admitted earlier than, such as, 60d ago; 30d at least",
    )
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="write metrics in Prometheus' text format")
    parser.add_argument(
        "--serve", metavar="HOST:PORT", help="serve FOLDER over HTTP, for a small site, and tell peers of changes"
    )
    parser.add_argument(
        "--waiting",
        type=_count,
        default=WAITING,
        metavar="NUMBER",
        help=f"peers that wait for changes at once, at most; others poll [{WAITING}]",
    )
    add_registry_options(parser)


def _past_lives(text: str) -> float:
    """An argument that is a time no shorter than a key's life. Raises argparse.ArgumentTypeError."""
    value = seconds(text)
    if value < LONGEST_LIFE:
        raise argparse.ArgumentTypeError(f"{text!r:.60}: expected 30d or more: a key may live so long")
    return value


def _count(text: str) -> int:
    """An argument that is a number, or 0. Raises argparse.ArgumentTypeError."""
    value = whole_number(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r:.60}: expected a number such as 1000")
    return value


def _mirror(arguments: argparse.Namespace) -> int:
    """Updates the mirror until it is interrupted, or once. Raises ConfigurationError, and as `_keep_up`."""
    fetcher, pin = registry_of(arguments)
    statements_for = 0.0 if arguments.no_statements else arguments.statements_for
    mirror = PublicMirror(arguments.folder, fetcher, pin, statements_for=statements_for)
    if arguments.serve is None:
        return _keep_mirror(arguments, mirror, None, _Wait())
    with (
        WaitingPeers(connections_allowed(arguments.waiting)) as peers,
        served(arguments.folder, arguments.serve, peers),
    ):
        return _keep_mirror(arguments, mirror, peers, _Wait(mirror.wait, fetcher.hang_up))


def _keep_mirror(arguments: argparse.Namespace, mirror: PublicMirror, peers: WaitingPeers | None, wait: "_Wait") -> int:
    metrics = MirrorMetrics(arguments.metrics, peers)

    def update() -> None:
        try:
            found = mirror.update()
        except PeersealError:
            metrics.failed()
            raise
        metrics.updated(found)  # with the peers that wait until now
        if peers is not None and mirror.newest is not None:
            peers.tell(mirror.newest)
        if arguments.as_json:
            say_json({**asdict(found), "folder": str(arguments.folder)})
        elif found.written or arguments.once:
            say(f"{found.entries} entries, {found.services} services, {found.written} documents written")
        if found.failed:
            say(f"{found.failed} documents could not be had", error=True)

    return _keep_up(arguments, update, wait)


def add_keep_ledger(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "keep-ledger",
        _keep_ledger,
        summary="keep a verified mirror of the registry's public ledger",
        description="Keeps the registry's public ledger in FOLDER, from which a lost registry can be restored.",
        examples=(
            "peerseal keep-ledger /var/lib/ledger --registry https://registry:8443",
            "peerseal keep-ledger /var/lib/ledger --once --json",
        ),
        exit_codes=_EXIT_CODES,
        as_json="print a JSON object for each update",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--interval", type=seconds, default=60.0, metavar="SECONDS", help="time between two updates [60]"
    )
    parser.add_argument("--once", action="store_true", help="update once and exit")
    add_registry_options(parser)


def _keep_ledger(arguments: argparse.Namespace) -> int:
    """Updates the mirror until it is interrupted, or once. Raises ConfigurationError, and as `_keep_up`."""
    mirror, reader = LedgerMirror(arguments.folder), LedgerReader(*registry_of(arguments))

    def update() -> None:
        entries = mirror.update(reader)
        if arguments.as_json:
            say_json({"entries": entries, "folder": str(arguments.folder)})
        else:
            say(f"{entries} entries")

    return _keep_up(arguments, update, _Wait())


def _keep_up(arguments: argparse.Namespace, update: Callable[[], None], wait: "_Wait") -> int:
    """Updates at intervals until the process is interrupted, or once. Returns the exit code: `LEDGER_INCONSISTENT` for
    an error that no later update ends. Another one is told, and with --once raised: as FetchError, or as it is for a
    document of the registry itself and for the disk. Raises ConfigurationError."""
    ended = threading.Event() if arguments.once else until_interrupted(wait.interrupt)
    complaints = _Complaints()
    while True:
        try:
            update()
            complaints.end()
        except PeersealError as error:
            if _is_final(error):
                say(f"Error: {error}; {arguments.folder} is unchanged", error=True)
                return LEDGER_INCONSISTENT
            if isinstance(error, ConfigurationError) and not is_of_disk(error.__cause__):
                raise
            if arguments.once:
                raise _as_told_once(error) from error
            complaints.tell(error)
        if not arguments.once:
            wait.until_due(arguments.interval, ended)
        if arguments.once or ended.is_set():
            return 0


class _Complaints:
    """Says why the mirror is not updated: each reason when it begins, and then once in `SAID_EVERY` seconds."""

    def __init__(self) -> None:
        self._code = ""
        self._said_at = -SAID_EVERY

    def tell(self, error: PeersealError) -> None:
        now = time.monotonic()
        if error.code != self._code or now - self._said_at >= SAID_EVERY:
            self._code, self._said_at = error.code, now
            say(f"not updated: {error}", error=True)

    def end(self) -> None:
        """There is no reason any more."""
        self._code = ""


def _as_told_once(error: PeersealError) -> PeersealError:
    """The error as --once raises it: what a mirror alone refuses is no refusal of the registry."""
    of_registry = isinstance(error, DocumentRefused) and not error.by_mirror
    if of_registry or isinstance(error, ConfigurationError):
        return error
    return FetchError(f"the registry is not reached: {error}")


def _is_final(error: PeersealError) -> bool:
    """Whether the registry shows another history than the mirror has, or is another registry."""
    return isinstance(error, DocumentRefused) and (error.code == "document_inconsistent" or error.of_another_registry)
