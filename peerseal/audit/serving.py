"""Serves a mirror's folder over HTTP, for a site that is too small for a web server, and tells peers of changes."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6, socket
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import parse_qs

from peerseal.audit.waiting_peers import WaitingPeers
from peerseal.errors import ConfigurationError
from peerseal.runtime.settings import whole_number

log = logging.getLogger("peerseal.mirror")

_CONNECTIONS = 200
"""Connections at once, each with a thread; more need a web server. Questions that wait have no thread."""
_QUEUED = 1024
"""Connections that wait for one of these to end: peers that learn of a change ask for the documents all at once."""
_PATIENCE = 1.0
"""Seconds for which the first of them waits before it is closed: idle connections do not keep others out for long."""
_LOOK = 0.1
"""Seconds between two looks whether the server is to end."""


class _Handler(SimpleHTTPRequestHandler):
    """Files alone: no listing of a folder, and nothing whose name begins with a dot but ``.well-known``."""

    timeout = 10

    def __init__(self, *connection: Any, folder: Path, peers: WaitingPeers | None) -> None:
        self._peers = peers
        super().__init__(*connection, directory=os.fspath(folder))

    def do_GET(self) -> None:
        """See SimpleHTTPRequestHandler."""
        path, _, query = self.path.partition("?")
        if self._peers is None or path != "/v1/changes":
            super().do_GET()
            return
        asked = parse_qs(query)
        since, wait = (whole_number(asked.get(name, ["0"])[0]) for name in ("since", "wait"))
        if since is None or wait is None:
            self.send_error(400)
            return
        self._peers.answer(socket(fileno=self.request.detach()), since, wait)

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        """See SimpleHTTPRequestHandler."""
        name = os.path.relpath(path, self.directory)
        if name == "metrics":
            return "text/plain; version=0.0.4"
        return "application/jwt" if name.endswith(".jwt") else "application/octet-stream"

    def send_head(self):  # type: ignore[no-untyped-def]
        """See SimpleHTTPRequestHandler."""
        file = Path(self.translate_path(self.path))
        parts = file.relative_to(self.directory).parts if file.is_relative_to(self.directory) else (".",)
        hidden = any(part.startswith((".", "lost-")) and part != ".well-known" for part in parts)
        if hidden or not file.is_file():
            self.send_error(404)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """See SimpleHTTPRequestHandler."""
        self.send_header("Cache-Control", "public, max-age=1")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, form: str, *values: object) -> None:
        """See BaseHTTPRequestHandler."""
        log.debug(form, *values)


class BoundedServer(ThreadingHTTPServer):
    """A server of `_CONNECTIONS` connections at most: one more waits, and is closed after `_PATIENCE` seconds."""

    daemon_threads = True
    request_queue_size = _QUEUED

    def __init__(self, address: tuple[str, int], handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self._places = BoundedSemaphore(_CONNECTIONS)
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See ThreadingMixIn."""
        if not self._places.acquire(blocking=False):
            self.close_idle()
            if not self._places.acquire(timeout=_PATIENCE):
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def close_idle(self) -> None:
        """Is called while all places are taken: may end a connection that has sent no request."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """See BaseServer. A client that is gone is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request failed")

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See ThreadingMixIn."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


@contextmanager
def served(folder: Path, address: str | None, peers: WaitingPeers | None = None) -> Iterator[int | None]:
    """Serves the folder at ``HOST:PORT`` in the block, and gives the port; None without an address. ``peers`` holds
    the questions for changes; without it they are answered with 404. Raises ConfigurationError."""
    if address is None:
        yield None
        return
    handler = partial(_Handler, folder=folder, peers=peers)
    with running(lambda at: BoundedServer(at, handler), f"--serve {address}", address, "mirror") as port:
        yield port


@contextmanager
def running(
    make: Callable[[tuple[str, int]], BoundedServer], option: str, address: str, thread_name: str
) -> Iterator[int]:
    """Runs a server at ``HOST:PORT`` in the block, in a thread, and gives the port. Raises ConfigurationError, which
    names the ``option``."""
    host, _, port = address.rpartition(":")
    try:
        server = make((host.strip("[]") or "127.0.0.1", int(port)))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{option}: expected HOST:PORT that is free ({error})") from error
    thread = Thread(target=server.serve_forever, args=(_LOOK,), name=thread_name, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
