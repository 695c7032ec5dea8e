"""``peerseal``: the commands of whoever owns a service.

Each command is a function that adds its arguments to a parser, and one that does the work and returns the exit code.
Exit codes: 0 done, 2 wrong usage, 3 the registry cannot be reached, 130 after Ctrl-C, 141 where the reader of the
output is gone; others are the command's own.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version

from peerseal.commands import assertion, keep_ledger, monitor
from peerseal.errors import ConfigurationError, FetchError, InvalidName, PeersealError, TrustUnavailable
from peerseal.runtime.terminal import INTERRUPTED, PIPE_CLOSED, abandon_output, say

USAGE = 2
UNREACHABLE = 3

COMMANDS: tuple[Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None], ...] = (
    assertion.add_to,
    keep_ledger.add_to,
    monitor.add_to,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse ends the process with 2 for arguments it cannot read."""
    parser = argparse.ArgumentParser(prog="peerseal", description="Keys and calls of a service that uses Peerseal.")
    parser.add_argument("--version", action="version", version=f"peerseal {version('peerseal')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except BrokenPipeError:
        abandon_output()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ConfigurationError, InvalidName) as error:
        return _failed(error, USAGE)
    except (FetchError, TrustUnavailable) as error:
        return _failed(error, UNREACHABLE)
    except PeersealError as error:
        return _failed(error, 1)


def _failed(error: PeersealError, code: int) -> int:
    say(f"Error: {error}", error=True)
    return code
