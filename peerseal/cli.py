"""``peerseal``: the commands for the owner of a service.

Each command is a function that adds its arguments to a parser, and one that does the work and returns the exit code.
Exit codes: 0 done, 2 wrong usage, 3 the registry cannot be reached, 130 after Ctrl-C, 141 when
the reader of the output is gone; others are the command's own.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from peerseal.commands.assertion import add_assertion
from peerseal.commands.ledger import add_keep_ledger, add_monitor
from peerseal.errors import ConfigurationError, FetchError, InvalidName, PeersealError, TrustUnavailable
from peerseal.runtime.terminal import LineFormatter, ended_quietly, say

USAGE = 2
UNREACHABLE = 3

COMMANDS: tuple[Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None], ...] = (
    add_assertion,
    add_keep_ledger,
    add_monitor,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code. Raises SystemExit for arguments that argparse cannot read (2), and as
    `peerseal.runtime.terminal.ended_quietly`."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())
    with ended_quietly():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="peerseal", description="Tools for the owner of a service that uses Peerseal."
    )
    parser.add_argument("--version", action="version", version=f"peerseal {version('peerseal')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    parsed = parser.parse_args(_with_pin_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(parsed.run(parsed))
    except (ConfigurationError, InvalidName) as error:
        return _failed(error, USAGE)
    except (FetchError, TrustUnavailable) as error:
        return _failed(error, UNREACHABLE)
    except PeersealError as error:
        return _failed(error, 1)


def _with_pin_joined(arguments: Sequence[str]) -> list[str]:
    """``--pin VALUE`` as ``--pin=VALUE``: a thumbprint may begin with a dash, and argparse takes such a value for an
    option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--pin":
            joined[-1] = f"--pin={argument}"
        else:
            joined.append(argument)
    return joined


def _failed(error: PeersealError, code: int) -> int:
    say(f"Error: {error}", error=True)
    return code
