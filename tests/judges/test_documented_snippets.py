"""Each snippet of docs/how-to/other-libraries.md accepts real tokens and refuses false ones."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

import peerseal
from peerseal.protocol.encoding import b64url, b64url_decode
from tests.judges.conftest import BODY, CALLEE, HEADERS, METHOD, TARGET, Caller, Node, missing, tampered
from tests.support.stack import DOMAIN, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs/how-to/other-libraries.md").read_text()
GO_FILES = Path(__file__).parent / "go_jose"
SNIPPETS: dict[str, str] = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```\w+\n(.*?)^```", PAGE, re.M | re.S))
PYTHON = ("python-jose", "PyJWT", "joserfc")

Read = Callable[[str], dict[str, Any]]


class Refused(Exception):
    """The snippet did not believe it."""


class Reader(NamedTuple):
    """The two functions of a snippet."""

    claims_of: Read
    document_of: Read


def snippet(name: str, caller: Caller, registry: Stack) -> str:
    """The text on the page, for this domain, registry and caller."""
    changed = {
        "https://registry.acme.internal": registry.registry_url,
        "acme.internal/billing": f"{DOMAIN}/{CALLEE}",
        "acme.internal/shop": caller.identity.id,
        "acme.internal/registry": f"{DOMAIN}/registry",
        "/services/shop/": f"/services/{caller.identity.service}/",
    }
    text = SNIPPETS[name]
    for old, new in changed.items():
        assert old in text, f"{name} names {old}"
        text = text.replace(old, new)
    return text


def by_python(text: str, _: pytest.FixtureRequest) -> Reader:
    names: dict[str, Any] = {}
    exec(text, names)

    def reading(read: Read) -> Read:
        def refusing(token: str) -> dict[str, Any]:
            try:
                return read(token)
            except Exception as error:
                raise Refused from error

        return refusing

    return Reader(reading(names["claims_of"]), reading(names["document_of"]))


def by_node(text: str, request: pytest.FixtureRequest) -> Reader:
    node: Node = request.getfixturevalue("node")
    ask = "\nconsole.log(JSON.stringify(await %s(process.argv[1])))"

    def reading(function: str) -> Read:
        return lambda token: answered(node.run(text + ask % function, token))

    return Reader(reading("claimsOf"), reading("documentOf"))


def by_go(text: str, request: pytest.FixtureRequest) -> Reader:
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if go is None:
        missing("the program go is not there (Debian: apt-get install golang-go)")
    folder: Path = request.getfixturevalue("tmp_path")
    for file in GO_FILES.iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "documented.go").write_text(text)
    built = subprocess.run([go, "build", "-o", "judge", "."], cwd=folder, capture_output=True, encoding="utf-8")
    if built.returncode != 0:
        assert "documented.go" not in built.stderr, built.stderr
        missing(f"go build failed: {built.stderr[-500:]}")

    def reading(function: str) -> Read:
        return lambda token: answered(
            subprocess.run([folder / "judge", function, token], capture_output=True, encoding="utf-8", timeout=60)
        )

    return Reader(reading("claims"), reading("document"))


def answered(run: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    if run.returncode != 0:
        raise Refused(run.stderr)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(params=[*PYTHON, "npm jose", "Go: go-jose"])
def reader(request: pytest.FixtureRequest, caller: Caller, running_registry: Stack) -> Reader:
    """Each snippet of the page."""
    name = request.param
    make = {"npm jose": by_node, "Go: go-jose": by_go}.get(name, by_python)
    return make(snippet(name, caller, running_registry), request)


def test_a_snippet_believes_what_is_good_and_nothing_else(
    reader: Reader, caller: Caller, running_registry: Stack, stranger: peerseal.Identity
) -> None:
    token = caller.token()
    assert reader.claims_of(token) == json.loads(decoded(token))
    [jws, other] = [
        requests.get(f"{running_registry.registry_url}/v1/services/{service}/jwks.jwt", timeout=10).text
        for service in (caller.identity.service, stranger.service)
    ]
    document = reader.document_of(jws)
    assert document["sub"] == caller.identity.id
    assert caller.kid in json.dumps(document)
    elsewhere = caller.identity.sign_request("another-service", method=METHOD, target=TARGET)
    of_a_stranger = stranger.sign_request(CALLEE, method=METHOD, target=TARGET, body=BODY, headers=HEADERS)
    for refused in (tampered(token), elsewhere, of_a_stranger, caller.identity.sign_assertion(), jws, unsigned(token)):
        with pytest.raises(Refused):
            reader.claims_of(refused)
    for refused in (tampered(jws), other, token, unsigned(jws)):
        with pytest.raises(Refused):
            reader.document_of(refused)


@pytest.fixture(scope="session")
def stranger(running_registry: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[peerseal.Identity]:
    """Another service of the domain, which may not speak for the caller."""
    identity = peerseal.Identity(
        "stranger",
        registry=running_registry.registry_url,
        join_token=running_registry.join_token("stranger"),
        key_dir=tmp_path_factory.mktemp("stranger"),
    ).start()
    yield identity
    identity.stop()


def decoded(token: str) -> bytes:
    return b64url_decode(token.split(".")[1])


def unsigned(token: str) -> str:
    """The same claims with ``alg: none``."""
    header, payload, _ = token.split(".")
    named = json.loads(b64url_decode(header)) | {"alg": "none"}
    return f"{b64url(json.dumps(named).encode())}.{payload}."


def test_the_check_of_the_binding_is_the_one_of_the_protocol(caller: Caller) -> None:
    names: dict[str, Any] = {}
    exec(SNIPPETS["What a stock library leaves to you"], names)
    claims = json.loads(decoded(caller.token()))
    honest = {"method": METHOD, "target": TARGET, "body": BODY, "headers": {**HEADERS, "host": "callee"}}
    assert names["is_bound"](claims, **honest)
    changes: list[dict[str, Any]] = [
        {"method": "GET"},
        {"target": f"{TARGET}&b=2"},
        {"body": b""},
        {"headers": {}},
        {"headers": {**HEADERS, "content-encoding": "gzip"}},
    ]
    for change in changes:
        assert not names["is_bound"](claims, **{**honest, **change}), change


def test_the_page_has_a_snippet_for_each_library() -> None:
    assert set(SNIPPETS) == {*PYTHON, "npm jose", "Go: go-jose", "What a stock library leaves to you"}
