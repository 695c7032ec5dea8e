"""What commands print. Nothing that came from a registry, a ledger or a file reaches a terminal as it is: an escape
sequence could hide an alert, and a line break could forge a line.

``| head`` closes the pipe, and a closed standard output takes nothing: `say` ends the command quietly in the first case
(`PIPE_CLOSED`) and goes on in the second.
"""

import json
import os
import sys
from typing import Any, TextIO

PIPE_CLOSED = 141
"""The exit code where the reader of the output is gone: 128 and SIGPIPE, as shells show it."""
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and SIGINT."""


def printable(text: object) -> str:
    """The text with everything escaped that is no visible character or blank: control characters, line and paragraph
    separators, marks that turn the direction of writing, and half surrogate pairs."""
    return "".join(one if one.isprintable() else _escaped(one) for one in str(text))


def say(*lines: object, error: bool = False) -> None:
    """Print each line, escaped, on standard output or, with ``error``, on standard error. What the stream's encoding
    lacks is escaped too. Raises BrokenPipeError where the reader is gone."""
    stream: TextIO | None = sys.stderr if error else sys.stdout
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{printable(line)}\n" for line in lines)
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print JSON in ASCII: every other character is escaped as JSON does it."""
    say(*json.dumps(value, indent=indent).replace("\x7f", "\\u007f").split("\n"))


def on_terminal() -> bool:
    """Whether somebody looks on at standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def abandon_output() -> None:
    """After a BrokenPipeError: the interpreter would try to flush standard output once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
    os.close(nowhere)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")
