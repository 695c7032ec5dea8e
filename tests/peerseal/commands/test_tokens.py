"""``peerseal inspect`` and ``peerseal sign`` at a terminal."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal import Verifier
from peerseal.__main__ import main
from peerseal.commands.tokens import KINDS, OTHER, inspect, lines_of, target_of
from peerseal.errors import ConfigurationError
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.join import JoinToken
from peerseal.runtime.times import in_words
from peerseal.testing import MemoryRegistry

CALLER = "acme.internal/client-service"


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


def jws(header: object, claims: object) -> str:
    return f"{b64url(canonical_json(header))}.{b64url(canonical_json(claims))}.{b64url(b'signature')}"


def test_a_request_token_is_decoded_with_its_times_in_words(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    token = registry.identity("client").sign_request("callee", method="GET", target="/a")
    assert main(["inspect", token]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("request token, NOT VERIFIED\nheader\n  alg  ES256\n")
    assert f"  aud             {registry.domain}/callee\n" in shown
    assert re.search(r"^  exp  .*Z, in (?:1 minute|[0-9]+ seconds)$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80


def test_json_holds_all_and_says_that_it_is_unverified(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    token = registry.identity("client").sign_request("callee", method="GET", target="/a")
    assert main(["inspect", "--json", f"Authorization: Bearer {token}"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["verified"], shown["header"]["typ"]) == (
        "request token",
        False,
        "peerseal-request+jwt",
    )
    assert shown["claims"]["iss"] == f"{registry.domain}/client"


@pytest.mark.parametrize("given", ["-", "@"])
def test_a_document_comes_from_standard_input_or_a_file(
    registry: MemoryRegistry,
    given: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.identity("client")
    document = registry.call("GET", "/v1/services/client/jwks.jwt").body
    (tmp_path / "set.jwt").write_bytes(document + b"\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(document)))
    assert main(["inspect", f"@{tmp_path / 'set.jwt'}" if given == "@" else "-"]) == 0
    assert capsys.readouterr().out.startswith("signed JWK Set, NOT VERIFIED\n")


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["sign", "callee", "POST", "http://callee/", "--data", "@-"],
        ["verify", "-"],
        ["verify", "--http", "-", "--audience", "callee"],
        ["call", "callee", "POST", "http://callee/", "--raw", "@-"],
        ["call", "callee", "POST", "http://callee/", "a:=@-"],
    ],
    ids=" ".join,
)
def test_a_closed_standard_input_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as the interpreter sets it for `<&-`
    assert main(command) == 2
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.parametrize("typ", sorted(KINDS))
def test_every_kind_of_ours_has_its_name(typ: str) -> None:
    assert inspect(jws({"alg": "RS256", "kid": "k", "typ": typ}, {})).kind == KINDS[typ]


@pytest.mark.parametrize("typ", [None, "JWT", 7, ["peerseal-event+jwt"]])
def test_what_is_not_ours_is_decoded_too(typ: object) -> None:
    assert inspect(jws({"alg": "none", "typ": typ}, {"a": 1})).kind == OTHER


def test_the_secret_of_a_join_token_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    token = JoinToken.generate(b64url(b"p" * 32))
    assert main(["inspect", token.encode()]) == 0
    shown = capsys.readouterr().out
    assert token.id in shown
    assert token.pin in shown
    assert token.secret not in shown


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("a", "1 segments"),
        ("a.b", "2 segments"),
        ("%.e30.e30", "the header is not base64url"),
        ("W10.e30.e30", "the header is no JSON object"),
        ("e30.bm8.e30", "the payload is no JSON object"),
        ("e30.e30.%", "the signature is not base64url"),
        ("psj1.a.b.c", "the join token cannot be read"),
    ],
)
def test_what_cannot_be_read_names_the_part(token: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", token]) == 2
    assert says in capsys.readouterr().err


def test_a_value_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", jws({"typ": "\x1b[2J"}, {"iss": "a\nheader\x9b", "iat": 10**30, "exp": True})]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_long_names_and_values_take_no_more_room_than_they_hold() -> None:
    name, value = "n" * 20_000, "v" * 20_000
    shown = list(
        lines_of(inspect(jws({"alg": "none"}, {name: value, "iss": "a"} | {f"c{i}": i for i in range(99)})), 0.0)
    )
    assert sum(map(len, shown)) < 2 * (len(name) + len(value))
    assert f"  {name}" in shown
    assert max(len(line) for line in shown if name not in line) <= 80


def test_of_a_long_value_the_beginning_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    token = jws({"alg": "none"}, {"text": "q" * 5000, "list": ["z" * 5000]})
    assert main(["inspect", token]) == 0
    shown = capsys.readouterr().out
    assert (shown.count("q"), shown.count("z")) == (4096, 4094)  # JSON's bracket and quotation mark are counted too
    assert "(5000 characters in all; --json shows them)" in " ".join(shown.split())
    assert main(["inspect", token, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["claims"]["text"] == "q" * 5000


@pytest.mark.parametrize("text", ["1795953752", "1795953752  2026-11-29 12:02:32Z, 3 seconds ago", "now"])
def test_a_text_is_not_mistaken_for_a_time(text: str) -> None:
    shown = list(lines_of(inspect(jws({"alg": "none"}, {"iat": text})), 1795953755))
    assert shown[-1] == f'  iat  "{text}"'


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "now"),
        (0.9, "now"),
        (57, "in 57 seconds"),
        (-1, "1 second ago"),
        (-185, "3 minutes ago"),
        (7200, "in 2 hours"),
        (-90_000, "1 day ago"),
    ],
)
def test_a_distance_in_time_is_said_in_one_unit(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://callee", "/"),
        ("http://callee?a=1", "/?a=1"),
        ("https://callee:8443/a%20b?x=/../y", "/a%20b?x=/../y"),
        ("http://[::1]:8080/a//b", "/a//b"),
        ("http://callee:65535/a%5B0%5D", "/a%5B0%5D"),
    ],
)
def test_the_target_of_a_url_is_what_curl_sends(url: str, target: str) -> None:
    assert target_of(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "callee/a",
        "ftp://callee/a",
        "http:///a",
        "http://callee/a b",
        "http://callee/ä",
        "http://callee/a/../b",
        "http://callee/.",
        "http://callee/a#b",
        "http://[callee/a",
        "http://callee:99999/a",
        "http://callee:port/a",
        "http://:80/a",
        "http://user@callee/a",
        "http://user:password@callee/a",
        "http://callee/a?b[0]=1",
        "http://callee/{a,b}",
    ],
)
def test_a_url_that_curl_changes_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        target_of(url)
    assert "password" not in str(refused.value)


@pytest.mark.parametrize("method", ["", "GE T", "GET\n", "GET:", "GÉT"])
def test_what_is_no_method_is_not_signed(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sign", "callee", method, "http://callee/"]) == 2
    assert "is no method" in capsys.readouterr().err


def test_a_signed_header_is_accepted_once(
    registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = registry.identity("client")

    class Own:
        def __enter__(self) -> object:
            return caller

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("peerseal.commands.tokens.own_identity", Own)
    arguments = [
        "sign",
        "callee",
        "post",
        "http://callee/orders?a=1",
        "--data",
        '{"a": 1}',
        "--type",
        "application/json",
    ]
    assert main(arguments) == 0
    header = capsys.readouterr().out.strip()
    assert header.startswith("Authorization: Bearer ")
    verifier = Verifier(registry.trust_store(), audience="callee", allow={"client": {"orders:write"}})
    peer = verifier.verify(
        header.rpartition(" ")[2],
        method="POST",
        target="/orders?a=1",
        body=b'{"a": 1}',
        headers={"content-type": "application/json"},
    )
    assert peer.service == "client"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expires_in"] == 60


def test_without_a_key_folder_nothing_is_signed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PEERSEAL_KEY_DIR", raising=False)
    assert main(["sign", "callee", "GET", "http://callee/"]) == 2
    assert "PEERSEAL_KEY_DIR is not set" in capsys.readouterr().err
