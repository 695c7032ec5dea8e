"""Serves a witness over HTTP: ``POST /add-checkpoint`` (https://c2sp.org/tlog-witness), ``GET /healthz`` and
``GET /metrics``."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from socket import SHUT_RDWR, socket
from typing import Any, Final

from peerseal.audit.serving import BoundedServer, running
from peerseal.audit.witness import MAX_SUBMISSION, SIZE_TYPE, SubmissionRefused, Witness
from peerseal.runtime.metrics import Metric, Tally, metrics
from peerseal.runtime.settings import whole_number

log = logging.getLogger("peerseal.witness")

LONGEST_REQUEST: Final = 15.0
"""Seconds for a request, from its first byte or the end of the one before: then its connection is closed."""
_TEXT: Final = "text/plain; charset=utf-8"

Told = Callable[[dict[str, object]], None]
"""Is told of each submission: ``{"status", "reason"}``, or ``{"status", "cosignature"}``."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection. A body is read only as long as it says, and never one that is too long."""

    protocol_version = "HTTP/1.1"
    timeout = LONGEST_REQUEST

    def __init__(self, *connection: Any, served: "_Served") -> None:
        self._served = served
        super().__init__(*connection)

    def handle_one_request(self) -> None:
        """See BaseHTTPRequestHandler."""
        self._served.begin(self.connection)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """See BaseHTTPRequestHandler."""
        found = super().parse_request()
        self._served.take(self.connection)
        return found

    def finish(self) -> None:
        """See StreamRequestHandler."""
        self._served.end(self.connection)
        super().finish()

    def do_POST(self) -> None:
        """See BaseHTTPRequestHandler."""
        if self.path != "/add-checkpoint":
            self._answer(404, "not found\n", close=True)  # the body is not read
            return
        lengths = self.headers.get_all("Content-Length", [])
        size = whole_number(lengths[0]) if len(lengths) == 1 else None
        if size is None or "Transfer-Encoding" in self.headers:
            self._answer(411, "expected one Content-Length, and no Transfer-Encoding\n", close=True)
        elif size > MAX_SUBMISSION:
            self._answer(413, f"{size} bytes, expected {MAX_SUBMISSION} at most\n", close=True)
        else:
            body = self.rfile.read(size)
            if len(body) == size:
                self._answer(*self._served.submitted(body))
            else:
                self.close_connection = True

    def do_GET(self) -> None:
        """See BaseHTTPRequestHandler."""
        if self.path not in ("/healthz", "/metrics"):
            self._answer(404, "not found\n")
            return
        try:
            text = metrics(self._served.collect)
        except sqlite3.Error as error:
            self._answer(503, f"the state cannot be read: {error}\n")
            return
        if self.path == "/metrics":
            self._answer(200, text, "text/plain; version=0.0.4")
        else:
            self._answer(200, "ok\n")

    def do_HEAD(self) -> None:
        """See BaseHTTPRequestHandler."""
        self.do_GET()

    def _answer(self, status: int, text: str, kind: str = _TEXT, *, close: bool = False) -> None:
        body = text.encode("utf-8")
        self.close_connection = self.close_connection or close
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, form: str, *values: object) -> None:
        """See BaseHTTPRequestHandler."""
        log.debug(form, *values)


class _Served:
    """What the connections of one server share: the witness, its counts, and how long each request takes."""

    def __init__(self, witness: Witness, tell: Told) -> None:
        self._witness = witness
        self._tell = tell
        self._requests = Tally("peerseal_witness_submissions_total", "Submitted checkpoints, by answer.", "status")
        self._begun: dict[socket, float] = {}
        self._idle: dict[socket, None] = {}  # connections without a request, the oldest first

    def submitted(self, body: bytes) -> tuple[int, str, str]:
        """The status, the body and the media type of the answer to a submission."""
        try:
            line = str(self._witness.cosign(body))
        except SubmissionRefused as error:
            self._note(error.status, {"reason": error.reason})
            if error.size is not None:
                return error.status, f"{error.size}\n", SIZE_TYPE
            return error.status, f"{error.reason}\n", _TEXT
        except sqlite3.Error as error:
            log.error("nothing is cosigned, the state cannot be written: %s", error)
            self._note(503, {"reason": str(error)})
            return 503, "the state cannot be written\n", _TEXT
        self._note(200, {"cosignature": line})
        return 200, f"{line}\n", _TEXT

    def collect(self) -> Iterable[Metric]:
        """The metrics. Raises sqlite3.Error."""
        sizes = tuple(({"log": origin}, float(size)) for origin, size in self._witness.sizes().items())
        help = "Entries of the newest cosigned checkpoint of a log."
        return self._requests.metric(), Metric("peerseal_witness_entries", "gauge", help, sizes)

    def _note(self, status: int, told: dict[str, object]) -> None:
        self._requests.add(str(status))
        self._tell({"status": status, **told})

    def begin(self, connection: socket) -> None:
        """A request may begin on the connection."""
        self._begun[connection] = time.monotonic()
        self._idle[connection] = None

    def take(self, connection: socket) -> None:
        """The head of a request was read."""
        self._idle.pop(connection, None)

    def end(self, connection: socket) -> None:
        """The connection ends."""
        self._begun.pop(connection, None)
        self._idle.pop(connection, None)

    def close_oldest_idle(self) -> None:
        """Closes the connection that has been without a request for longest, if there is one."""
        for connection in list(self._idle)[:1]:
            _shut_down(connection)

    def close_slow(self) -> None:
        """Closes the connections whose request takes too long: slow bytes must not hold a thread."""
        oldest = time.monotonic() - LONGEST_REQUEST
        for connection in [one for one, begun in list(self._begun.items()) if begun < oldest]:
            _shut_down(connection)


def _shut_down(connection: socket) -> None:
    """Ends the reads of the connection's thread, which closes it."""
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)


class _Server(BoundedServer):
    def __init__(self, address: tuple[str, int], served: _Served) -> None:
        self._served = served
        super().__init__(address, partial(_Handler, served=served))

    def service_actions(self) -> None:
        """See BaseServer."""
        self._served.close_slow()

    def close_idle(self) -> None:
        """See BoundedServer."""
        self._served.close_oldest_idle()


@contextmanager
def witnessing(witness: Witness, address: str, tell: Told = lambda _: None) -> Iterator[int]:
    """Serves the witness at ``HOST:PORT`` in the block, and gives the port. At the end of the block it takes no more
    submissions; one that is kept by then and was not answered may be repeated. Raises ConfigurationError."""
    served = _Served(witness, tell)
    with running(lambda at: _Server(at, served), f"--listen {address}", address, "witness") as port:
        yield port
