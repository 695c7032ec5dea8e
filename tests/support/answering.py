"""Answers of a registry in memory over http.server."""

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler

from peerseal.errors import FetchError
from peerseal.testing import Answer


def answering(call: Callable[[str, str, bytes, Mapping[str, str]], Answer]) -> type[BaseHTTPRequestHandler]:
    """A handler of what ``call`` answers to method, path, body and headers. A FetchError cuts the connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                answer = call(self.command, self.path, body, dict(self.headers))
            except FetchError:
                self.close_connection = True
                return
            self.send_response_only(answer.status)  # with the Date of the answer, and no second one
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    return Handler
