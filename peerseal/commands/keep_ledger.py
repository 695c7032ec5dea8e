"""``peerseal keep-ledger FOLDER``: keeps a verified mirror of the registry's public ledger, for the day on which the
registry's database is lost.

Exit codes: 0 the mirror is as new as the registry, 2 wrong usage, 3 the registry cannot be reached (with --once), 4 the
ledger contradicts the mirror, or cannot be believed.
"""

import argparse
import threading
from pathlib import Path

from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.mirror import LedgerMirror
from peerseal.commands.registry_options import (
    LEDGER_INCONSISTENT,
    add_registry_options,
    registry_of,
    seconds,
    until_interrupted,
)
from peerseal.errors import DocumentRefused, FetchError
from peerseal.runtime.terminal import say, say_json


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "keep-ledger",
        help="keep a verified mirror of the registry's public ledger",
        description="Keeps the registry's public ledger in FOLDER, from which a lost registry can be restored.",
        epilog="Exit codes: 0 up to date, 3 registry not reached, 4 the ledger contradicts the mirror.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--interval", type=seconds, default=60.0, metavar="SECONDS", help="time between two updates [60]"
    )
    parser.add_argument("--once", action="store_true", help="update once and exit")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print a JSON object for each update")
    add_registry_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Updates the mirror until it is interrupted, or once. Raises ConfigurationError, and with --once FetchError."""
    mirror, reader = LedgerMirror(arguments.folder), LedgerReader(*registry_of(arguments))
    ended = threading.Event() if arguments.once else until_interrupted()
    while True:
        try:
            _show(mirror.update(reader), arguments)
        except (DocumentRefused, FetchError) as error:
            if isinstance(error, DocumentRefused) and not error.by_mirror:
                say(f"Error: {error}; {arguments.folder} is unchanged", error=True)
                return LEDGER_INCONSISTENT
            if arguments.once:
                raise FetchError(f"the registry is not reached: {error}") from error
            say(f"not reached: {error}", error=True)
        if arguments.once or ended.wait(arguments.interval):
            return 0


def _show(entries: int, arguments: argparse.Namespace) -> None:
    if arguments.as_json:
        say_json({"entries": entries, "folder": str(arguments.folder)})
    else:
        say(f"{entries} entries")
