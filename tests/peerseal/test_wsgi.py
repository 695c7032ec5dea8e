"""What a WSGI server does not tell is refused, and the error says what it was."""

import io
import logging
from typing import Any

import pytest
from flask import Flask

from peerseal.errors import ContentTooLarge, ContentUnreadable, WrongBinding
from peerseal.flask import PeerAuth
from peerseal.verify.request import Verifier
from peerseal.wsgi import read_body, wsgi_target
from tests.support.wire import NOW, Keys, Service


def environ_of(body: bytes = b"", **members: Any) -> dict[str, Any]:
    return {"wsgi.input": io.BytesIO(body), **members}


def test_a_server_that_tells_no_raw_target_is_named_by_what_it_leaves_out() -> None:
    with pytest.raises(WrongBinding, match="neither RAW_URI nor REQUEST_URI"):
        wsgi_target({"PATH_INFO": "/a", "SCRIPT_NAME": ""})


def test_the_log_says_what_the_server_did_not_tell(caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys()
    caller = Service("caller", keys, now=NOW)
    app = Flask(__name__)
    app.add_url_rule("/a", view_func=lambda: "a", endpoint="a")
    PeerAuth(app, verifier=Verifier(keys, audience="callee", allow={"caller": {"read"}}, clock=lambda: NOW))
    served = app.wsgi_app

    def untold(environ: Any, start_response: Any) -> Any:
        return served({name: value for name, value in environ.items() if not name.endswith("_URI")}, start_response)

    app.wsgi_app = untold  # type: ignore[method-assign]
    token = caller.sign_request("callee", target="/a")
    with caplog.at_level(logging.WARNING, "peerseal"):
        answer = app.test_client().get("/a", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.get_json()["code"]) == (401, "wrong_binding")
    assert "the server does not tell the raw request-target" in caplog.text


@pytest.mark.parametrize("length", [{}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "5"}])
def test_a_chunked_body_whose_end_the_server_does_not_tell_is_not_read(length: dict[str, str]) -> None:
    environ = environ_of(b"5\r\nhello", HTTP_TRANSFER_ENCODING="chunked", **length)
    with pytest.raises(ContentUnreadable, match="chunked"):
        read_body(environ)
    assert environ["wsgi.input"].tell() == 0


def test_a_chunked_body_whose_end_it_tells_is_read() -> None:
    environ = environ_of(b"hello", HTTP_TRANSFER_ENCODING="chunked")
    environ["wsgi.input_terminated"] = True
    assert read_body(environ) == b"hello"


@pytest.mark.parametrize("length", ["9" * 5000, "0" * 5000 + "9" * 30, "17"])
def test_a_length_beyond_the_limit_is_refused_however_many_digits_it_has(length: str) -> None:
    with pytest.raises(ContentTooLarge):
        read_body(environ_of(b"x" * 17, CONTENT_LENGTH=length), 16)


@pytest.mark.parametrize("length", ["-1", "+5", "5.0", "\u0665", "five", "0x5", " "])
def test_what_is_no_length_announces_no_body(length: str) -> None:
    assert read_body(environ_of(b"hello", CONTENT_LENGTH=length)) == b""
