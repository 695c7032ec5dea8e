"""How the commands of ``peerseal`` declare themselves: one form of help, with examples and exit codes."""

import argparse
import logging
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from peerseal.runtime.settings import duration
from peerseal.runtime.terminal import LineFormatter, log_to_stderr, say

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `argparse.ArgumentParser.add_subparsers` returns."""
_WIDTH = 78


class CommandParser(argparse.ArgumentParser):
    """Prints its help and version as commands print: argparse ignores that standard output takes nothing. Raises
    OSError then."""

    def print_help(self, file: Any = None) -> None:
        """See argparse.ArgumentParser."""
        if file is None:
            say(*self.format_help().splitlines())
        else:
            super().print_help(file)


class ShowVersion(argparse.Action):
    """The action of ``--version``, which is the constant of the argument."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """See argparse.Action."""
        say(self.const)
        parser.exit()


def log_warnings() -> None:
    """Shows warnings as a command's own words."""
    log_to_stderr(logging.WARNING, LineFormatter("%(message)s"))


def add_command(
    commands: Subcommands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: Sequence[str],
    notes: str = "",
    exit_codes: str | None = None,
    as_json: str = "as JSON",
    log: Callable[[], None] = log_warnings,
) -> argparse.ArgumentParser:
    """Adds a command with ``--json`` (whose help is ``as_json``). ``summary`` is for the list of all commands;
    ``run`` returns the exit code. An example may have several lines. ``notes`` stand before the examples. ``log`` sets
    up the log, once: `logging.basicConfig` ignores a second call."""
    shown = [line for example in examples for line in example.splitlines()]
    epilog = f"{notes}\n\n" if notes else ""
    epilog += "\n".join(("examples:", *(f"  {line}" for line in shown)))
    if exit_codes is not None:
        epilog += "\n\n" + textwrap.fill(f"exit codes: {exit_codes}", _WIDTH, subsequent_indent="  ")
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, _WIDTH),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help=as_json)
    parser.set_defaults(run=run, log=log, refuse=parser.error)
    return parser


def seconds(text: str) -> float:
    """An argument that is a time, in seconds or such as ``10m``. Raises argparse.ArgumentTypeError."""
    value = seconds_or_none(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r:.60}: expected more than no time, such as 90 or 10m")
    return value


def seconds_or_none(text: str) -> float:
    """As `seconds`, or no time at all, such as ``0``."""
    value = duration(text)
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r:.60}: expected a duration such as 90 or 10m")
    return value
