"""``peerseal doctor``: whether the settings, folders, clock and registry of this host are as a service needs them, and
what to do where they are not. It changes nothing, registers nothing, and shows no secret."""

import argparse
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.checks.finding import ERROR, OK, WARNING, Check, Finding, error
from peerseal.commands.checks.folders import check_cache_folder, check_key_folder, check_replay_guard, check_workers
from peerseal.commands.checks.host import Host
from peerseal.commands.checks.membership import check_join_token, check_keys, check_policy
from peerseal.commands.checks.proxy import check_proxy
from peerseal.commands.checks.registry import check_clock, check_pin, check_registry, check_tls
from peerseal.commands.checks.settings import check_settings, check_urls
from peerseal.commands.checks.witnesses import check_witnesses
from peerseal.commands.tokens import target_of
from peerseal.errors import ConfigurationError, PeersealError
from peerseal.runtime.terminal import REGISTRY_UNREACHABLE, say, say_json

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("settings", check_settings),
    ("URL", check_urls),
    ("registry", check_registry),
    ("TLS", check_tls),
    ("pin", check_pin),
    ("clock", check_clock),
    ("witnesses", check_witnesses),
    ("key folder", check_key_folder),
    ("cache folder", check_cache_folder),
    ("replay guard", check_replay_guard),
    ("workers", check_workers),
    ("join token", check_join_token),
    ("key", check_keys),
    ("policy", check_policy),
    ("proxy", check_proxy),
)
"""Each check, by the name that its lines begin with, in the order in which one mistake causes the next."""

_LEVELS: Final = (OK, WARNING, ERROR)
_INDENT: Final = " " * (max(map(len, _LEVELS)) + 2 + max(len(name) for name, _ in CHECKS) + 2)
_WIDTH: Final = 80


def add_doctor(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "doctor",
        _examine,
        summary="check this host's settings, folders, clock and registry",
        description="Checks what a service on this host needs, and says what to do. It changes nothing.",
        examples=("peerseal doctor", "peerseal doctor https://shop.example.com/api/orders"),
        exit_codes="0 no errors, 1 errors, 2 wrong usage, 3 the registry cannot be reached",
    )
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help="where others call this service: it calls itself there with a signed GET, which needs a key on this host",
    )


def _examine(arguments: argparse.Namespace) -> int:
    """Prints what the checks find. Raises ConfigurationError for a URL that is none."""
    if arguments.url is not None:
        target_of(arguments.url)
        if "@" in urlsplit(arguments.url).netloc:
            raise ConfigurationError("URL: expected no user name and no password")
    host = Host(os.environ, arguments.url)
    with _log_lines_left_out():
        if arguments.as_json:
            found = tuple(examine(host))
            say_json({"checks": [{"check": name, **finding.to_json()} for name, finding in found]}, indent=2)
        else:
            found = tuple(_said(examine(host)))
    return exit_code(host, [finding for _, finding in found])


def examine(host: Host) -> Iterator[tuple[str, Finding]]:
    """What each check finds, with the check's name."""
    for name, check in CHECKS:
        try:
            for finding in check(host):
                yield name, finding
        except (PeersealError, OSError) as failed:
            yield name, error(str(failed), "correct this first, then run the doctor again")


def exit_code(host: Host, findings: Sequence[Finding]) -> int:
    """0 without an error, 3 where no URL of the registry gave an answer, else 1."""
    if host.asked and not any(asked.answered for asked in host.asked):
        return REGISTRY_UNREACHABLE
    return int(any(finding.level == ERROR for finding in findings))


def _said(found: Iterator[tuple[str, Finding]]) -> Iterator[tuple[str, Finding]]:
    """The same findings, each printed as it comes."""
    for name, finding in found:
        say(*lines_of(name, finding))
        yield name, finding


def lines_of(name: str, finding: Finding) -> Iterator[str]:
    """A finding for a terminal of 80 columns."""
    start = f"{finding.level:{max(map(len, _LEVELS))}}  {name}".ljust(len(_INDENT))
    yield from _wrapped(start, finding.found)
    if finding.remedy:
        yield from _wrapped(f"{_INDENT}-> ", finding.remedy)


def _wrapped(start: str, text: str) -> list[str]:
    rest = " " * len(start)
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False)


@contextmanager
def _log_lines_left_out() -> Iterator[None]:
    """What the SDK logs is among the findings; Python would print it where no logging is configured."""
    log, silent = logging.getLogger("peerseal"), logging.NullHandler()
    log.addHandler(silent)
    try:
        yield
    finally:
        log.removeHandler(silent)
