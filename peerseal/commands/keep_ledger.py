"""``peerseal keep-ledger FOLDER``: keeps a verified mirror of the registry's public ledger, for the day on which the
registry's database is lost.

Exit codes: 0 the mirror is as new as the registry, 2 wrong usage, 3 the registry cannot be reached (with --once), 4 the
ledger contradicts the mirror, or cannot be believed.
"""

import argparse
import os
import threading
from pathlib import Path

from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.mirror import LedgerMirror
from peerseal.commands.monitor import LEDGER_INCONSISTENT, seconds, until_interrupted
from peerseal.errors import DocumentRefused, FetchError
from peerseal.identity.environment import settings_of
from peerseal.runtime.options import check_pin, check_pinned
from peerseal.runtime.terminal import say, say_json
from peerseal.transport.fetch import HttpFetcher, check_urls


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
    parser.add_argument("--registry", metavar="URL", help="[PEERSEAL_REGISTRY_URL]")
    parser.add_argument("--pin", help="thumbprint of the registry's root key [PEERSEAL_REGISTRY_PIN]")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Updates the mirror until it is interrupted, or once. Raises ConfigurationError, and with --once FetchError."""
    settings = settings_of(os.environ)
    urls = arguments.registry or settings.checked("PEERSEAL_REGISTRY_URL", check_urls) or ""
    fetcher = HttpFetcher([url.strip() for url in urls.split(",") if url.strip()])
    pin = arguments.pin or settings.checked("PEERSEAL_REGISTRY_PIN", check_pin)
    check_pinned(pin, loopback_only=fetcher.loopback_only)
    mirror, reader = LedgerMirror(arguments.folder), LedgerReader(fetcher, pin)
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
