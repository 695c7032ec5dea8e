"""Requests through gunicorn's own parser, an application and gunicorn's response, in this process and without a socket
of the network: what a worker does for a request, without a load.

One request at a time over a socket pair, with each contender in turn. So the time that a protection adds can be told to
a few microseconds, while requests per second of whole servers vary by a twentieth from start to start.
"""

import socket
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.http import RequestParser  # type: ignore[import-untyped]
from gunicorn.http.wsgi import create  # type: ignore[import-untyped]

from benchmarks.timing import Contender


def served_by(app: Callable[..., Any]) -> Contender[bytes]:
    """Raw requests, each answered by ``app``; an answer other than 200 is an error."""
    config = Config()

    def prepare(requests: Sequence[bytes]) -> Callable[[], None]:
        def run() -> None:
            for request in requests:
                _serve(app, config, request)

        return run

    return prepare


def _serve(app: Callable[..., Any], config: Config, request: bytes) -> None:
    client, server = socket.socketpair()
    with client, server:
        client.sendall(request)
        parsed = next(RequestParser(config, server, ("127.0.0.1", 1)))
        response, environ = create(parsed, server, ("127.0.0.1", 1), ("127.0.0.1", 8000), config)
        body = app(environ, response.start_response)
        try:
            for piece in body:
                response.write(piece)
            response.close()
        finally:
            if hasattr(body, "close"):
                body.close()
        if response.status_code != 200:
            raise RuntimeError(f"the application answered {response.status}: {client.recv(4096)!r}")
        client.recv(4096)
