"""The console blocks of a page, typed one after the other in one folder, on a terminal of 80 columns.

A block has commands, each after ``$``, and below each what it prints; … stands for any text, or for any lines. A block
with the title ``until Ctrl-C`` has a server as its last command: it runs until the end of the page. Other blocks with a
file's name as their title are files in the folder.

``python -m tests.docs.console PAGE`` types a page's commands and writes what they print into it, where it differs from
what the page shows by more than `VARYING`.
"""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from demo.processes import BIN, environment, free_port
from tests.docs.pages import ROOT, named_blocks

COLUMNS = 80
SILENCE = 60.0
"""Seconds after which a command that prints nothing counts as ended."""
FOLDER = "/srv/acme"
"""The folder's name on the pages."""
UNTIL_CTRL_C = "until Ctrl-C"
VARYING = (
    (r"\[20\d\d-\d\d-\d\d [\d:]+ \+0000\] \[\d+\]", "<log>"),
    (r"sha-256=:[\w+/]{43}=:", "<digest>"),
    (r"(?<![\w+/])[\w+/]{43}=", "<hash>"),
    (r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?Z?", "<time>"),
    (r"\b1[78]\d{8}\b", "<seconds>"),
    (r"\b(?:\w{3}, \d\d \w{3} 20\d\d) [\d:]{8} GMT", "<date>"),
    (r"\b(?:in )?\d+ (?:second|minute|hour|day)s?(?: ago)?\b|(?<=<time>, )now\b", "<duration>"),
    (r"(?<=words )[ ]*(?:[A-Za-z]+\s+){31}[A-Za-z]+", "<thumbprint in words>"),
    (r"(?<=jti) +[\w-]{22}$", "<id>"),
    (r"(?<=pid )\d+|\(\d+\)$", "<pid>"),
    (r"(?<=owner )(?:uid )?\d+", "<uid>"),
)
"""What differs from run to run besides `NAMES`, as patterns, and what stands for it in a comparison."""

NAMES = re.compile(r"(?<![\w-])(?:[\w-]{43}|(?=[a-z_-]*[A-Z0-9])[\w-]{16})(?![\w-])")
"""Thumbprints and hashes, and ids of tokens and requests."""
_FENCE = re.compile(r"^```(\w+)(?: ([^\n]+))?\n(.*?)^```$", re.M | re.S)
_STATE = """[ -f "$1" ] && . "$1"; eval "$2"; code=$?; export -p >"$1"; exit $code"""


class Step(NamedTuple):
    """A command and what the page shows below it. ``serves``: it runs until the end of the page."""

    command: str
    shown: str
    serves: bool = False


class File(NamedTuple):
    """A file that the page has."""

    name: str
    text: str


def steps(text: str) -> Iterator[Step | File]:
    """The commands and files of a page, in order."""
    for language, title, block in _FENCE.findall(text):
        if language == "console":
            parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", block, flags=re.M)
            assert parts[0] == "", f"a console block begins with a command: {block}"
            last = len(parts) - 2
            for place in range(1, len(parts), 2):
                yield Step(parts[place], parts[place + 1], title == UNTIL_CTRL_C and place == last)
        elif re.fullmatch(r"[\w-]+\.\w+", title):
            yield File(title, block)


def names_in(shown: str, printed: str, known: Mapping[str, str]) -> dict[str, str] | None:
    """None if a terminal printed something else than the page shows; else the printed name for each name of the page.
    ``known`` are the names so far: a page shows one key or token by one name."""
    text = _comparable(shown)
    names = NAMES.findall(text)
    groups = [*(rf"([\w-]{{{len(name)}}})" for name in names), ""]
    pattern = "".join(f"{_pattern(part)}{group}" for part, group in zip(NAMES.split(text), groups, strict=True))
    found = re.fullmatch(pattern, _comparable(printed))
    if found is None:
        return None
    pairs = {*known.items(), *zip(names, found.groups(), strict=True)}
    one_to_one = len(pairs) == len({name for name, _ in pairs}) == len({real for _, real in pairs})
    return dict(pairs) if one_to_one else None


def _comparable(text: str) -> str:
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text, flags=re.M)
    return "".join(f"{line.rstrip()}\n" for line in text.strip().splitlines())


def _pattern(shown: str) -> str:
    return re.sub(r"^\.\*\\\n", r"(?:.*\\n)*?", re.escape(shown).replace("…", ".*"), flags=re.M)


class Terminal:
    """Bash on a terminal of 80 columns, in ``folder``; exported variables stay from command to command."""

    def __init__(self, folder: Path, ports: tuple[str, ...]) -> None:
        self._folder = folder
        self._ports = {port: _free(port) for port in ports}
        self._running = ExitStack()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def run(self, command: str) -> str:
        """What the command prints until it ends."""
        with self._typed(command) as read:
            return self._as_on_page(b"".join(iter(read, b"")))

    def serve(self, command: str, enough: Callable[[str], bool]) -> str:
        """What a server prints, until that is ``enough``. It runs on."""
        read, printed = self._running.enter_context(self._typed(command)), b""
        while not enough(self._as_on_page(printed)):
            more = read()
            assert more, f"{command} printed no more than {printed.decode()}"
            printed += more
        return self._as_on_page(printed)

    def _as_on_page(self, printed: bytes) -> str:
        text = printed.decode(errors="replace").replace("\r\n", "\n").replace(str(self._folder), FOLDER)
        text = re.sub(r"[^\n]*\r\x1b\[K|\x1b\[[0-9;?]*[A-Za-z]", "", text)
        return _replaced(text, {free: port for port, free in self._ports.items()})

    @contextmanager
    def _typed(self, command: str) -> Iterator[Callable[[], bytes]]:
        """Gives a function that reads what is printed, b"" at the end."""
        command = re.sub(r"registry serve( --dev)?(?=$| )", r"registry serve\1 --port 8080", command)
        command = _replaced(command, self._ports)
        keyboard, screen = os.openpty()
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        state = str(self._folder.with_suffix(".exports"))
        process = subprocess.Popen(
            ["bash", "-c", _STATE, "bash", state, command],
            cwd=self._folder,
            env=_environment(self._folder),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )
        os.close(screen)
        try:
            yield partial(_read, keyboard)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            for _ in iter(partial(_read, keyboard), b""):
                pass  # until all its processes have ended
            process.wait()
            os.close(keyboard)


def _replaced(text: str, others: Mapping[str, str]) -> str:
    return re.sub("|".join(others), lambda found: others[found[0]], text)


def _read(keyboard: int) -> bytes:
    try:
        return os.read(keyboard, 65536) if select.select([keyboard], [], [], SILENCE)[0] else b""
    except OSError:  # Linux: no process has the terminal any more
        return b""


def _environment(folder: Path) -> Mapping[str, str]:
    path = f"{BIN}:{os.environ.get('PATH', '')}"
    return environment({"HOME": str(folder), "PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb"})


@cache
def _free(port: str) -> str:
    """The port or, where another program has it, a free one of as many digits: lines are wrapped alike."""
    return next(str(free) for free in range(int(port), 10_000) if free_port(free) == free)


# ---- the pages

REGISTRY_AND_BILLING = f"""
```console
$ export REGISTRY_HOME=./registry-data
$ peerseal-registry init --trust-domain acme.internal
…
```
```console until Ctrl-C
$ peerseal-registry serve
…
… Booting worker …
…
```
```python billing.py
{named_blocks("docs/tutorial/two-services.md")["billing.py"]}```
```console until Ctrl-C
$ export PEERSEAL_REGISTRY_URL=http://127.0.0.1:8080 PEERSEAL_KEY_DIR=./keys
$ export PEERSEAL_JOIN_TOKEN=$(peerseal-registry join-token create billing)
$ PEERSEAL_SERVICE=billing flask --app billing run --port 8081
…
… Running on …
…
```
"""
"""The first two terminals of the tutorial."""

PAGES = {
    "docs/how-to/registry-terminal.md": "",
    "docs/how-to/terminal.md": REGISTRY_AND_BILLING,
    "docs/how-to/agent.md": REGISTRY_AND_BILLING,
    "docs/how-to/federation.md": "",
}
"""The pages with console blocks, and what is typed before them."""

PORTS = ("8080", "8081")


def steps_of(page: str) -> list[Step]:
    """The commands of the page."""
    return [step for step in steps((ROOT / page).read_text()) if isinstance(step, Step)]


class Typed(NamedTuple):
    """A command that was typed. ``agrees``: it printed what the page shows. ``printed`` names keys and tokens as the
    page does, where they were shown before."""

    step: Step
    printed: str
    agrees: bool


def typed(page: str, folder: Path) -> Iterator[Typed]:
    """Each command of the page, and of what comes before it, in ``folder``. A command names keys and tokens as the page
    shows them; those of this run are typed."""
    names: dict[str, str] = {}

    def of_this_run(name: re.Match[str]) -> str:
        return names.get(name[0], name[0])

    with Terminal(folder, PORTS) as terminal:
        for step in steps(PAGES[page] + (ROOT / page).read_text()):
            if isinstance(step, File):
                (folder / step.name).write_text(step.text)
                continue
            command = NAMES.sub(of_this_run, step.command)
            if step.serves:
                printed = terminal.serve(command, lambda text, shown=step.shown: names_in(shown, text, {}) is not None)
            else:
                printed = terminal.run(command)
            found = names_in(step.shown, printed, names)
            names = names if found is None else found
            of_page = {real: name for name, real in names.items()}
            yield Typed(step, NAMES.sub(lambda name, of=of_page: of.get(name[0], name[0]), printed), found is not None)


def main(page: str) -> None:
    """Writes into the page what its commands print."""
    place = 0
    with TemporaryDirectory() as folder:
        for step, printed, agrees in typed(page, Path(folder)):
            printed = f"{printed.strip()}\n" if printed.strip() else ""
            text, block = (ROOT / page).read_text(), f"$ {step.command}\n{step.shown}"
            if block not in text:
                continue  # it comes before the page
            place = text.index(block, place)
            if not agrees:
                (ROOT / page).write_text(f"{text[:place]}$ {step.command}\n{printed}{text[place + len(block) :]}")
                print(f"$ {step.command}\n{printed}", flush=True)
            place += len(step.command)


if __name__ == "__main__":
    main(sys.argv[1])
