"""``peerseal monitor SERVICE``: reads the registry's ledger and reports changes that the service's owner did not make.

Exit codes: 0 nothing to report, 1 alerts were raised, 2 wrong usage, 3 the registry cannot be reached (with --once), 4
the ledger contradicts the one that was seen before."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from peerseal.audit.monitor import ALERT, GRACE, INCONSISTENT, UNREACHABLE, Alert, Monitor
from peerseal.audit.monitor_state import MonitorState, kids_in, load_state, save_state
from peerseal.commands.registry_options import (
    LEDGER_INCONSISTENT,
    add_registry_options,
    registry_of,
    seconds,
    until_interrupted,
)
from peerseal.commands.webhook import Webhook
from peerseal.errors import ConfigurationError
from peerseal.identity.environment import settings_of
from peerseal.protocol.names import check_service, split_kid
from peerseal.runtime.settings import read_bytes
from peerseal.runtime.terminal import on_terminal, say, say_json

ALERTS_RAISED = 1
REGISTRY_UNREACHABLE = 3
_LARGEST_LIST = 1024 * 1024
"""Bytes of a file of kids: 1,500 of the longest have 500 KiB."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "monitor",
        help="report keys that the owner did not register",
        description="Reads the registry's ledger and reports changes to SERVICE that its owner did not make.",
        epilog="Exit codes: 0 nothing to report, 1 alerts raised, 3 registry not reached, 4 ledger inconsistent.",
    )
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("--known", action="append", default=[], metavar="KID", help="a key of the owner; repeatable")
    parser.add_argument(
        "--known-file", type=Path, metavar="FILE", help="a file of such kids, one a line, read at each look"
    )
    parser.add_argument("--key-dir", type=Path, metavar="DIR", help="key folder of the service [PEERSEAL_KEY_DIR]")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="file for the progress, so that a restart continues there"
    )
    parser.add_argument("--webhook", metavar="URL", help="URL that gets each report by POST, as JSON")
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help="time between two looks [1]")
    parser.add_argument(
        "--grace", type=seconds, default=GRACE, metavar="SECONDS", help="time without an answer before an alert [60]"
    )
    parser.add_argument("--once", action="store_true", help="look once and exit")
    add_registry_options(parser)
    parser.add_argument("--json", action="store_true", dest="as_json", help="JSON lines, on a terminal too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Looks until it is interrupted, or once. Raises ConfigurationError or InvalidName."""
    monitor = _monitor(arguments)
    webhook = Webhook(arguments.webhook) if arguments.webhook else None
    ended, exit_code = until_interrupted(), 0
    while not ended.is_set():
        alerts = monitor.look()
        for alert in alerts:
            _show(alert, as_json=arguments.as_json or not on_terminal())
            if webhook is not None:
                webhook.post(alert.to_json())
        if arguments.state is not None:
            save_state(arguments.state, monitor.state)
        kinds = {alert.kind for alert in alerts if alert.level == ALERT}
        exit_code = ALERTS_RAISED if kinds else exit_code
        if INCONSISTENT in kinds:
            return LEDGER_INCONSISTENT
        if arguments.once:
            return REGISTRY_UNREACHABLE if UNREACHABLE in kinds else exit_code
        ended.wait(arguments.interval)
    return exit_code


def _monitor(arguments: argparse.Namespace) -> Monitor:
    service = check_service(arguments.service)
    state = None if arguments.state is None else load_state(arguments.state, service)
    state = state or MonitorState(service)
    fetcher, pin = registry_of(arguments, state.pin)
    for kid in arguments.known:
        split_kid(kid)
    grace = 0.0 if arguments.once else arguments.grace
    return Monitor(fetcher, replace(state, pin=pin), own_keys=_own_keys(arguments), grace=grace)


def _own_keys(arguments: argparse.Namespace) -> Callable[[], frozenset[str]]:
    """Gives the kids that the owner names, read at each look: keys rotate."""
    folder = arguments.key_dir or settings_of(os.environ).path("PEERSEAL_KEY_DIR")
    listed, named = arguments.known_file, frozenset(arguments.known)
    if listed is not None and not listed.is_fifo():  # what was read of a pipe is gone
        _kids_listed_in(listed)  # report a mistake in it now, even if the registry does not answer

    def own_keys() -> frozenset[str]:
        kids = named
        if folder:
            kids |= kids_in(Path(folder), arguments.service)
        if listed is not None:
            kids |= _kids_listed_in(listed)
        return kids

    return own_keys


def _kids_listed_in(file: Path) -> frozenset[str]:
    try:
        return listed_kids(read_bytes(file, str(file), _LARGEST_LIST).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text") from error


def listed_kids(text: str) -> frozenset[str]:
    """The kids in a file, one a line; what follows a ``#`` is a comment. Raises InvalidName for anything but a
    kid: ignoring it would raise an alert for the owner's key."""
    kids = (line.partition("#")[0].strip().strip("\"'") for line in text.splitlines())
    return frozenset(kid for kid in kids if kid and split_kid(kid))


def _show(alert: Alert, *, as_json: bool) -> None:
    if as_json:
        say_json(alert.to_json())
        return
    at = datetime.fromtimestamp(alert.at, UTC)
    about = "" if alert.entry is None else f" entry {alert.entry.seq} {alert.entry.kid or ''}"
    say(f"{at:%Y-%m-%dT%H:%M:%SZ} {alert.level.upper()} {alert.kind}{about}: {alert.detail}")
