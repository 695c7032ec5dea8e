"""``peerseal-registry federation``, as a shell runs it, on this host's database and over HTTP, with the registry of a
foreign trust domain on a socket."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from demo.processes import BIN, environment
from peerseal.protocol.documents.federation import FederationDocument
from registry.__main__ import main
from registry.app import create_app
from registry.services.setup.initialise import initialise
from registry.storage.engine import create_engine
from registry.storage.unit import Store
from tests.registry.driver import DOMAIN, Driver, settings_at
from tests.support.keys import key
from tests.support.migrated import copy_schema

PARTNER = "partner.example"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def partner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of the foreign registry, and its pin."""
    home = tmp_path_factory.mktemp("partner")
    settings = settings_at(f"sqlite:///{home / 'registry.sqlite3'}", home)
    copy_schema(settings.database_url)
    pin = initialise(settings, Store(create_engine(settings.database_url)), PARTNER).pin
    with served(create_app(settings)) as url:
        yield url, pin


@contextmanager
def served(app: Any) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Driver]:
    home = tmp_path / "home"
    home.mkdir()
    driver = Driver(f"sqlite:///{home / 'registry.sqlite3'}", home)
    yield driver
    driver.close()


@pytest.fixture(params=["this host", "over HTTP"])
def run(registry: Driver, request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs ``federation`` with these arguments."""
    token = registry.operator["Authorization"].removeprefix("Bearer ")
    environ = {
        "REGISTRY_HOME": str(registry.home),
        "REGISTRY_DATABASE_URL": registry.url,
        "PEERSEAL_OPERATOR_TOKEN": token,
    }
    with served(registry.app) as url:
        at = ["--registry", url] if request.param == "over HTTP" else []

        def run(*arguments: str, given: str = "") -> Result:
            return CliRunner().invoke(main, ["federation", *arguments, *at], env=environ, input=given)

        yield run


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    return result.stderr


def test_a_foreign_domain_is_added_listed_and_removed(run: Run, registry: Driver, partner: tuple[str, str]) -> None:
    url, pin = partner
    assert run("list").stdout == "no foreign trust domain is believed\n"
    limits = ("--service", "billing", "--service", "shop", "--scopes", "orders:read orders:write")
    done = run("add", PARTNER, "--url", url, "--pin", pin, *limits)
    assert done.exit_code == 0, done.output
    assert "billing, shop, with the scopes [orders:read, orders:write]" in " ".join(done.stdout.split())
    believed = told(run("list", "--json"))
    [domain] = believed["domains"]
    assert domain == {
        "domain": PARTNER,
        "urls": [url],
        "root": pin,
        "services": ["billing", "shop"],
        "scopes": ["orders:read", "orders:write"],
        "transactions": False,
    }
    assert all(text in run("list").stdout for text in (PARTNER, pin, "billing shop", url))
    document = registry.read(FederationDocument, registry.got("/v1/federation.jwt"))
    assert document.federation.to_json() == {"domains": [domain]}
    assert document.seq == believed["entry"]
    assert told(run("add", PARTNER, "--url", url, "--pin", pin, "--unlimited", "--json"))["domains"] == [
        {"domain": PARTNER, "urls": [url], "root": pin, "transactions": False}
    ]
    refused(run("add", PARTNER, "--url", url, "--pin", pin, "--transactions"), 2)
    crossing = ("--transactions", "--scopes", "orders:read", "--json")
    assert told(run("add", PARTNER, "--url", url, "--pin", pin, *crossing))["domains"][0]["transactions"] is True
    assert "is not believed any more" in run("remove", PARTNER).stdout
    assert told(run("list", "--json"))["domains"] == []
    assert "not_federated" in refused(run("remove", PARTNER))


def test_a_registry_under_another_root_or_of_another_domain_is_not_believed(run: Run, partner: tuple[str, str]) -> None:
    url, pin = partner
    other = key().public.thumbprint
    assert "document_wrong_root" in refused(run("add", PARTNER, "--url", url, "--pin", other))
    assert "document_wrong_subject" in refused(run("add", "partner.internal", "--url", url, "--pin", pin))
    assert told(run("list", "--json"))["domains"] == []


def test_a_registry_that_cannot_be_reached_is_added_where_the_operator_says_so(run: Run) -> None:
    unreachable = ("--url", "http://127.0.0.1:9", "--pin", key().public.thumbprint)
    refused(run("add", PARTNER, *unreachable), 3)
    assert told(run("add", PARTNER, *unreachable, "--unchecked", "--json"))["domains"]


def test_two_roots_overlap_while_a_domain_replaces_its_root(run: Run, partner: tuple[str, str]) -> None:
    url, pin = partner
    old = key().public.thumbprint
    assert run("add", PARTNER, "--url", "https://old.example", "--pin", old, "--unchecked", "--service", "shop")
    assert "root_differs" in refused(run("add", PARTNER, "--url", url, "--pin", pin))
    refused(run("add", PARTNER, "--url", url, "--pin", pin, "--overlap", "--service", "billing"), 2)
    both = told(run("add", PARTNER, "--url", url, "--pin", pin, "--overlap", "--json"))["domains"]
    assert {one["root"]: one["services"] for one in both} == {old: ["shop"], pin: ["shop"]}
    narrowed = told(run("add", PARTNER, "--url", url, "--pin", pin, "--service", "billing", "--json"))["domains"]
    assert {one["root"]: one["services"] for one in narrowed} == {old: ["billing"], pin: ["billing"]}
    third = ("--url", "https://third.example", "--pin", key().public.thumbprint)
    assert "3 roots" in refused(run("add", PARTNER, *third, "--overlap", "--unchecked"))
    assert "under the root" in run("remove", PARTNER, "--root", old).stdout
    assert [one["root"] for one in told(run("list", "--json"))["domains"]] == [pin]
    assert "not_federated" in refused(run("remove", PARTNER, "--root", old))


# the ceremony


def exported(tmp_path: Path, home: str, domain: str) -> tuple[Path, str]:
    """What the operators of another registry write, and the thumbprint that they tell."""
    environ = {"REGISTRY_HOME": str(tmp_path / home)}
    assert CliRunner().invoke(main, ["init", "--trust-domain", domain], env=environ).exit_code == 0
    file = tmp_path / f"{home}.jwt"
    done = CliRunner().invoke(main, ["federation", "export", str(file), "--json"], env=environ)
    members = told(done)
    assert (members["domain"], members["document"]) == (domain, file.read_text().strip())
    return file, members["root"]


def test_a_domain_is_accepted_by_a_file_whose_root_is_compared(run: Run, registry: Driver, tmp_path: Path) -> None:
    file, root = exported(tmp_path, "partner", PARTNER)
    accept = ("accept", str(file), "--url", "https://registry.partner.example", "--unchecked")
    refused(run(*accept), 2)
    assert "document_wrong_root" in refused(run(*accept, "--pin", registry.pin))
    assert "--url is needed" in refused(run("accept", str(file), "--pin", root), 2)
    [domain] = told(run(*accept, "--pin", root, "--service", "billing", "--json"))["domains"]
    assert (domain["domain"], domain["root"], domain["services"]) == (PARTNER, root, ["billing"])


def typed(registry: Driver, file: Path, text: str) -> tuple[int, str]:
    """Exit code and output of ``accept`` on a terminal, where that thumbprint is typed."""
    url = "https://registry.partner.example"
    command = [str(BIN / "peerseal-registry"), "federation", "accept", str(file), "--url", url, "--unchecked"]
    keyboard, terminal = os.openpty()
    environ = environment({"REGISTRY_HOME": str(registry.home), "REGISTRY_DATABASE_URL": registry.url})
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environ)
    os.close(terminal)
    os.write(keyboard, f"{text}\n".encode())
    printed = b""
    with suppress(OSError):  # EIO: the command has ended
        while part := os.read(keyboard, 4096):
            printed += part
    os.close(keyboard)
    return process.wait(60), printed.decode()


def test_on_a_terminal_the_thumbprint_is_typed_in(registry: Driver, tmp_path: Path) -> None:
    file, root = exported(tmp_path, "partner", PARTNER)
    code, printed = typed(registry, file, registry.pin)
    assert (code, "document_wrong_root" in printed) == (1, True)
    code, printed = typed(registry, file, f" {root} ")
    assert (code, f"Thumbprint of the root of {PARTNER}" in printed) == (0, True)
    document = registry.read(FederationDocument, registry.got("/v1/federation.jwt"))
    assert [one.root for one in document.federation.domains] == [root]


def test_a_domain_is_accepted_from_standard_input(run: Run, tmp_path: Path) -> None:
    file, root = exported(tmp_path, "partner", PARTNER)
    url = ("--url", "https://registry.partner.example", "--unchecked")
    accept = ("accept", "-", *url, "--pin", root, "--json")
    assert told(run(*accept, given=file.read_text()))["domains"][0]["domain"] == PARTNER


def test_a_domain_is_accepted_over_http_whose_root_is_compared(run: Run, partner: tuple[str, str]) -> None:
    url, pin = partner
    assert "document_wrong_root" in refused(run("accept", url, "--pin", key().public.thumbprint))
    [domain] = told(run("accept", url, "--pin", pin, "--json"))["domains"]
    assert (domain["domain"], domain["root"], domain["urls"]) == (PARTNER, pin, [url])


def test_limits_in_force_stay_where_a_command_names_none(run: Run, partner: tuple[str, str]) -> None:
    """A new URL widens nothing."""
    url, pin = partner
    limits = ("--service", "billing", "--scopes", "read", "--transactions")
    first = run("accept", url, "--pin", pin, *limits)
    assert (first.exit_code, "before:" in first.stdout) == (0, False), first.output
    assert "--service must name the minters of partner.example" in " ".join(first.stderr.split())
    mirror = "https://mirror.partner.example"
    moved = run("accept", url, "--url", url, "--url", mirror, "--unchecked", "--pin", pin)
    assert f"asked at {url}, {mirror}; before: {url}" in " ".join(moved.stdout.split())
    [domain] = told(run("list", "--json"))["domains"]
    kept = domain["urls"], domain["services"], domain["scopes"], domain["transactions"]
    assert kept == ([url, mirror], ["billing"], ["read"], True)
    wider = run("add", PARTNER, "--url", url, "--pin", pin, "--service", "shop")
    assert "before: billing, with the scopes [read]" in " ".join(wider.stdout.split())
    [domain] = told(run("list", "--json"))["domains"]
    assert (domain["services"], "scopes" in domain, domain["transactions"]) == (["shop"], False, False)
    [domain] = told(run("accept", url, "--pin", pin, "--unlimited", "--json"))["domains"]
    assert "services" not in domain


def test_a_url_that_is_typed_is_asked(run: Run, registry: Driver, partner: tuple[str, str], tmp_path: Path) -> None:
    url, pin = partner
    file, root = exported(tmp_path, "other", "other.example")
    assert "document_wrong_root" in refused(run("accept", str(file), "--pin", root, "--url", url))
    refused(run("accept", url, "--pin", pin, "--url", "http://127.0.0.1:9"), 3)
    assert told(run("list", "--json"))["domains"] == []


def test_a_list_over_http_without_a_token_says_that_the_document_is_public() -> None:
    asked = ["federation", "list", "--registry", "http://127.0.0.1:9"]
    said = refused(CliRunner().invoke(main, asked, env={"PEERSEAL_OPERATOR_TOKEN": ""}), 2)
    assert "--registry needs an operator's token" in said
    assert "/v1/federation.jwt | peerseal verify -" in " ".join(said.split())


def test_the_own_domain_is_exported_and_never_accepted(run: Run, registry: Driver, tmp_path: Path) -> None:
    plain = run("export")
    assert (plain.exit_code, registry.pin in plain.stderr, DOMAIN in plain.stderr) == (0, True, True)
    assert plain.stdout.strip() == registry.got("/.well-known/peerseal-registry")
    own = ("accept", "-", "--url", "https://registry.acme.internal", "--unchecked", "--pin", registry.pin)
    assert "malformed_body" in refused(run(*own, given=plain.stdout))


@pytest.mark.parametrize("content", ["", "a.b.c", "\0", "é" * 100, "x" * 100_000])
def test_a_file_that_is_no_document_is_refused(run: Run, content: str) -> None:
    refused(run("accept", "-", "--pin", key().public.thumbprint, given=content))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("add", PARTNER), 2),
        (("add", "Partner.example", "--url", "https://a.example", "--pin", "short"), 1),
        (("add", PARTNER, "--url", "ftp://a.example", "--pin", "A" * 43), 1),
        (("add", PARTNER, "--url", "https://a.example", "--pin", "A" * 43, "--service", "a/b"), 1),
        (("add", PARTNER, "--url", "https://a.example", "--pin", "A" * 43, "--scopes", 'a"'), 1),
        (("add", PARTNER, "--url", "https://a.example", "--pin", "A" * 43, "--overlap", "--unchecked"), 1),
        (("add", PARTNER, "--url", "https://a.example", "--pin", "A" * 43, "--scopes", "*"), 2),
        (("add", PARTNER, "--url", "https://a.example", "--pin", "A" * 43, "--unlimited", "--scopes", "a"), 2),
        (("add", PARTNER, "--url", "https://a.example", "--pin", "A" * 43, "--unlimited", "--overlap"), 2),
        (
            (
                "add",
                PARTNER,
                *("--url", "https://a.example", "--url", "https://A.example/"),
                "--unchecked",
                "--pin",
                "A" * 43,
            ),
            1,
        ),
        (("accept", "no-such-file", "--pin", "A" * 43), 1),
        (("remove", "p\u0430rtner.example"), 1),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(run: Run, arguments: tuple[str, ...], code: int) -> None:
    assert "Traceback" not in refused(run(*arguments), code)
