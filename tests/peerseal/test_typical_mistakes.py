"""What caller, callee and ``peerseal doctor`` say of typical mistakes: docs/how-to/when-it-fails.md has a row for each,
and every quotation there is a part of what they really say."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask
from werkzeug.serving import make_server

from demo.processes import free_port
from peerseal import Identity
from peerseal.commands.checks.host import Host, connect
from peerseal.commands.doctor import examine
from peerseal.errors import PeersealError
from peerseal.flask import PeerAuth
from peerseal.identity.environment import options_in
from peerseal.requests import refusal_of
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.transport.fetch import Fetcher
from tests.peerseal.served import Child, in_children, served
from tests.support.front import Front

pytestmark = pytest.mark.usefixtures("quiet_collector")

PAGE = Path(__file__).parents[2] / "docs/how-to/when-it-fails.md"
ROWS = {
    cells[0]: cells[1:]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| mistake")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}
NOTHING = "–"
SHOWN = ("policy", "join token")
"""Checks whose lines help although they are ok."""
UID = 10001


class Said(NamedTuple):
    """What each side says of a mistake; empty where it has no part in it."""

    caller: str = ""
    callee: str = ""
    doctor: str = ""


Mistake = Callable[["Stage"], Said]
MISTAKES: dict[str, Mistake] = {}


def mistake(name: str) -> Callable[[Mistake], Mistake]:
    """Adds a mistake, by its name on the page."""

    def add(made: Mistake) -> Mistake:
        MISTAKES[name] = made
        return made

    return add


class Stage:
    """A registry, and the services ``shop``, which calls, and ``billing``, which is called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.folder, self.monkeypatch, self.caplog = folder, monkeypatch, caplog
        self.clock = Clock(float(int(time.time())))
        self.off = {"shop": 0.0, "billing": 0.0}
        self.registry = MemoryRegistry(clock=self.clock)

    # ---- a service that starts

    def settings(self, **changes: str | None) -> dict[str, str]:
        """The variables of ``shop``, with some changed; None removes one."""
        right = {
            "PEERSEAL_SERVICE": "shop",
            "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1",
            "PEERSEAL_KEY_DIR": str(self.folder / "keys"),
            "PEERSEAL_JOIN_TOKEN": self.registry.join_token("shop"),
        }
        return {name: value for name, value in (right | changes).items() if value is not None}

    def start(self, settings: Mapping[str, str], fetcher: Fetcher | None = None) -> str:
        """What the start of ``shop`` says; empty where it starts. It calls the registry over HTTP without a fetcher."""
        try:
            identity = Identity(**options_in(settings), clock=self.time_of("shop"), alg="ES256", fetcher=fetcher)
            identity.start(timeout=0)
        except PeersealError as error:
            return str(error)
        identity.stop()
        return ""

    def doctor(
        self,
        settings: Mapping[str, str],
        fetcher: Fetcher | None = None,
        *,
        service: str = "shop",
        url: str | None = None,
        front: Fetcher | None = None,
    ) -> str:
        """What the doctor says on the host with these variables: all but what is ok, and the policy."""

        def way(to: str) -> Fetcher:
            if front is not None and url is not None and url.startswith(to):
                return front
            return fetcher or connect(to)

        found = examine(Host(settings, url, self.time_of(service), way))
        return "\n".join(f"{one.found} -> {one.remedy}" for name, one in found if one.level != "ok" or name in SHOWN)

    def both(self, **changes: str | None) -> Said:
        """What a start and the doctor say of variables, with the registry at hand."""
        settings = self.settings(**changes)
        return Said(self.start(settings, self.registry), doctor=self.doctor(settings, self.registry))

    def over_http(self, url: str, **changes: str | None) -> Said:
        """The same with a registry at that URL."""
        settings = self.settings(PEERSEAL_REGISTRY_URL=url, **changes)
        return Said(self.start(settings), doctor=self.doctor(settings))

    def time_of(self, service: str) -> Callable[[], float]:
        """The clock of the service's host."""
        return lambda: self.clock.now + self.off[service]

    # ---- a service that is called

    def service(self, name: str, **options: Any) -> Identity:
        """A service that has started while all was right."""
        return self.registry.identity(
            name, clock=self.time_of(name), key_dir=self.folder / "keys", retire_at_exit=False, **options
        )

    def app(self, **options: Any) -> Flask:
        """The application of ``billing``."""
        app = Flask(__name__)
        allow = {"shop": {"orders:read", "orders:write"}, "billing": set[str]()}
        auth = PeerAuth(app, self.service("billing"), **({"allow": allow} | options))

        @app.post("/orders")
        @auth.require(scope="orders:write")
        def order() -> str:
            return "done"

        return app

    def call(self, app: Flask, *, audience: str = "billing", path: str = "/orders", before: Any = None) -> Said:
        """What both sides say of an order that ``shop`` posts; ``before`` is done when both have started."""
        session_of = self.service("shop")
        with serving(app) as url, session_of.session(audience, url, retries=0) as session:
            session.trust_env = False
            if before is not None:
                before()
            self.caplog.clear()
            refusal = refusal_of(session.post(path, json={"id": 1}))
        assert refusal is not None
        [line] = [each.getMessage() for each in self.caplog.records if each.name == "peerseal"]
        assert f"request {refusal.request_id};" in line
        return Said(f"{refusal.status} {refusal.code}, {refusal.docs}", line)


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """The application at a real socket."""
    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---- the URL of the registry


@mistake("The registry's URL has a wrong host or port")
def wrong_url(stage: Stage) -> Said:
    return stage.over_http(f"http://127.0.0.1:{free_port()}")


@mistake("Another server listens at the registry's URL")
def other_server(stage: Stage) -> Said:
    stage.registry.answers["/.well-known/peerseal-registry"] = Answer(200, b"<html>It works!</html>")
    return stage.both()


@mistake("The registry's URL ends in /v1")
def v1_in_the_url(stage: Stage) -> Said:
    with served(stage.registry) as url:
        return stage.over_http(f"{url}/v1")


@mistake("The registry's URL has no scheme")
def no_scheme(stage: Stage) -> Said:
    return stage.over_http("registry:8080")


@mistake("The registry is down")
def registry_down(stage: Stage) -> Said:
    stage.registry.down = True
    with served(stage.registry) as url:
        return stage.over_http(url)


@mistake("An HTTP proxy of the environment is asked for the registry")
def http_proxy(stage: Stage) -> Said:
    stage.monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        stage.monkeypatch.delenv(name, raising=False)
    said = stage.over_http("http://registry.test:8080", PEERSEAL_REGISTRY_PIN=stage.registry.pin)
    assert "secret" not in "".join(said)
    return said


# ---- pin, join token, names


@mistake("The pin is wrong")
def wrong_pin(stage: Stage) -> Said:
    return stage.both(PEERSEAL_REGISTRY_PIN="A" * 43, PEERSEAL_JOIN_TOKEN=None)


@mistake("The join token has expired")
def expired_token(stage: Stage) -> Said:
    return stage.both(PEERSEAL_JOIN_TOKEN=stage.registry.join_token("shop", ttl=-1))


@mistake("The join token was used before")
def used_token(stage: Stage) -> Said:
    settings = stage.settings(PEERSEAL_KEY_DIR=None)
    assert stage.start(settings, stage.registry) == ""
    return Said(stage.start(settings, stage.registry), doctor=stage.doctor(settings, stage.registry))


@mistake("The join token is of another registry")
def foreign_token(stage: Stage) -> Said:
    return stage.both(PEERSEAL_JOIN_TOKEN=MemoryRegistry().join_token("shop"))


@mistake("The service's name is misspelt")
def misspelt_service(stage: Stage) -> Said:
    return stage.both(PEERSEAL_SERVICE="shpo")


@mistake("The audience is misspelt")
def misspelt_audience(stage: Stage) -> Said:
    return stage.call(stage.app(), audience="biling")


@mistake("A variable and its _FILE are both set")
def both_variables(stage: Stage) -> Said:
    return stage.both(PEERSEAL_JOIN_TOKEN_FILE="/run/secrets/join-token")


# ---- clocks


def wrong_clock(stage: Stage, service: str, seconds: float) -> Said:
    app = stage.app()
    said = stage.call(app, before=lambda: stage.off.update({service: seconds}))
    settings = stage.settings(PEERSEAL_SERVICE=service)
    return said._replace(doctor=stage.doctor(settings, stage.registry, service=service))


@mistake("The caller's clock is 2 minutes fast")
def fast_caller(stage: Stage) -> Said:
    return wrong_clock(stage, "shop", 121)


@mistake("The caller's clock is 2 minutes slow")
def slow_caller(stage: Stage) -> Said:
    return wrong_clock(stage, "shop", -121)


@mistake("The callee's clock is 2 minutes fast")
def fast_callee(stage: Stage) -> Said:
    return wrong_clock(stage, "billing", 121)


@mistake("The callee's clock is 2 minutes slow")
def slow_callee(stage: Stage) -> Said:
    return wrong_clock(stage, "billing", -121)


@mistake("The clock is 2 minutes fast when a service joins")
def fast_joiner(stage: Stage) -> Said:
    stage.off["shop"] = 121
    return stage.both()


# ---- folders and processes


@mistake("The key folder is not writable")
def unwritable_folder(stage: Stage) -> Said:
    volume = stage.folder / "volume"
    volume.mkdir()
    volume.chmod(0o555)
    for folder in (stage.folder, *list(stage.folder.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)

    def as_another_user() -> Said:
        if os.geteuid() == 0:
            os.setgid(UID)
            os.setuid(UID)
        return stage.both(PEERSEAL_KEY_DIR=str(volume))

    said = Child(lambda: tuple(as_another_user())).result()
    return Said(*said)


@mistake("No folder keeps the registry's documents, and the registry is down")
def no_cache_folder(stage: Stage) -> Said:
    settings = stage.settings(PEERSEAL_KEY_DIR=None)
    billing = stage.registry.identity("billing")
    app = Flask(__name__)
    PeerAuth(app, billing, allow={"shop": set()})
    [warning] = [each.getMessage() for each in stage.caplog.records if "PEERSEAL_CACHE_DIR" in each.getMessage()]
    said = stage.call(app, before=lambda: setattr(stage.registry, "down", True))
    stage.registry.down = False
    return Said(said.caller, f"{warning}\n{said.callee}", stage.doctor(settings, stage.registry))


@mistake("Two workers have no key folder")
def two_workers(stage: Stage) -> Said:
    with served(stage.registry) as url:
        settings = stage.settings(PEERSEAL_KEY_DIR=None, PEERSEAL_REGISTRY_URL=url, WEB_CONCURRENCY="2")
        first, second = sorted(in_children(2, lambda _: stage.start(settings)))
        assert first == ""
        return Said(second, doctor=stage.doctor(settings))


@mistake("The reloader starts a second process without a key folder")
def reloader(stage: Stage) -> Said:
    settings = stage.settings(PEERSEAL_KEY_DIR=None, FLASK_DEBUG="1")
    assert stage.start(settings, stage.registry) == ""
    return Said(stage.start(settings, stage.registry), doctor=stage.doctor(settings, stage.registry))


# ---- what is called


@mistake("A middleware alters the body")
def altered_body(stage: Stage) -> Said:
    app = stage.app()
    inner = app.wsgi_app

    def altering(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) + b" "
        environ |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return inner(environ, start_response)

    app.wsgi_app = altering  # type: ignore[method-assign] # as Flask has middleware put in
    return stage.call(app)


@mistake("The caller lacks a scope")
def missing_scope(stage: Stage) -> Said:
    stage.registry.set_policy("billing", {"shop": ["orders:read"]})
    said = stage.call(stage.app())
    return said._replace(doctor=stage.doctor(stage.settings(PEERSEAL_SERVICE="billing"), stage.registry))


@mistake("A proxy strips a prefix")
def stripped_prefix(stage: Stage) -> Said:
    app = stage.app()
    inner = app.wsgi_app

    def stripping(environ: dict[str, Any], start_response: Any) -> Any:
        for name in ("RAW_URI", "REQUEST_URI", "PATH_INFO"):
            environ[name] = environ[name].removeprefix("/api")
        return inner(environ, start_response)

    app.wsgi_app = stripping  # type: ignore[method-assign] # as Flask has middleware put in
    said = stage.call(app, path="/api/orders")
    app.wsgi_app = inner  # type: ignore[method-assign] # as above
    settings, front = stage.settings(PEERSEAL_SERVICE="billing"), Front(app, strip="/api")
    url = "http://shop.test/api/orders"
    return said._replace(doctor=stage.doctor(settings, stage.registry, service="billing", url=url, front=front))


# ---- the page


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Stage]:
    stage = Stage(tmp_path, monkeypatch, caplog)
    with stage.registry:
        yield stage


def test_the_page_has_a_row_for_each_mistake() -> None:
    assert list(ROWS) == list(MISTAKES)
    assert len(ROWS) >= 20


@pytest.mark.parametrize("name", MISTAKES)
def test_each_side_says_what_the_page_quotes(name: str, stage: Stage) -> None:
    said = MISTAKES[name](stage)
    *sides, remedy = ROWS[name]
    for side, text, cell in zip(Said._fields, said, sides, strict=True):
        quoted = re.findall(r"`([^`]+)`", cell)
        assert (cell == NOTHING) == (text == ""), f"{side}: {text}"
        assert bool(quoted) == bool(text), f"{side}: {text}"
        for part in quoted:
            assert part in text, f"{side}: {text}"
    assert remedy
