"""Serves a mirror's folder over HTTP, for a site that is too small for a web server."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Thread
from typing import Any

from peerseal.errors import ConfigurationError

log = logging.getLogger("peerseal.mirror")

_CONNECTIONS = 200
"""Connections at once, each with a thread; more need a web server."""


class _Handler(SimpleHTTPRequestHandler):
    """Files alone: no listing of a folder, and nothing whose name begins with a dot but ``.well-known``."""

    timeout = 10

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        """See SimpleHTTPRequestHandler."""
        return "application/jwt" if os.fspath(path).endswith(".jwt") else "application/octet-stream"

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


class _Server(ThreadingHTTPServer):
    """A server of `_CONNECTIONS` connections at most: one more is closed at once."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., _Handler]) -> None:
        self._places = BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See ThreadingMixIn."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See ThreadingMixIn."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


@contextmanager
def served(folder: Path, address: str | None) -> Iterator[int | None]:
    """Serves the folder at ``HOST:PORT`` in the block, and gives the port; None without an address. Raises
    ConfigurationError."""
    if address is None:
        yield None
        return
    host, _, port = address.rpartition(":")
    try:
        server = _Server((host.strip("[]") or "127.0.0.1", int(port)), partial(_Handler, directory=folder))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"--serve {address}: expected HOST:PORT that is free ({error})") from error
    thread = Thread(target=server.serve_forever, name="mirror", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
