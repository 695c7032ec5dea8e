"""The demo's identity provider: what a browser, a program and client-service see."""

import io
import stat
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests
from authlib.common.security import generate_token
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flask.testing import FlaskClient
from joserfc import jwt
from joserfc.jwk import KeySet
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from demo import console_client
from demo.identity_provider.app import build_app
from demo.identity_provider.keys import SigningKey
from demo.identity_provider.settings import Settings
from demo.identity_provider.tokens import CODE_LIFETIME, LIFETIME
from demo.processes import LOOPBACK, free_port
from peerseal.protocol.keys import PublicKey
from peerseal.testing import Clock

PASSWORD = "correct horse"
SECRET = "battery staple"
SETTINGS = Settings(password=PASSWORD, introspection_secret=SECRET)
AS_JSON = {"Content-Type": "application/json"}
CALLBACK = "http://127.0.0.1:50123/callback"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def browser(clock: Clock) -> FlaskClient:
    return build_app(SETTINGS, clock).test_client()


@pytest.mark.parametrize("private", [pytest.param(379, id="x"), pytest.param(43, id="y")])
def test_a_coordinate_that_begins_with_a_zero_byte_is_published_whole(tmp_path: Path, private: int) -> None:
    """RFC 7518 section 6.2.1.2; joserfc before 1.6.4 cut it short."""
    key = ec.derive_private_key(private, ec.SECP256R1())
    file = tmp_path / "key.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (jwk,) = SigningKey.kept_in(file).jwks["keys"]
    assert PublicKey.from_jwk(jwk) == PublicKey.of(key.public_key())


class _Form(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.token = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("name") == "form_token":
            self.token = found.get("value") or ""


VERIFIER = generate_token(48)


def asked(**changes: str | None) -> str:
    """The login page's address, with parameters changed or, where None, left out."""
    parameters: dict[str, str | None] = {
        "response_type": "code",
        "client_id": "console",
        "redirect_uri": CALLBACK,
        "scope": "openid profile orders:read",
        "state": "s",
        "nonce": "n",
        "code_challenge": create_s256_code_challenge(VERIFIER),
        "code_challenge_method": "S256",
    }
    return "/authorize?" + urlencode(
        {name: value for name, value in (parameters | changes).items() if value is not None}
    )


def submitted(browser: FlaskClient, url: str, user: str = "ada", password: str = PASSWORD) -> TestResponse:
    token = _Form(browser.get(url).text).token
    return browser.post(url, data={"form_token": token, "user": user, "password": password})


def code_of(response: TestResponse) -> str:
    assert response.status_code == 302, response.text
    return parse_qs(urlsplit(response.location).query)["code"][0]


def exchanged(browser: FlaskClient, code: str, **changes: str) -> TestResponse:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": "console",
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
    }
    return browser.post("/token", data=form | changes)


def introspected(browser: FlaskClient, token: str, secret: str = SECRET) -> TestResponse:
    return browser.post("/introspect", data={"token": token}, auth=("client-service", secret))


def test_a_login_ends_in_an_opaque_token_and_an_id_token(browser: FlaskClient) -> None:
    tokens = exchanged(browser, code_of(submitted(browser, asked()))).get_json()
    assert "." not in tokens["access_token"]
    assert (tokens["expires_in"], tokens["scope"]) == (LIFETIME, "openid profile orders:read")
    keys = KeySet.import_key_set(browser.get("/.well-known/jwks.json").get_json())
    claims = jwt.decode(tokens["id_token"], keys, algorithms=["ES256"]).claims
    assert (claims["iss"], claims["aud"], claims["sub"], claims["nonce"]) == (SETTINGS.issuer, "console", "ada", "n")
    assert claims["name"] == "Ada Lovelace"


def test_a_service_looks_an_opaque_token_up(browser: FlaskClient) -> None:
    token = exchanged(browser, code_of(submitted(browser, asked()))).get_json()["access_token"]
    found = introspected(browser, token).get_json()
    assert (found["active"], found["sub"], found["aud"], found["iss"]) == (
        True,
        "ada",
        "client-service",
        SETTINGS.issuer,
    )
    assert found["exp"] - found["iat"] == LIFETIME


@pytest.mark.parametrize("token", ["", "guess", "\ud800"])
def test_another_text_is_no_token(browser: FlaskClient, token: str) -> None:
    answer = browser.post(
        "/introspect", data={"token": token.encode("utf-8", "replace")}, auth=("client-service", SECRET)
    )
    assert (answer.status_code, answer.get_json()) == (200, {"active": False})


def test_a_token_ends_with_its_lifetime_and_by_revocation(browser: FlaskClient, clock: Clock) -> None:
    first, second = (
        exchanged(browser, code_of(submitted(browser, asked()))).get_json()["access_token"] for _ in range(2)
    )
    assert browser.post("/revoke", data={"token": first}).status_code == 200
    assert introspected(browser, first).get_json() == {"active": False}
    clock.advance(LIFETIME - 1)
    assert introspected(browser, second).get_json()["active"]
    clock.advance(1)
    assert introspected(browser, second).get_json() == {"active": False}


def test_nobody_looks_a_token_up_without_the_secret(browser: FlaskClient) -> None:
    assert introspected(browser, "guess", secret="guess").status_code == 401
    assert browser.post("/introspect", data={"token": "guess"}).status_code == 401
    assert browser.post("/introspect", data={"token": "guess", "client_id": "console"}).status_code == 401


@pytest.mark.parametrize("credentials", [b"\xff", b"client-service:\xff", b"client-service", b""])
def test_nor_with_credentials_that_are_no_text(browser: FlaskClient, credentials: bytes) -> None:
    headers = {"Authorization": f"Basic {b64encode(credentials).decode()}"}
    assert browser.post("/introspect", data={"token": "t"}, headers=headers).status_code in (400, 401)


def test_the_jwt_console_gets_a_token_that_says_itself_what_it_is_for(browser: FlaskClient) -> None:
    code = code_of(submitted(browser, asked(client_id="console-jwt")))
    token = exchanged(browser, code, client_id="console-jwt").get_json()["access_token"]
    keys = KeySet.import_key_set(browser.get("/.well-known/jwks.json").get_json())
    decoded = jwt.decode(token, keys, algorithms=["ES256"])
    assert decoded.header["typ"] == "at+jwt"
    assert (decoded.claims["sub"], decoded.claims["aud"]) == ("ada", "client-service")


@pytest.mark.parametrize(
    ("user", "password"), [("ada", "guess"), ("mallory", PASSWORD), ("", ""), ("ada", PASSWORD + "\x00")]
)
def test_a_wrong_login_shows_the_page_again(browser: FlaskClient, user: str, password: str) -> None:
    answer = submitted(browser, asked(), user, password)
    assert (answer.status_code, "Location" in answer.headers) == (401, False)
    assert "Name or password is wrong." in answer.text


@pytest.mark.parametrize("token", ["guess", "", "-", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
@pytest.mark.parametrize("seen", [True, False])
def test_a_form_that_another_page_sends_is_refused(browser: FlaskClient, token: str, seen: bool) -> None:
    if seen:
        browser.get(asked())
    answer = browser.post(asked(), data={"form_token": token, "user": "ada", "password": PASSWORD})
    assert (answer.status_code, "Location" in answer.headers) == (400, False)


@pytest.mark.parametrize(
    "redirect_uri",
    [
        None,
        "https://evil.example/callback",
        "http://127.0.0.1:1/other",
        "http://127.0.0.1/callback",
        "http://127.0.0.1:1/callback?x",
        "http://localhost:1/callback",
        "http://127.0.0.1:99999/callback",
        "http://user@127.0.0.1:1/callback",
        "http://127.0.0.1:1/callback#x",
        "http://127.0.0.1:1/callback\r\nX: y",
        "http://127.0.0.1:\N{SUPERSCRIPT TWO}/callback",
        "\x00",
    ],
)
def test_a_code_goes_to_the_loopback_callback_only(browser: FlaskClient, redirect_uri: str | None) -> None:
    answer = browser.get(asked(redirect_uri=redirect_uri))
    assert (answer.status_code, "Location" in answer.headers) == (400, False)


@pytest.mark.parametrize("changes", [{"code_challenge": None}, {"code_challenge_method": "plain"}])
def test_a_login_needs_a_hashed_challenge(browser: FlaskClient, changes: dict[str, str | None]) -> None:
    answer = browser.get(asked(**changes))
    assert "error=invalid_request" in answer.headers.get("Location", answer.text)


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": generate_token(48)},
        {"client_id": "console-jwt"},
        {"redirect_uri": "http://127.0.0.1:1/callback"},
    ],
)
def test_a_stolen_code_is_worth_nothing(browser: FlaskClient, changes: dict[str, str]) -> None:
    answer = exchanged(browser, code_of(submitted(browser, asked())), **changes)
    assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_grant")


def test_a_code_is_good_once_and_for_a_minute(browser: FlaskClient, clock: Clock) -> None:
    used, old = (code_of(submitted(browser, asked())) for _ in range(2))
    assert exchanged(browser, used).status_code == 200
    assert exchanged(browser, used).get_json()["error"] == "invalid_grant"
    clock.advance(CODE_LIFETIME)
    assert exchanged(browser, old).get_json()["error"] == "invalid_grant"


def test_the_page_can_neither_be_framed_nor_run_scripts(browser: FlaskClient) -> None:
    answer = browser.get(asked(scope='openid "><script>alert(1)</script>'))
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script>" not in answer.text


def test_a_login_is_closed_where_no_password_is_set() -> None:
    browser = build_app(Settings()).test_client()
    assert submitted(browser, asked(), password="").status_code == 401
    assert browser.post("/authenticate", json={"user": "ada", "password": ""}).status_code == 401


@pytest.mark.parametrize(
    "body", [None, [], {"user": "ada"}, {"user": 1, "password": 2}, {"user": "\ud800", "password": "\ud800"}]
)
def test_a_login_without_browser_that_is_none_is_refused(browser: FlaskClient, body: object) -> None:
    assert browser.post("/authenticate", json=body).status_code in (400, 401)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"user":' * 100_000])
def test_a_login_that_is_no_json_is_refused(browser: FlaskClient, body: bytes) -> None:
    answer = browser.post("/authenticate", data=body, content_type="application/json")
    assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_request")


def test_a_body_larger_than_any_login_is_not_read(browser: FlaskClient) -> None:
    unread = io.BytesIO(b'{"user": "ada", "password": "' + b"x" * 2 * 1024 * 1024 + b'"}')
    answer = browser.post("/authenticate", input_stream=unread, content_length=len(unread.getvalue()), headers=AS_JSON)
    assert (answer.status_code, unread.tell()) == (413, 0)


def test_the_key_outlives_a_restart_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, key_file=tmp_path / "new" / "key.pem")
    sets = [build_app(settings).test_client().get("/.well-known/jwks.json").get_json() for _ in range(2)]
    assert sets[0] == sets[1]
    assert {"d", "k"}.isdisjoint(sets[0]["keys"][0])
    assert stat.S_IMODE((tmp_path / "new" / "key.pem").stat().st_mode) == 0o600


@pytest.fixture
def login_url() -> Iterator[str]:
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    server = make_server(LOOPBACK, port, build_app(Settings(url=url, password=PASSWORD)), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield url
    server.shutdown()


def test_the_console_client_gets_its_tokens_by_way_of_the_browser(
    login_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def browse(url: str) -> bool:
        def person() -> None:
            with requests.Session() as session:
                form = {
                    "form_token": _Form(session.get(url, timeout=5).text).token,
                    "user": "ada",
                    "password": PASSWORD,
                }
                session.post(url, data=form, timeout=5)

        threading.Thread(target=person, daemon=True).start()
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    tokens = console_client.log_in(login_url, client_id="console", open_browser=True, wait=20)
    assert (tokens["id_claims"]["sub"], tokens["scope"]) == ("ada", console_client.SCOPE)


def test_another_answer_than_the_one_asked_for_is_no_answer() -> None:
    callback = console_client.Callback("state")
    assert not callback.takes("/callback?code=1&state=other")
    assert not callback.takes("/callback?code=1")
    assert not callback.takes("/other?state=state")
    with pytest.raises(console_client.LoginFailed, match="no one logged in"):
        callback.wait(0)
