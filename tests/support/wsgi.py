"""A WSGI application, driven as servers do, without one."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.validate import validator

from peerseal.wsgi_environ import environ_key


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def environ_of(
    method: str = "GET",
    target: str = "/x",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    chunked: bool = False,
    script_name: str = "",
    **more: Any,
) -> dict[str, Any]:
    """What a server says of a request."""
    path, _, query = target.partition("?")
    decoded = unquote_to_bytes(path).decode("latin-1")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "SCRIPT_NAME": script_name,
        "PATH_INFO": decoded.removeprefix(script_name),
        "QUERY_STRING": query,
        "SERVER_NAME": "callee.test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "HTTP_HOST": "callee.test",
    }
    if chunked:
        environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    elif body:
        environ["CONTENT_LENGTH"] = str(len(body))
    return environ | {environ_key(name): value for name, value in (headers or {}).items()} | more


def called(app: Any, environ: dict[str, Any], *, judge: bool = True) -> Answer:
    """The answer of the application; ``judge`` checks that both sides keep PEP 3333."""
    heads: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
        heads.append((status, headers))
        return written.append

    if judge:
        app = validator(app)
    body: Iterable[bytes] = app(environ, start_response)
    try:
        pieces = [*body]
    finally:
        getattr(body, "close", lambda: None)()
    ((status, headers),) = heads
    return Answer(int(status.split(" ")[0]), {name.lower(): value for name, value in headers}, [*written, *pieces])
