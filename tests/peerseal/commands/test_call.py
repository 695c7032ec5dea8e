"""``peerseal call`` at a terminal: a real call to a Flask service over HTTP, by the key of this host."""

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.commands.call import Content, content_of, url_of
from peerseal.errors import ConfigurationError
from tests.peerseal.called_service import CALLEE, CALLER, CalledService, called_service
from tests.support.certificates import Authority
from tests.support.misbehaving import misbehaving
from tests.support.wire import Answer, raw_server

ROOT = Path(__file__).parents[3]
LARGEST = 16 * 1024 * 1024
TOO_LARGE = {"identity": bytes(LARGEST + 1), "gzip": gzip.compress(bytes(LARGEST + 1))}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CalledService]:
    with called_service(tmp_path_factory.mktemp("call")) as service:
        yield service


@pytest.fixture
def service(running: CalledService, monkeypatch: pytest.MonkeyPatch) -> CalledService:
    """The service, and this process as one on the caller's host."""
    for name, value in running.environ.items():
        if name.startswith("PEERSEAL_"):
            monkeypatch.setenv(name, value)
    running.targets.clear()
    return running


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> pytest.CaptureFixture[str]:
    """The output, as if it were a terminal."""
    monkeypatch.setattr("peerseal.commands.call.on_terminal", lambda: True)
    return capsys


# ---- the call


def test_a_call_is_made_in_the_name_of_this_host(service: CalledService, capsys: pytest.CaptureFixture[str]) -> None:
    items = ["customer=ada", "amount:=250", "limit==10", "limit==11", "Content-Type:application/vnd.a+json"]
    assert main(["call", CALLEE, "post", f"{service.url}/orders", *items]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "caller": CALLER,
        "type": "application/vnd.a+json",
        "encoding": None,
        "body": '{"customer": "ada", "amount": 250}',
        "query": {"limit": ["10", "11"]},
    }


def test_a_raw_body_comes_from_a_file(
    service: CalledService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "order").write_bytes(b"\xff\0")
    raw = ["--raw", f"@{tmp_path / 'order'}", "Content-Type:image/png"]
    assert main(["call", CALLEE, "POST", f"{service.url}/orders", *raw]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["body"], shown["type"]) == ("\xff\0", "image/png")


def test_a_redirect_is_followed_where_that_is_asked_for(
    service: CalledService, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = ["call", CALLEE, "POST", f"{service.url}/moved?with=307", "--raw", "body"]
    assert main([*moved, "--headers"]) == 0
    assert "\nLocation: /orders?from=moved\n" in capsys.readouterr().out
    assert main([*moved, "--follow"]) == 0
    assert json.loads(capsys.readouterr().out)["body"] == "body"
    assert service.targets[-1] == "POST /orders?from=moved"


def test_a_redirect_to_another_service_carries_no_token(service: CalledService) -> None:
    with raw_server() as other:
        service.elsewhere = other.url
        assert main(["call", CALLEE, "GET", f"{service.url}/elsewhere", "--follow"]) == 0
    assert [seen.authorization for seen in other.seen] == [None]


@pytest.mark.parametrize("item", ["User-Agent:", "accept-encoding:", "x-request-id:"])
def test_a_header_without_a_value_is_not_sent_by_default_either(service: CalledService, item: str) -> None:
    with raw_server() as callee:
        assert main(["call", CALLEE, "GET", callee.url, item]) == 0
    assert item.lower().removesuffix(":") not in callee.seen[0].headers


# ---- the answer


@pytest.mark.parametrize(("status", "code"), [(101, 1), (204, 0), (304, 0), (499, 4), (599, 5), (600, 1), (999, 1)])
def test_the_exit_code_is_that_of_the_status(service: CalledService, status: int, code: int) -> None:
    with raw_server(Answer(status)) as callee:
        assert main(["call", CALLEE, "GET", callee.url]) == code


def test_json_is_laid_out_for_a_terminal(service: CalledService, terminal: pytest.CaptureFixture[str]) -> None:
    assert main(["call", CALLEE, "GET", f"{service.url}/orders"]) == 0
    shown = terminal.readouterr().out
    assert shown.startswith('HTTP/1.1 200 OK\n{\n  "body": "",\n  "caller": "client",\n')


def test_headers_are_shown_where_that_is_asked_for(
    service: CalledService, terminal: pytest.CaptureFixture[str]
) -> None:
    assert main(["call", CALLEE, "GET", f"{service.url}/orders", "-v"]) == 0
    assert re.match(r"HTTP/1.1 200 OK\n(?:[\w-]+: .*\n)+\n\{\n", terminal.readouterr().out)


def test_a_refusal_is_told_in_words(service: CalledService, terminal: pytest.CaptureFixture[str]) -> None:
    assert main(["call", CALLEE, "GET", f"{service.url}/invoices"]) == 4
    shown = terminal.readouterr()
    assert shown.out == "HTTP/1.1 403 FORBIDDEN\n"
    assert re.fullmatch(
        "Error: insufficient_scope: Forbidden\n"
        "  This service may call here, but not with the scope that the route needs.\n"
        r"  The callee's log names this request [0-9a-f]+\.\n",
        shown.err,
    )
    assert max(map(len, shown.err.splitlines())) <= 80


@pytest.mark.parametrize(("items", "named"), [([], r"\w+"), (["x-request-id:mine"], "mine")])
def test_the_words_name_the_request_id_that_was_sent(
    service: CalledService, items: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Answer(403, {"Content-Type": "application/problem+json"}, b'{"code": "closed", "detail": "Not today."}')
    with raw_server(problem) as callee:
        assert main(["call", CALLEE, "GET", callee.url, *items]) == 4
    (sent,) = callee.seen[0].headers["x-request-id"]
    assert re.fullmatch(named, sent)
    assert capsys.readouterr().err == (
        f"Error: closed: As Scripted\n  Not today.\n  The callee's log names this request {sent}.\n"
    )


def test_a_problem_without_a_code_is_shown_as_any_answer(
    service: CalledService, terminal: pytest.CaptureFixture[str]
) -> None:
    problem = Answer(403, {"Content-Type": "application/problem+json"}, b'{"detail": "Not today."}')
    with raw_server(problem) as callee:
        assert main(["call", CALLEE, "GET", callee.url]) == 4
    shown = terminal.readouterr()
    assert (shown.out, shown.err) == ('HTTP/1.1 403 As Scripted\n{\n  "detail": "Not today."\n}\n', "")


def test_a_refusal_into_a_pipe_is_the_problem_document_and_the_words(
    service: CalledService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["call", "another-service", "GET", f"{service.url}/orders"]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["code"] == "wrong_audience"
    assert shown.err.startswith("Error: wrong_audience: Unauthorized\n")


def test_json_tells_status_headers_and_body(service: CalledService, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", CALLEE, "GET", f"{service.url}/orders", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["status"], shown["headers"]["Content-Type"]) == (200, "application/json")
    assert shown["body"]["caller"] == CALLER
    assert main(["call", CALLEE, "GET", f"{service.url}/broken", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["body"] == "out of order\n"
    assert main(["call", CALLEE, "GET", f"{service.url}/bytes", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["body"], shown["body_base64"]) == (None, "/wAbWzJK")


def test_bytes_reach_a_pipe_as_they_are_and_no_terminal(
    service: CalledService, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["call", CALLEE, "GET", f"{service.url}/bytes"]
    assert main(arguments) == 0
    assert capfdbinary.readouterr().out == b"\xff\x00\x1b[2J"
    monkeypatch.setattr("peerseal.commands.call.on_terminal", lambda: True)
    assert main(arguments) == 0
    assert capfdbinary.readouterr().out == b"HTTP/1.1 200 OK\n6 bytes that are no text: redirect the output to a file\n"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", b"fine\x1b[2J\x9b\r\n"),
        ("application/json", b'{"a": "\\u001b[2J\xc2\x9b"}'),
        ("application/json", b"[" * 100_000),
        ("application/problem+json", b'{"code": ["\\u001b"], "title": {"\\u009b": 1}, "detail": 7}'),
        ("application/problem+json", b'["\\u001b"]'),
    ],
)
def test_no_answer_controls_the_terminal_or_ends_in_a_traceback(
    service: CalledService, content_type: str, body: bytes, terminal: pytest.CaptureFixture[str]
) -> None:
    headers = {"Content-Type": content_type, "X-Request-Id": "a\x1b"}
    with raw_server(Answer(400, headers, body)) as liar:
        assert main(["call", CALLEE, "GET", liar.url, "-v"]) == 4
    shown = "".join(terminal.readouterr())
    assert all(character.isprintable() or character == "\n" for character in shown)


@pytest.mark.parametrize("arguments", [[], ["--follow"], ["--json"]])
@pytest.mark.parametrize("status", [200, 302, 403])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_an_answer_that_is_too_large_is_refused_before_it_fills_the_memory(
    service: CalledService, arguments: list[str], status: int, coding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = TOO_LARGE[coding]
    with raw_server(Answer(status, {"Content-Encoding": coding, "Location": "/next"}, body)) as callee:
        assert main(["call", CALLEE, "GET", callee.url, *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"Error: {callee.url} answers with more than {LARGEST} bytes: ")


def test_the_largest_answer_is_shown_whole(service: CalledService, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with raw_server(Answer(200, {}, bytes(LARGEST))) as callee:
        assert main(["call", CALLEE, "GET", callee.url]) == 0
    assert len(capfdbinary.readouterr().out) == LARGEST


@pytest.mark.parametrize("body", ['{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', "[" * 900 + "]" * 900, '"\\ud800"'])
def test_a_body_that_is_no_strict_json_is_shown_as_text(
    service: CalledService, body: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with raw_server(Answer(200, {"Content-Type": "application/json"}, body.encode())) as callee:
        assert main(["call", CALLEE, "GET", callee.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["body"] == body


def test_json_that_would_grow_when_it_is_laid_out_is_shown_as_it_came(
    service: CalledService, terminal: pytest.CaptureFixture[str]
) -> None:
    body = b"[" * 30 + b",".join([b"1"] * 600_000) + b"]" * 30
    for arguments in ([], ["--json"]):
        with raw_server(Answer(200, {"Content-Type": "application/json"}, body)) as callee:
            assert main(["call", CALLEE, "GET", callee.url, *arguments]) == 0
        assert len(terminal.readouterr().out) < 2 * len(body)


def test_the_time_for_a_call_is_that_for_the_whole_answer(
    service: CalledService, capsys: pytest.CaptureFixture[str]
) -> None:
    def drips(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    with misbehaving(drips) as callee:
        assert main(["call", CALLEE, "GET", callee.url, "--timeout", "0.5"]) == 1
    assert f"Error: {callee.url} gives no answer: " in capsys.readouterr().err


def test_a_service_that_does_not_answer_is_named(service: CalledService, capsys: pytest.CaptureFixture[str]) -> None:
    with raw_server() as gone:
        url = gone.url
    assert main(["call", CALLEE, "GET", f"{url}/orders?token=secret"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"Error: {url} gives no answer: ")
    assert "secret" not in shown


def test_https_is_checked_with_the_authority_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, another = Authority.make(tmp_path, "authority"), Authority.make(tmp_path, "another")
    with called_service(tmp_path, authority.issue("callee", server=True)) as service:
        for name, value in service.environ.items():
            monkeypatch.setenv(name, value)
        arguments = ["call", CALLEE, "GET", f"{service.url}/orders", "--ca"]
        assert main([*arguments, str(authority.file)]) == 0
        assert json.loads(capsys.readouterr().out)["caller"] == CALLER
        (tmp_path / "empty.pem").write_text("no certificate\n")
        for file in (another.file, tmp_path / "empty.pem"):
            assert main([*arguments, str(file)]) == 1
            assert f"Error: {service.url} gives no answer: " in capsys.readouterr().err
        assert service.targets == ["GET /orders"]


def test_a_file_of_certificates_that_is_absent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["call", CALLEE, "GET", "https://127.0.0.1:1/", "--ca"]
    assert main([*arguments, str(tmp_path / "absent.pem")]) == 2
    assert "absent.pem: no such file" in capsys.readouterr().err


def test_a_registry_that_is_away_does_not_keep_a_host_with_a_key_from_calling(
    service: CalledService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERSEAL_REGISTRY_URL", "http://127.0.0.1:1")
    assert main(["call", CALLEE, "GET", f"{service.url}/orders"]) == 0


def test_without_a_key_folder_no_call_is_made(
    service: CalledService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PEERSEAL_KEY_DIR")
    assert main(["call", CALLEE, "GET", f"{service.url}/orders"]) == 2
    assert "PEERSEAL_KEY_DIR is not set" in capsys.readouterr().err
    assert service.targets == []


# ---- arguments


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (":8080/orders", "http://localhost:8080/orders"),
        (":/orders", "http://localhost/orders"),
        (":", "http://localhost"),
        ("billing:8080/a?b=c", "http://billing:8080/a?b=c"),
        ("https://billing", "https://billing"),
        ("localhost:8080/a?next=http://x/", "http://localhost:8080/a?next=http://x/"),
        ("HTTPS://billing/a?next=http://x/", "HTTPS://billing/a?next=http://x/"),
    ],
)
def test_short_urls_are_those_of_httpie(text: str, url: str) -> None:
    assert url_of(text) == url


def test_items_are_those_of_httpie(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("grüße\n")
    (tmp_path / "json").write_text('{"a": [1]}')
    items = [
        *("a=b:c=d", "n:=1.5", "q==x=y", "X-A: b ", "Accept:", r"e\=f=\@g", "z:=null"),
        *(f"t=@{tmp_path / 'text'}", f"j:=@{tmp_path / 'json'}"),
    ]
    found = content_of(items)
    assert found.headers == {"X-A": "b", "Accept": None, "Content-Type": "application/json"}
    assert found.query == (("q", "x=y"),)
    assert json.loads(found.body or b"") == {
        **{"a": "b:c=d", "n": 1.5, "e=f": "@g", "z": None},
        **{"t": "grüße\n", "j": {"a": [1]}},
    }
    assert content_of([]) == Content({}, (), None)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["orders"], "is no item"),
        (["=a"], "is no item"),
        (["a:=b"], "a: not strict JSON"),
        (["a:=NaN"], "a: not strict JSON: NaN is not JSON"),
        (["a:=1e999"], "a: not strict JSON: a number out of range"),
        (["a:=[-1e999]"], "a: not strict JSON: a number out of range"),
        (["a:=" + "[" * 100_000], "a: not strict JSON: nested too deeply"),
        (["a:=" + "[" * 33 + "]" * 33], "a: not strict JSON: nested too deeply"),
        (['a:={"b": 1, "b": 2}'], "a: not strict JSON: a member is repeated"),
        (["a:=[1,"], "a: not strict JSON: no value where one is expected"),
        (["a=1", "a=2"], "a is given twice"),
        (["A:1", "A:2"], "A is given twice"),
        (["content-type:x", "Content-Type:y"], "Content-Type is given twice"),
        (["q==\udcff"], "Error: q: not UTF-8 text"),
        (["a=\udcff"], "Error: a: not UTF-8 text"),
        (['a:="\udcff"'], "not UTF-8 text"),
        (["X A:b"], "'X A' is no name of a header"),
        (["X\n:b"], "is no name of a header"),
        (["Transfer-Encoding:chunked", "a=b"], "Transfer-Encoding: the command sends it as the body needs it"),
        (["content-length:3"], "content-length: the command sends it"),
        (["Content-Length:"], "Content-Length: the command sends it"),
        (["a=@/no/such/file"], "/no/such/file: cannot be read"),
        (["items[0][id]=pen"], "nested names"),
        (["a=1", "--raw", "b"], "both give a body"),
    ],
)
def test_an_item_that_is_none_is_named(items: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", CALLEE, "POST", "http://callee/", *items]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "http://callee/\udcff"),
        ("G ET", "http://callee/"),
        ("GET", "ftp://callee/"),
        ("GET", "http://[callee/"),
        ("GET", "http://"),
        ("", ":"),
    ],
)
def test_what_is_no_method_or_url_is_wrong_usage(method: str, url: str, service: CalledService) -> None:
    assert main(["call", CALLEE, method, url]) == 2


@pytest.mark.parametrize(
    "arguments",
    [["GET", "http://user@callee/"], ["GET", "http://callee/", "Authorization:mine"]],
)
def test_a_request_that_cannot_be_signed_is_not_sent(arguments: list[str], service: CalledService) -> None:
    assert main(["call", CALLEE, *arguments]) == 1


def test_help_shows_two_examples_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["call", "--help"])
    shown = capsys.readouterr().out
    assert shown.count("  peerseal call ") == 2
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("rest", [["--nonsense"], ["a=b", "--json", "c=d", "--nonsense"]])
def test_an_option_that_is_none_is_wrong_usage(rest: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["call", CALLEE, "GET", "http://callee/", *rest])
    assert "unrecognized arguments: " in capsys.readouterr().err


def test_a_time_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["call", CALLEE, "GET", "http://callee/", "--timeout", "soon"])
    assert "--timeout" in capsys.readouterr().err


def test_content_is_json_unless_a_header_says_otherwise() -> None:
    assert content_of([], "{}").headers["Content-Type"] == "application/json"
    assert content_of(["content-type:text/plain"], "a").headers["content-type"] == "text/plain"
    with pytest.raises(ConfigurationError):
        content_of(["a=b"], "{}")
