"""A request that signs itself when its headers are read, sent by a plain session of requests."""

import io
from pathlib import Path

import pytest
import requests
from requests_toolbelt import MultipartEncoder

from peerseal.errors import ConfigurationError, InvalidName, UnsignableRequest
from peerseal.session.options import MAX_BUFFER
from peerseal.session.signed_request import RequestSigner
from tests.support.wire import Answer, RawServer, Service, assert_signed_as_seen, raw_server


@pytest.fixture
def signer(caller: Service) -> RequestSigner:
    return RequestSigner("callee", lambda: caller)


def prepared(signer: RequestSigner, url: str, method: str = "GET", **more: object) -> requests.PreparedRequest:
    with requests.Session() as session:
        return session.prepare_request(requests.Request(method, url, auth=signer, **more))


def send(request: requests.PreparedRequest, *, follow: bool = False) -> requests.Response:
    """Sends it as HTTPie does: each redirect is a request of its own."""
    with requests.Session() as session:
        session.trust_env = False
        while True:
            response = session.send(request, allow_redirects=False)
            if response.next is None or not follow:
                return response
            request = response.next


def test_the_request_is_signed_as_it_is_sent(signer: RequestSigner, server: RawServer) -> None:
    send(prepared(signer, f"{server.url}/a%2fb?q=ü", "POST", json={"a": 1}))
    (seen,) = server.seen
    assert seen.target == "/a%2Fb?q=%C3%BC"
    assert_signed_as_seen(seen)


def test_the_headers_that_are_shown_are_those_that_are_sent(signer: RequestSigner, server: RawServer) -> None:
    request = prepared(signer, server.url)
    shown = str(request.headers["Authorization"])
    send(request)
    assert server.seen[0].authorization == shown


def test_a_body_that_changes_after_the_authentication_is_signed_again(signer: RequestSigner, server: RawServer) -> None:
    request = prepared(signer, server.url, "POST", data=b"as it was", headers={"Content-Type": "text/plain"})
    request.body = b"smaller"
    request.headers["Content-Encoding"] = "deflate"
    request.headers["Content-Length"] = "7"
    send(request)
    assert server.seen[0].body == b"smaller"
    assert_signed_as_seen(server.seen[0])


def test_files_and_forms_with_files_are_read_and_signed(
    signer: RequestSigner, server: RawServer, tmp_path: Path
) -> None:
    (tmp_path / "order.json").write_bytes(b'{"a": 1}')
    with (tmp_path / "order.json").open("rb") as file:
        send(prepared(signer, server.url, "POST", data=file))
    form = MultipartEncoder({"order": ("order.json", io.BytesIO(b'{"a": 1}'), "application/json")})
    send(prepared(signer, server.url, "POST", data=form, headers={"Content-Type": form.content_type}))
    assert server.seen[0].body == b'{"a": 1}'
    assert server.seen[1].body.count(b'{"a": 1}') == 1
    for seen in server.seen:
        assert_signed_as_seen(seen)


def test_a_path_that_is_sent_as_it_is_typed_is_refused(signer: RequestSigner, server: RawServer) -> None:
    request = prepared(signer, f"{server.url}/b")
    request.url = f"{server.url}/a/../b"
    with pytest.raises(UnsignableRequest, match="path-as-is"):
        send(request)
    assert server.seen == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data": iter([b"a", b"b"])}, "not in chunks"),
        ({"headers": {"Authorization": "Bearer mine"}}, "a value of its own for Authorization"),
        ({"data": io.BytesIO(bytes(MAX_BUFFER + 1))}, "longer than"),
    ],
)
def test_what_cannot_be_signed_says_why(
    signer: RequestSigner, server: RawServer, more: dict[str, object], says: str
) -> None:
    with pytest.raises(UnsignableRequest, match=says):
        prepared(signer, server.url, "POST", **more)


def test_a_name_that_no_service_has_is_refused_before_a_key_is_needed() -> None:
    def no_key() -> Service:
        raise AssertionError("no key is needed")

    with pytest.raises(InvalidName):
        prepared(RequestSigner("a b", no_key), "http://callee/")
    with pytest.raises(ConfigurationError):
        prepared(RequestSigner("callee", no_key), "http+unix://callee/")


def test_a_redirect_within_the_origin_is_signed_again(signer: RequestSigner, server: RawServer) -> None:
    server.script += [Answer(307, {"Location": "/a"}), Answer(303, {"Location": f"{server.url}/b?c=d"})]
    send(prepared(signer, server.url, "POST", data=b"body"), follow=True)
    assert [(seen.line.split(" ")[0], seen.target, seen.body) for seen in server.seen] == [
        ("POST", "/", b"body"),
        ("POST", "/a", b"body"),
        ("GET", "/b?c=d", b""),
    ]
    for seen in server.seen:
        assert_signed_as_seen(seen)
    assert len({seen.claims["jti"] for seen in server.seen}) == 3


def test_a_redirect_to_another_origin_carries_no_token(signer: RequestSigner, server: RawServer) -> None:
    with raw_server() as other:
        server.script.append(Answer(307, {"Location": f"{other.url}/a"}))
        send(prepared(signer, server.url, headers={"Txn-Token": "a.b.c", "X-Other": "kept"}), follow=True)
        (seen,) = other.seen
    assert server.seen[0].headers["txn-token"] == ["a.b.c"]
    assert (seen.authorization, seen.headers.get("txn-token"), seen.headers["x-other"]) == (None, None, ["kept"])


def test_another_origin_does_not_choose_what_is_signed(signer: RequestSigner, server: RawServer) -> None:
    with raw_server(Answer(307, {"Location": f"{server.url}/chosen"})) as other:
        server.script.append(Answer(307, {"Location": other.url}))
        with pytest.raises(UnsignableRequest, match="another origin redirects"):
            send(prepared(signer, server.url), follow=True)
    assert [seen.target for seen in server.seen] == ["/"]


def test_a_password_of_netrc_does_not_replace_the_token(
    signer: RequestSigner, server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    server.script.append(Answer(307, {"Location": "/a"}))
    with requests.Session() as session:
        first = session.send(
            session.prepare_request(requests.Request("GET", server.url, auth=signer)), allow_redirects=False
        )
        session.send(first.next, allow_redirects=False)
    assert [seen.target for seen in server.seen] == ["/", "/a"]
    for seen in server.seen:
        assert_signed_as_seen(seen)
