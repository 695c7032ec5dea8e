"""Real processes: started with their output in a file, waited for, stopped by pid.

Each one leads a process group of its own, so that Ctrl-C reaches only the program that started it, and ``kill``
takes a server's workers along.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, Unpack
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, from which the example services run: they are not installed."""

BIN = Path(sys.executable).parent
"""The programs of the virtual environment that runs this."""

LOOPBACK = "127.0.0.1"

RESERVED = 64
"""Ports that are kept for servers which are about to start (`free_port`)."""

_OURS = (
    "PEERSEAL_",
    "REGISTRY_",
    "CLIENT_",
    "RESOURCE_",
    "INVOICING_",
    "CASE_",
    "GUNICORN_",
    "BROKER_",
    "EVENTS_",
    "IDP_",
)
_POLL = 0.05  # seconds
_reservations = deque[socket.socket]()


class ProcessFailed(RuntimeError):
    """A process ended, or did not answer in time. The message has the end of its output."""


def free_port(preferred: int = 0) -> int:
    """A TCP port of the loopback interface on which nothing listens: ``preferred``, or any.

    On Linux it stays reserved until this process has asked for `RESERVED` others: neither an outgoing connection nor
    another search gets it, and a server that sets SO_REUSEADDR, as servers do, can bind it.
    """
    reservation = socket.socket()
    try:
        reservation.bind((LOOPBACK, preferred))  # alone: a port that another process has reserved is refused
    except OSError:
        reservation.close()
        return free_port()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port = int(reservation.getsockname()[1])
    _reservations.append(reservation)
    while len(_reservations) > (RESERVED if sys.platform == "linux" else 0):
        _reservations.popleft().close()
    return port


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without Peerseal's settings and proxies, and then ``settings``. A registry stops
    without a drain, since there is no balancer."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    ours = {"NO_PROXY": f"{LOOPBACK},localhost", "PYTHONUNBUFFERED": "1", "REGISTRY_DRAIN_SECONDS": "0"}
    return inherited | ours | dict(settings)


class ServerOptions(TypedDict, total=False):
    """Options of gunicorn. The defaults are 2 ``workers`` of 8 ``threads``, no ``preload``, no recycling.

    A worker is recycled after ``max_requests`` requests. ``config`` is gunicorn's option of that name; it
    sets the number of threads unless ``threads`` does. ``launcher`` is a command that starts gunicorn.
    """

    workers: int
    threads: int
    preload: bool
    max_requests: int
    config: str
    launcher: Sequence[str]


class Process:
    """One running program. As a context manager it is stopped at the end."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The pid of the program itself: of gunicorn's master, not of a worker."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """All output so far, with that of earlier processes with the same log."""
        return self.log.read_text(errors="replace")

    def wait_until_answers(self, url: str, timeout: float = 60) -> Self:
        """Wait until ``url`` answers 200. Raises ProcessFailed after ``timeout`` seconds, or when the program ends."""
        deadline = time.monotonic() + timeout
        while status_of(url) != 200:
            if not self.running:
                raise ProcessFailed(f"{self.name} ended with {self._process.returncode}:\n{self.output()[-4000:]}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} gave no 200 at {url} in {timeout} s:\n{self.output()[-4000:]}")
            time.sleep(_POLL)
        return self

    def wait_until_prints(self, text: str, timeout: float = 60) -> str:
        """The first line of its output that holds ``text``, once there is one. Raises ProcessFailed after ``timeout``
        seconds, or when the program ends."""
        deadline = time.monotonic() + timeout
        while (line := next((line for line in self.output().splitlines() if text in line), None)) is None:
            if not self.running:
                raise ProcessFailed(f"{self.name} ended with {self._process.returncode}:\n{self.output()[-4000:]}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} said no {text!r} in {timeout} s:\n{self.output()[-4000:]}")
            time.sleep(_POLL)
        return line

    def stop(self, grace: float = 15) -> None:
        """SIGTERM; after ``grace`` seconds SIGKILL for it and all its children."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """``kill -9`` of the program and all its children at once: nothing of it runs on."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Server(Process):
    """One running HTTP server, at ``url``."""

    def __init__(self, name: str, command: Sequence[str], *, url: str, log: Path, settings: Mapping[str, str]) -> None:
        super().__init__(name, command, log=log, settings=settings)
        self.url = url


def gunicorn(
    name: str,
    target: str,
    *,
    port: int,
    log: Path,
    settings: Mapping[str, str],
    **options: Unpack[ServerOptions],
) -> Server:
    """``target`` (``module:app`` or ``module:create_app()``) served by gunicorn on a port of the loopback interface."""
    command = [
        *options.get("launcher", ()),
        str(BIN / "gunicorn"),
        target,
        "--bind",
        f"{LOOPBACK}:{port}",
        "--no-control-socket",
    ]
    command += [] if "config" in options else ["--worker-class", "gthread"]
    if "threads" in options or "config" not in options:
        command += ["--threads", str(options.get("threads", 8))]
    command += ["--workers", str(options.get("workers", 2)), "--graceful-timeout", "10"]
    command += ["--max-requests", str(options.get("max_requests", 0))]
    command += ["--preload"] if options.get("preload") else []
    command += ["-c", options["config"]] if "config" in options else []
    return Server(name, command, url=f"http://{LOOPBACK}:{port}", log=log, settings=settings)


def uvicorn(name: str, factory: str, *, port: int, log: Path, settings: Mapping[str, str]) -> Server:
    """What ``factory`` (``module:function``) makes, served by one process of uvicorn on the loopback interface."""
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, "--host", LOOPBACK, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    return Server(name, command, url=f"http://{LOOPBACK}:{port}", log=log, settings=settings)


def status_of(url: str, timeout: float = 5) -> int | None:
    """The status of a plain GET, without any proxy; None where nothing answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or LOOPBACK, parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
