"""A registry that lies: an HTTP server in front of an honest one, which answers some calls itself."""

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OF_A_HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "content-length"))
_PATIENCE = 30  # seconds


class Lying(ThreadingHTTPServer):
    """Passes each call on with its Host, but for the paths in ``lies``, whose answers they are; and replaces texts of
    pages by those in ``altered``."""

    daemon_threads = True

    def __init__(self, honest: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.honest = urlsplit(honest).port
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lies: Mapping[str, bytes] = {}
        self.altered: Mapping[bytes, bytes] = {}

    def tell_the_truth(self) -> None:
        """No lies any more."""
        self.lies, self.altered = {}, {}


class _Handler(BaseHTTPRequestHandler):
    server: Lying
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A call that a browser made."""
        path = urlsplit(self.path).path
        if path in self.server.lies:
            self._answer(200, [("Content-Type", "application/octet-stream")], self.server.lies[path])
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.honest, timeout=_PATIENCE)
        kept = {
            name: value for name, value in self.headers.items() if name.lower() not in ("accept-encoding", "connection")
        }
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if "html" in answer.getheader("Content-Type", ""):
            for text, other in self.server.altered.items():
                content = content.replace(text, other)
        self._answer(answer.status, answer.getheaders(), content)

    def do_POST(self) -> None:
        """A form that a browser sent."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _OF_A_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def lying(honest: str) -> Iterator[Lying]:
    """One in front of that registry. It lies once it is told what."""
    with Lying(honest) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
