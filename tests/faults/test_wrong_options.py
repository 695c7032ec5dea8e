"""Mistakes in what code says: an error when it is said, and never a 500 at each request."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask import Flask
from urllib3 import Retry, Timeout

from peerseal import (
    EventVerifier,
    FileReplayGuard,
    Identity,
    MemoryReplayGuard,
    RedisReplayGuard,
    TrustStore,
    User,
    UserVerifier,
    Verifier,
)
from peerseal.asgi import Need
from peerseal.asgi import PeerAuth as AsgiPeerAuth
from peerseal.errors import ConfigurationError, InvalidName, MalformedToken, UnsignableRequest
from peerseal.flask import PeerAuth
from peerseal.messaging import EventConsumer, open_inlet, open_outlet
from peerseal.protocol.join import JoinToken
from peerseal.protocol.names import make_kid, split_kid
from peerseal.rabbitmq import declare
from peerseal.runtime.limits import CallLimits, FetchLimits, IssuerLimits, RotationSchedule, TrustLimits
from peerseal.runtime.options import check_pin
from peerseal.testing import MemoryRegistry
from registry.__main__ import main
from registry.domain.errors import OperatorRefused
from registry.services.access.operators import Role, check_operator_token
from tests.registry.driver import Driver
from tests.support.misbehaving import refused
from tests.support.wire import NOW, Keys, Service

NOWHERE = "http://127.0.0.1:1"
PIN = "A" * 43
EVENT: dict[str, Any] = {"topic": "a", "audience": "jobs", "scope": "a", "event_id": "e"}
ALICE = User("alice", "https://login.example.com", frozenset(("a",)), None, 2**40, {})
ALLOW: list[Any] = [
    "client",
    ["client"],
    7,
    {None: {"a"}},
    {7: {"a"}},
    {b"client": {"a"}},
    {"client": None},
    {"client": 7},
    {"client": "orders:read"},
    {"client": b"ab"},
    {"client": {"a": True}},
    {"client": [None]},
    {"client": [""]},
    {"client": ["a b"]},
    {"client": [["a"]]},
    {"Client": {"a"}},
    {"client ": {"a"}},
    {"": {"a"}},
    {"a/b/c": {"a"}},
]


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


def verifier(keys: Keys, allow: Any = None) -> Verifier:
    return Verifier(keys, audience="callee", allow={"caller": {"a"}} if allow is None else allow, clock=lambda: NOW)


@pytest.mark.parametrize("allow", ALLOW, ids=repr)
def test_a_mistake_in_allow_is_an_error_at_the_start(keys: Keys, allow: Any) -> None:
    with pytest.raises((ConfigurationError, InvalidName)):
        verifier(keys, allow)
    with pytest.raises((ConfigurationError, InvalidName)):
        EventVerifier(keys, audience="jobs", allow=allow, max_age=timedelta(1))


async def application(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


NEEDS: list[Any] = [
    {"/": "x"},
    {"/": None},
    {"/": {"scope": "x"}},
    {"/": Need("")},
    {"/": Need("two words")},
    {"/": Need(7)},  # type: ignore[arg-type]
    {"/": Need("a", public=True)},
    {"/": [Need("a")]},
    {"": Need("a")},
    {"x": Need("a")},
    {None: Need("a")},
    {b"/": Need("a")},
    {"/<id>": Need("a")},
    {"/": Need("a", transaction="no")},  # type: ignore[arg-type]
    {"/": Need(public="false")},  # type: ignore[arg-type]
    {"/": Need},
    {"/a": Need("a"), "/a/": Need("b")},
    {"//": Need("a")},
    {"/a//b": Need("a")},
    {"/a/../b": Need("a")},
    {"/a/.": Need("a")},
    {"/a\\b": Need("a")},
    {"/a?b=c": Need("a")},
    {"/a#b": Need("a")},
    {"/a%20b": Need("a")},
    {"/a ": Need("a")},
    {"/a\n": Need("a")},
    {"/a/*": Need("a")},
    [("/", Need("a"))],
    "/",
    7,
]


@pytest.mark.parametrize("needs", NEEDS, ids=repr)
def test_a_mistake_in_needs_is_an_error_at_the_start(keys: Keys, needs: Any) -> None:
    with pytest.raises(ConfigurationError):
        AsgiPeerAuth(application, needs=needs, verifier=verifier(keys))


@pytest.mark.parametrize(
    "options",
    [
        {"header": ""},
        {"header": "a b"},
        {"header": None},
        {"max_body": -1},
        {"max_body": "1"},
        {"max_body": True},
        {"report_only": "false"},
        {"report_only": 0},
        {"report_only": None},
        {"external_prefix": 7},
        {"external_prefix": "api"},
        {"verifier": 7},
    ],
    ids=repr,
)
def test_a_mistake_in_an_option_is_an_error_at_the_start(keys: Keys, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        PeerAuth(Flask("a"), **{"verifier": verifier(keys), **options})
    with pytest.raises(ConfigurationError):
        AsgiPeerAuth(application, **{"verifier": verifier(keys), **options})


@pytest.mark.parametrize("scope", ["", " ", "a b", None, 7, ["a"], {"a"}, b"a", "é", "a\n"])
def test_a_mistake_in_a_mark_is_an_error_at_the_start(keys: Keys, scope: Any) -> None:
    with pytest.raises(ConfigurationError):
        PeerAuth(Flask("a"), verifier=verifier(keys)).require(scope=scope)


@pytest.mark.parametrize("transaction", ["false", 0, None, "yes"])
def test_whether_a_mark_needs_a_user_is_true_or_false(keys: Keys, transaction: Any) -> None:
    with pytest.raises(ConfigurationError, match="transaction of require"):
        PeerAuth(Flask("a"), verifier=verifier(keys)).require(scope="a", transaction=transaction)


@pytest.mark.parametrize("view", [None, "view", 7])
def test_a_mark_on_what_is_no_view_is_an_error(keys: Keys, view: Any) -> None:
    auth = PeerAuth(Flask("a"), verifier=verifier(keys))
    with pytest.raises(ConfigurationError):
        auth.require(scope="a")(view)
    with pytest.raises(ConfigurationError):
        auth.public(view)


def test_an_option_that_does_not_exist_is_named() -> None:
    for make in (lambda **options: PeerAuth(**options), lambda **options: AsgiPeerAuth(application, **options)):
        with pytest.raises(TypeError, match="alow"):
            make(alow={"client": ()})


@pytest.mark.parametrize("allow", [[], "", 0, False, ["client"]], ids=repr)
def test_an_empty_allow_of_another_type_is_no_mapping(allow: Any) -> None:
    identity = Identity("callee", registry=NOWHERE)
    with pytest.raises(ConfigurationError, match="allow maps callers"):
        PeerAuth(Flask("a"), identity, allow=allow)
    with pytest.raises(ConfigurationError, match="allow maps callers"):
        AsgiPeerAuth(application, identity, allow=allow)


@pytest.mark.parametrize(
    "options",
    [
        {"audience": None},
        {"audience": b"callee"},
        {"audience": ""},
        {"audience": "Callee"},
        {"audience": "a/b/c"},
        {"leeway": "5"},
        {"leeway": -1},
        {"leeway": float("nan")},
        {"leeway": None},
        {"leeway": True},
        {"max_lifetime": "60"},
        {"max_lifetime": 0},
        {"replay": 7},
        {"clock": 7},
    ],
    ids=repr,
)
def test_a_mistake_in_a_verifier_is_an_error_at_the_start(keys: Keys, options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidName)):
        Verifier(keys, **{"audience": "callee", "allow": {"caller": {"a"}}, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"audience": None},
        {"audience": "a/b"},
        {"max_age": None},
        {"max_age": 60},
        {"max_age": timedelta(0)},
        {"max_age": timedelta(-1)},
        {"leeway": "5"},
        {"leeway": -1},
        {"unsafe_unbound_payload": "false"},
        {"clock": 7},
    ],
    ids=repr,
)
def test_a_mistake_in_an_event_verifier_is_an_error_at_the_start(keys: Keys, options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, MalformedToken)):
        EventVerifier(keys, **{"audience": "jobs", "allow": {"caller": {"a"}}, "max_age": timedelta(1), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"service": None},
        {"registry": None},
        {"registry": []},
        {"registry": [NOWHERE, None]},
        {"pin": 7},
        {"retire_at_exit": "false"},
        {"unsafe_replay_fallback": "0"},
        {"alg": "none"},
        {"alg": None},
        {"rotation": 7},
        {"limits": 7},
        {"join_token": 7},
        {"oidc_token": 7},
        {"key_dir": 7},
        {"key_dir": ""},
        {"key_dir": "a\0b"},
        {"cache_dir": "\ud800"},
        {"key_dir": "/a\0b"},
        {"key_passphrase": 7},
        {"key_passphrase": "long enough for one \udcff"},
        {"cache_dir": b"folder"},
        {"external_prefix": None},
        {"external_prefix": "api"},
        {"replay_dir": 7},
        {"replay_url": 7},
        {"clock": 7},
    ],
    ids=repr,
)
def test_a_mistake_in_an_identity_is_an_error_at_the_start(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidName)):
        Identity(**{"service": "shop", "registry": NOWHERE, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"registry": None},
        {"registry": [NOWHERE, 7]},
        {"pin": ["a"]},
        {"limits": {"poll_interval": 1}},
        {"clock": 7},
        {"cache_dir": b"folder"},
        {"uptime": None},
    ],
    ids=repr,
)
def test_a_mistake_in_a_trust_store_is_an_error_at_the_start(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        TrustStore(**{"registry": NOWHERE, **options})


@pytest.mark.parametrize("path", [None, 7, b"file", "", "/", ".sqlite3", "replay/.sqlite3"])
def test_a_mistake_in_a_replay_guard_is_an_error_at_the_start(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path"):
        FileReplayGuard(path)
    with pytest.raises(ConfigurationError, match="redis://host"):
        RedisReplayGuard(path, "callee")


@pytest.mark.parametrize("identity", ["shop", 7, Flask("a"), Identity])
def test_what_is_no_identity_is_an_error_at_the_start(identity: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"identity=.*peerseal\.Identity"):
        PeerAuth(Flask("a"), identity)
    with pytest.raises(ConfigurationError, match=r"identity=.*peerseal\.Identity"):
        PeerAuth().init_app(Flask("a"), identity)
    with pytest.raises(ConfigurationError, match=r"identity=.*peerseal\.Identity"):
        AsgiPeerAuth(application, identity)


def test_what_is_no_flask_application_is_an_error_at_the_start() -> None:
    app: Any = Identity("callee", registry=NOWHERE)
    with pytest.raises(ConfigurationError, match=r"app=.*Flask application"):
        PeerAuth(app)


@pytest.mark.parametrize("lifetime", [60, "60", None, timedelta(0), timedelta(days=400), timedelta.max])
def test_a_lifetime_is_a_length_of_time(lifetime: Any) -> None:
    with MemoryRegistry("acme.internal") as registry:
        identity = registry.identity("shop")
        with pytest.raises(UnsignableRequest, match="lifetime"):
            identity.sign_event(b"", **EVENT, transaction_id="t", lifetime=lifetime)
        with pytest.raises(UnsignableRequest, match="lifetime"):
            identity.mint_transaction(ALICE, scope=["a"], lifetime=lifetime)


@pytest.mark.parametrize("scope", ["a", b"a", None, 7, [7], [["a"]]])
def test_the_scopes_of_a_transaction_are_a_collection(scope: Any) -> None:
    with pytest.raises(UnsignableRequest, match="scope is a collection"):
        Identity("shop", registry=NOWHERE).mint_transaction(ALICE, scope=scope)


@pytest.mark.parametrize("user", [None, "alice", {"name": "alice"}])
def test_a_transaction_is_for_a_verified_user(user: Any) -> None:
    with pytest.raises(UnsignableRequest, match=r"peerseal\.User"):
        Identity("shop", registry=NOWHERE).mint_transaction(user, scope=["a"])


@pytest.mark.parametrize("member", ["subject", "transaction_id"])
@pytest.mark.parametrize("value", ["", 7, b"a", False])
def test_an_event_names_its_user_and_transaction_as_given_or_not_at_all(member: str, value: Any) -> None:
    with MemoryRegistry("acme.internal") as registry, pytest.raises(UnsignableRequest):
        registry.identity("shop").sign_event(b"", **{**EVENT, "transaction_id": "t", member: value})


@pytest.mark.parametrize("kind", [FetchLimits, IssuerLimits, RotationSchedule, TrustLimits])
@pytest.mark.parametrize("value", ["1", None, -1, float("nan"), True])
def test_limits_are_numbers(kind: Any, value: Any) -> None:
    first = next(iter(kind.__dataclass_fields__))
    with pytest.raises(ConfigurationError, match=first):
        kind(**{first: value})


@pytest.mark.parametrize("kind", [CallLimits, FetchLimits, IssuerLimits, TrustLimits])
def test_a_limit_is_no_number_that_a_clock_cannot_add(kind: Any) -> None:
    for name in kind.__dataclass_fields__.keys() - {
        "fetch",
        "failures",
        "max_running",
        "max_waiting",
        "introspections",
    }:
        with pytest.raises(ConfigurationError, match=name):
            kind(**{name: 10**400})


@pytest.mark.parametrize("value", [float("inf"), 1e300])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((CallLimits, name) for name in ("connect_timeout", "read_timeout", "open_time", "jitter", "longest_open")),
        *((FetchLimits, name) for name in ("connect_timeout", "read_timeout")),
        *((TrustLimits, name) for name in ("wait", "poll_interval", "longest_poll_pause", "look_interval")),
        *((TrustLimits, name) for name in ("cooldown", "longest_pause")),
        *((IssuerLimits, name) for name in ("cooldown", "introspection_ttl", "introspection_rest")),
    ],
)
def test_a_time_that_nothing_can_wait_for_or_tell_is_an_error_when_it_is_said(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        kind(**{name: value})


def test_there_is_a_pause_between_two_looks_at_what_another_process_heard() -> None:
    with pytest.raises(ConfigurationError, match="look_interval"):
        TrustLimits(look_interval=0)


def test_a_call_may_have_no_end() -> None:
    limits = CallLimits(deadline=float("inf"), slow=float("inf"), window=float("inf"), longest_wait=float("inf"))
    assert limits.deadline == limits.slow == limits.window == limits.longest_wait == float("inf")


@pytest.mark.parametrize("audience", [None, "", "a b", "Shop", 7])
def test_a_mistake_in_a_session_is_an_error_when_it_is_made(audience: Any) -> None:
    with pytest.raises(InvalidName):
        Identity("shop", registry=NOWHERE).session(audience, NOWHERE)


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        7,
        b"http://h",
        "",
        "h",
        "http://u:w0rd@h",
        "http://u:w0rd@h:99999",
        "http://h:0",
        "http://a..b",
        "http://a\\b",
    ],
)
def test_what_is_no_base_url_is_an_error_without_its_password(base_url: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Identity("shop", registry=NOWHERE).session("callee", base_url)
    assert "w0rd" not in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": "5"},
        {"timeout": (1, 2, 3)},
        {"timeout": 0},
        {"timeout": (1, -1)},
        {"timeout": (1, "5")},
        {"timeout": True},
        {"timeout": float("inf")},
        {"timeout": (1, 1e10)},
        pytest.param({"deadline": 10**400}, id="{'deadline': 10**400}"),
        {"retries": "3"},
        {"retries": None},
        {"retries": -1},
        {"retries": 1.5},
        {"deadline": "60"},
        {"deadline": 0},
        {"deadline": float("nan")},
        {"buffer": "false"},
        {"max_buffer": None},
        {"max_buffer": -1},
        {"header": None},
        {"header": "X Peer"},
        {"header": "Authorization:"},
        {"header": 7},
        {"header": "X-Peer\r\n"},
        {"bind_headers": None},
        {"bind_headers": "x-tenant"},
        {"bind_headers": [7]},
        {"bind_headers": (b"x-tenant",)},
        {"bind_headers": ["x tenant"]},
        {"bind_headers": [""]},
        {"sleep": 7},
        {"ctx": 7},
    ],
    ids=repr,
)
def test_a_mistake_in_the_options_of_a_session_is_an_error_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Identity("shop", registry=NOWHERE).session("callee", NOWHERE, **options)


@pytest.mark.parametrize("limits", [None, Retry(2), 0])
def test_a_session_takes_every_sort_of_retries_and_timeout(limits: Any) -> None:
    retries = 3 if limits is None else limits
    for timeout in (None, 1, 0.5, (1, None), (3.05, 10), Timeout(1)):
        Identity("shop", registry=NOWHERE).session("callee", NOWHERE, timeout=timeout, retries=retries).close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: UserVerifier(7),  # type: ignore[arg-type]
        lambda: UserVerifier(Keys(), jwks_files=["a"]),  # type: ignore[arg-type]
        lambda: UserVerifier(Keys(), jwks_files={"https://i": 7}),  # type: ignore[dict-item]
        lambda: UserVerifier(Keys(), ca_file=""),
        lambda: UserVerifier(Keys(), introspection=7),  # type: ignore[arg-type]
        lambda: UserVerifier(Keys(), introspection=["edge"]),  # type: ignore[list-item]
        lambda: UserVerifier(Keys(), check_key=True),  # type: ignore[arg-type]
        lambda: UserVerifier(Keys(), limits=TrustLimits()),  # type: ignore[arg-type]
        lambda: UserVerifier(Keys(), clock=NOW),  # type: ignore[arg-type]
        lambda: Verifier(7, audience="callee", allow={}),  # type: ignore[arg-type]
        lambda: EventVerifier(None, audience="jobs", allow={}, max_age=timedelta(1)),  # type: ignore[arg-type]
        lambda: TrustStore(None),  # type: ignore[arg-type]
        lambda: TrustStore([]),
        lambda: TrustStore(7),  # type: ignore[arg-type]
        lambda: TrustStore(NOWHERE, limits=IssuerLimits()),  # type: ignore[arg-type]
        lambda: TrustStore(NOWHERE, cache_dir=b"folder"),  # type: ignore[arg-type]
        lambda: TrustStore(NOWHERE, clock=NOW),  # type: ignore[arg-type]
        lambda: FileReplayGuard(None),  # type: ignore[arg-type]
        lambda: FileReplayGuard(""),
        lambda: FileReplayGuard("/seen", clock=7),  # type: ignore[arg-type]
        lambda: MemoryReplayGuard(limit="1"),  # type: ignore[arg-type]
        lambda: MemoryReplayGuard(clock=None),  # type: ignore[arg-type]
        lambda: RedisReplayGuard(None, "callee"),  # type: ignore[arg-type]
        lambda: RedisReplayGuard("redis://h", "callee", unsafe_fallback=True),  # type: ignore[arg-type]
        lambda: RedisReplayGuard("redis://h", "callee", assume_noeviction="no"),  # type: ignore[arg-type]
        lambda: Identity("shop", registry=NOWHERE, pin=""),
        lambda: Identity("shop", registry=NOWHERE, pin=[PIN]),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_in_other_parts_is_an_error_when_they_are_made(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.parametrize("pauses", [(), "1.0", (1, -1), (float("nan"),), (float("inf"),), (None,), 5], ids=repr)
def test_a_mistake_in_the_pauses_of_a_consumer_is_an_error_at_the_start(keys: Keys, pauses: Any) -> None:
    events = EventVerifier(keys, audience="jobs", allow={}, max_age=timedelta(1))
    nothing: Any = None
    with pytest.raises(ConfigurationError, match="pause"):
        EventConsumer(Identity("shop", registry=NOWHERE), events, nothing, nothing, pauses=pauses)
    with pytest.raises(ConfigurationError, match="verifier"):
        EventConsumer(Identity("shop", registry=NOWHERE), nothing, nothing, nothing)


@pytest.mark.parametrize("broker", ["kafka://127.0.0.1:1", "amqp://127.0.0.1:1"])
@pytest.mark.parametrize("topics", ["OrderCreated", [], [""], [None], [b"a"], None, 7], ids=repr)
def test_topics_are_a_list_of_texts(broker: str, topics: Any) -> None:
    with pytest.raises(ConfigurationError, match="topics"):
        open_inlet(broker, "group", topics)


def test_a_topic_is_no_list_of_topics_to_declare() -> None:
    with pytest.raises(ConfigurationError, match="topics"):
        declare("amqp://127.0.0.1:1", "group", "OrderCreated")


@pytest.mark.parametrize("broker", ["kafka://127.0.0.1:1", "amqp://127.0.0.1:1"])
@pytest.mark.parametrize("group", ["", None, 7], ids=repr)
def test_a_group_has_a_name(broker: str, group: Any) -> None:
    with pytest.raises(ConfigurationError, match="group"):
        open_inlet(broker, group, ["a"])


@pytest.mark.parametrize(
    "url",
    [
        *("kafka://", "kafka://u:w0rd@h", "http://u:w0rd@h", "", None, 7, "amqp://u:w0rd@h:port", "amqp://u:w0rd@[::1"),
        *("amqp://u:w0rd@rabbit..svc", "amqp://u:w0rd@.h:1", "amqp://u:w0rd@h[::1]", "amqp://u:w0rd@h:0"),
        *("amqp://u:w0rd@h\udcff", "kafka://h\udcff:1", "kafka://h:port", "kafka://a,b..c:1"),
    ],
)
def test_what_is_no_url_of_a_broker_is_an_error_without_its_password(url: Any) -> None:
    for make in (lambda: open_inlet(url, "group", ["a"]), lambda: open_outlet(url)):
        with pytest.raises(ConfigurationError) as refusal:
            make()
        assert "w0rd" not in str(refusal.value)


@pytest.mark.parametrize(
    ("broker", "settings"),
    [
        ("kafka://127.0.0.1:1", {"nonsense": 1}),
        ("kafka://127.0.0.1:1", {"session.timeout.ms": "soon"}),
        ("kafka://127.0.0.1:1", 7),
        ("amqp://127.0.0.1:1", 7),
        ("amqp://127.0.0.1:1", {"prefetch": "x"}),
        ("amqp://127.0.0.1:1", {"prefetch": 0}),
    ],
)
def test_settings_that_no_broker_takes_are_an_error_at_the_start(broker: str, settings: Any) -> None:
    with pytest.raises(ConfigurationError):
        open_inlet(broker, "group", ["a"], settings=settings)


def status(app: Any, path: str, token: str | None) -> int:
    sent: list[dict[str, Any]] = []
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


def a_call(keys: Keys, path: str) -> str:
    return Service("caller", keys, now=NOW).sign_request("callee", method="GET", target=path)


@pytest.mark.parametrize("given", [None, "a", {"scope": "a"}, True])
def test_a_needs_function_that_gives_no_need_lets_nobody_in(
    keys: Keys, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    token = a_call(keys, "/x")
    app = AsgiPeerAuth(application, needs=lambda *_: given, verifier=verifier(keys))
    assert status(app, "/x", token) == 403
    assert "give a peerseal.asgi.Need" in caplog.text


def test_the_log_names_a_path_that_is_not_in_needs(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    token = a_call(keys, "/elsewhere")
    app = AsgiPeerAuth(application, needs={"/orders": Need("a")}, verifier=verifier(keys))
    assert status(app, "/elsewhere", token) == 403
    assert "that has no entry in needs=" in caplog.text


def test_an_operator_token_is_read_strictly(sqlite_url: str, tmp_path: Path) -> None:
    registry = Driver(sqlite_url, tmp_path)
    operators = registry.registry.operators
    _, token = operators.create(Role.VIEWER, 600)
    prefix, token_id, secret = token.split(".")
    assert operators.authenticate(token, Role.VIEWER).id == token_id
    for other in (
        f"zzz.{token_id}.{secret}",
        f"psj1.{token_id}.{secret}",
        f"{prefix.upper()}.{token_id}.{secret}",
        f".{token_id}.{secret}",
        f"{token_id}.{secret}",
        f"{token}.",
        f"{prefix}.{token}",
        f" {token}",
        f"{prefix}.{token_id.swapcase()}.{secret}",
        f"{prefix}.{token_id}.{secret}=",
        f"{prefix}.{token_id}.{secret}\n",
        f"{token} ",
        f"{prefix}. {token_id}.{secret}",
        f"{prefix}.{token_id}.{secret[:-4]}",
        f"{prefix}.{token_id}.",
        f"{prefix}.{'é' * 16}.{secret}",
        "",
        None,
        token.encode(),
        [token],
    ):
        with pytest.raises(OperatorRefused):
            operators.authenticate(other, Role.VIEWER)  # type: ignore[arg-type]
        if isinstance(other, str):
            with pytest.raises(ConfigurationError) as refusal:
                check_operator_token(other)
            assert secret not in str(refusal.value)
    registry.close()


@pytest.mark.parametrize("text", ["zzz.a.b", "a\nb", "é", "a b", "pso1.x.y"])
def test_what_is_no_operator_token_is_sent_nowhere(text: str) -> None:
    asked = CliRunner().invoke(main, ["services", "--url", refused()], env={"PEERSEAL_OPERATOR_TOKEN": text})
    assert asked.exit_code == 1
    assert "PEERSEAL_OPERATOR_TOKEN: not an operator token" in asked.output
    assert text not in asked.output


def test_a_join_token_is_read_strictly() -> None:
    token = JoinToken.generate("A" * 43).encode()
    prefix, token_id, secret, pin = token.split(".")
    assert JoinToken.parse(f" {token}\n").id == token_id
    for other in (
        f"zzz.{token_id}.{secret}.{pin}",
        f"{prefix.upper()}.{token_id}.{secret}.{pin}",
        f"{token}.",
        f"{token}.{pin}",
        f"{prefix}.{token_id}.{secret}",
        f"{prefix}.{token_id} .{secret}.{pin}",
        f"{prefix}.{token_id}.{secret}=.{pin}",
        f"{prefix}.{token_id}.{secret}.{pin[:-1]}B",
        f"{prefix}.{secret}.{token_id}.{pin}",
        "",
    ):
        with pytest.raises(ConfigurationError) as refusal:
            JoinToken.parse(other)
        assert secret not in str(refusal.value)


@pytest.mark.parametrize(
    "pin", [" " + "A" * 43, "A" * 43 + "\n", "A" * 42, "A" * 42 + "B", "A" * 44, "a/" + "A" * 43, ""]
)
def test_a_pin_is_read_strictly(pin: str) -> None:
    with pytest.raises(ConfigurationError):
        check_pin(pin)


@pytest.mark.parametrize("change", [str.upper, " {}".format, "{} ".format, "{}/x".format, "x/{}".format, "{}\n".format])
def test_a_kid_is_read_strictly(change: Callable[[str], str]) -> None:
    kid = make_kid("acme.internal/shop", "A" * 43)
    assert split_kid(kid) == ("acme.internal/shop", "A" * 43)
    with pytest.raises(InvalidName):
        split_kid(change(kid))
