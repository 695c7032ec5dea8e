"""Output of commands. Text from a registry, a ledger or a file is escaped: an escape sequence could hide an alert, and
a line break could forge a line.

``| head`` closes the pipe, and a closed standard output takes nothing: a command ends quietly in the first case
(`PIPE_CLOSED`) and goes on in the second.
"""

import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from peerseal.errors import printable as printable

PIPE_CLOSED = 141
"""The exit code where the reader of the output is gone: 128 and SIGPIPE, as shells show it."""
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and SIGINT."""
FAILED = 1
"""The exit code where the operating system refuses something, such as to write to a full disk."""
REGISTRY_UNREACHABLE = 3
"""The exit code where the registry cannot be reached, or is not the pinned one."""


def say(*lines: object, error: bool = False) -> None:
    """Print each line, escaped, on standard output or, with ``error``, on standard error. Characters that the stream's
    encoding lacks are escaped too. Raises BrokenPipeError where the reader is gone."""
    stream: TextIO | None = sys.stderr if error else sys.stdout
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{printable(line)}\n" for line in lines)
    with naming("standard error" if error else "standard output"):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


@contextmanager
def naming(stream: str) -> Iterator[None]:
    """Adds the name of the stream to the system's errors: writing to a descriptor names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or stream
        raise


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print JSON in ASCII: every other character is escaped as JSON does it."""
    say(*json.dumps(value, indent=indent).replace("\x7f", "\\u007f").split("\n"))


def takes(text: str) -> bool:
    """Whether the encoding of standard output has all these characters."""
    try:
        text.encode((sys.stdout and sys.stdout.encoding) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def terminal_width() -> int:
    """The columns of the terminal, or those that the variable COLUMNS says; 80 where neither is known."""
    return shutil.get_terminal_size().columns


def folded(text: str) -> str:
    """The text for people: on a terminal, lines that are too long for it continue on the next, indented by two. No word
    is broken."""
    if not on_terminal():
        return text
    wrapper = textwrap.TextWrapper(
        terminal_width(), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def say_folded(sentence: str) -> None:
    """Print a sentence, escaped and `folded`."""
    say(*folded(printable(sentence)).split("\n"))


@contextmanager
def ended_quietly() -> Iterator[None]:
    """Runs a command so that it ends without a traceback when the operating system ends it.

    Raises SystemExit: `PIPE_CLOSED` where the reader of the output is gone, `INTERRUPTED` after Ctrl-C, `FAILED` with a
    line on standard error where a file, or standard output itself, cannot be read or written.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                with naming("standard output"):  # at the interpreter's end it is too late for an exit code
                    sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()
        sys.exit(PIPE_CLOSED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        _complain(error)
        _abandon_output()
        sys.exit(FAILED)


class LineFormatter(logging.Formatter):
    """Formats log lines so that no quoted text can forge another line or control a terminal: a message is one line, and
    the lines of a traceback are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """See logging.Formatter."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """See logging.Formatter."""
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))


def log_to_stderr(level: int, formatter: logging.Formatter, *filters: logging.Filter) -> None:
    """Show log lines from that level on. The filters see each record."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    for each in filters:
        handler.addFilter(each)
    logging.basicConfig(level=level, handlers=[handler])


def _complain(error: OSError) -> None:
    what = "" if error.filename is None else f"{error.filename}: "
    try:
        say(f"Error: {what}{error.strerror or error}", error=True)
    except OSError:
        return


def _abandon_output() -> None:
    """Redirects the streams: the interpreter flushes standard output once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
    os.close(nowhere)
