"""A proxy that alters answers, as a thief on the way could: ``python -m demo.altering PORT URL OLD NEW``."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

from demo.processes import LOOPBACK

_OF_ONE_HOP = frozenset(("connection", "content-length", "date", "server", "transfer-encoding"))


def proxy(address: tuple[str, int], url: str, old: bytes, new: bytes) -> ThreadingHTTPServer:
    """A server for GET in front of ``url``: it puts ``new`` in the place of ``old`` in each body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server looks for
            with requests.Session() as session:
                session.trust_env = False
                answer = session.get(f"{url}{self.path}", headers=dict(self.headers), timeout=20)
            body = answer.content.replace(old, new)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _OF_ONE_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the demo prints what happens."""

    return ThreadingHTTPServer(address, Handler)


@contextmanager
def altering(url: str, old: bytes, new: bytes) -> Iterator[str]:
    """The URL of such a proxy on loopback, which serves meanwhile."""
    with proxy((LOOPBACK, 0), url, old, new) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}"
        finally:
            server.shutdown()


def main(port: str, url: str, old: str, new: str) -> None:
    """Serves on all interfaces until the process ends."""
    with proxy(("", int(port)), url, old.encode(), new.encode()) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
