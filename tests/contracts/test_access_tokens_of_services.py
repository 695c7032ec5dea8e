"""``identity.access_token``, at a registry on both databases: one call for all, kept, renewed in time, and refused."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from peerseal import Identity
from peerseal.errors import AccessTokenRefused, ConfigurationError, FetchError, TrustUnavailable
from peerseal.transport.fetch import Answer
from tests.contracts.conftest import QUIET
from tests.registry.driver import Clock, Driver
from tests.registry.in_process import InProcess
from tests.registry.legacy import KAFKA, set_domain

PATH = "/oauth2/token"
BROKER = {"audience": KAFKA, "services": ["shop"], "scopes": ["read", "write"], "lifetime": 300}


class Registry(InProcess):
    """Counts the calls for tokens, and may be down, hold them up, or answer otherwise."""

    def __init__(self, registry: Driver) -> None:
        super().__init__(registry)
        self.asked = 0
        self.down = False
        self.answer: Answer | None = None
        self.go_on, self.arrived = threading.Event(), threading.Event()
        self.go_on.set()
        self.confidential = True
        self._pid = os.getpid()

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        if path != PATH:
            return super().call(method, path, body=body, headers=headers)
        self.asked += 1
        self.arrived.set()
        if os.getpid() == self._pid:
            assert self.go_on.wait(20)
        if self.down:
            raise FetchError("no connection")
        return self.answer or super().call(method, path, body=body, headers=headers)


@pytest.fixture
def calls(registry: Driver) -> Registry:
    return Registry(registry)


@pytest.fixture
def shop(registry: Driver, calls: Registry, clock: Clock) -> Iterator[Identity]:
    set_domain(registry, None, access_tokens={"kafka": BROKER})
    identity = Identity(
        "shop",
        registry="http://registry.test",
        join_token=registry.join_token("shop").encode(),
        limits=QUIET,
        clock=clock,
        fetcher=calls,
    ).start()
    yield identity
    calls.down = False
    identity.stop()


def test_one_token_is_used_for_three_quarters_of_its_life(shop: Identity, calls: Registry, clock: Clock) -> None:
    first = shop.access_token("kafka")
    assert (first.expires_at, first.scopes) == (clock() + 300, {"read", "write"})
    assert first.text not in repr(first)
    clock.forward(224)
    assert (shop.access_token("kafka"), calls.asked) == (first, 1)
    clock.forward(2)
    following = shop.access_token("kafka")
    assert (following.text != first.text, following.expires_at, calls.asked) == (True, clock() + 300, 2)
    clock.forward(-200)
    assert shop.access_token("kafka").expires_at == clock() + 300, "a clock that was set back keeps no token alive"


def test_threads_that_need_the_first_token_share_one_call(shop: Identity, calls: Registry) -> None:
    calls.go_on.clear()
    with ThreadPoolExecutor(16) as pool:
        tokens = [pool.submit(shop.access_token, "kafka") for _ in range(16)]
        assert calls.arrived.wait(20)
        calls.go_on.set()
        assert len({token.result(20).text for token in tokens}) == 1
    assert calls.asked == 1


def test_while_one_thread_asks_for_the_next_token_the_others_go_on_with_this_one(
    shop: Identity, calls: Registry, clock: Clock
) -> None:
    first = shop.access_token("kafka")
    clock.forward(230)
    calls.go_on.clear()
    calls.arrived.clear()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(shop.access_token, "kafka")
        assert calls.arrived.wait(20)
        assert shop.access_token("kafka") == first
        calls.go_on.set()
        assert following.result(20) == shop.access_token("kafka") != first


def test_while_the_registry_is_away_the_token_is_used_to_its_end_and_then_refused(
    shop: Identity, calls: Registry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first = shop.access_token("kafka")
    calls.down = True
    clock.forward(230)
    assert [shop.access_token("kafka") for _ in range(10)] == [first] * 10
    assert calls.asked == 2, "it rests between two attempts"
    assert "the next access token for kafka cannot be had yet" in caplog.text
    clock.forward(60)
    with pytest.raises(TrustUnavailable, match="cannot be asked"):
        shop.access_token("kafka")
    with pytest.raises(TrustUnavailable, match="a moment ago"):
        shop.access_token("kafka")
    assert calls.asked == 3
    calls.down = False
    clock.forward(2)
    assert shop.access_token("kafka").expires_at == clock() + 300


def test_a_refusal_is_typed_told_to_all_and_leaves_no_token(
    shop: Identity, calls: Registry, registry: Driver, clock: Clock
) -> None:
    shop.access_token("kafka")
    thumbprint = shop.credentials.key_id.rpartition("/")[2]
    ended = registry.client.delete(f"/v1/services/shop/keys/{thumbprint}?reason=compromised", headers=registry.operator)
    assert ended.status_code == 204
    clock.forward(230)
    for _ in range(3):
        with pytest.raises(AccessTokenRefused) as refused:
            shop.access_token("kafka")
        assert refused.value.code == "invalid_client"
    assert calls.asked == 2


def test_what_no_operator_granted_is_refused(shop: Identity, calls: Registry, registry: Driver, clock: Clock) -> None:
    with pytest.raises(AccessTokenRefused, match=r"the domain's settings name \['kafka'\], and no 'store'") as refused:
        shop.access_token("store")
    assert (refused.value.code, calls.asked) == ("invalid_target", 0)
    set_domain(registry, None, access_tokens={"kafka": {**BROKER, "services": ["other"]}})
    with pytest.raises(AccessTokenRefused) as refused:
        shop.access_token("kafka")
    assert refused.value.code == "invalid_target"
    set_domain(registry, None)
    clock.forward(2)
    with pytest.raises(AccessTokenRefused) as refused:
        shop.access_token("kafka")
    assert refused.value.code == "exchange_off"


ANSWERS: Mapping[str, tuple[int, bytes]] = {
    "no JSON": (200, b"<html>"),
    "no token": (200, b'{"token_type":"Bearer","expires_in":300,"scope":"a"}'),
    "a token with a line break": (200, b'{"access_token":"a\\nb","token_type":"Bearer","expires_in":300,"scope":"a"}'),
    "a token without an end": (200, b'{"access_token":"a","token_type":"Bearer","scope":"a"}'),
    "a token that is over": (200, b'{"access_token":"a","token_type":"Bearer","expires_in":0,"scope":"a"}'),
    "a token of another type": (200, b'{"access_token":"a","token_type":"DPoP","expires_in":300,"scope":"a"}'),
    "a refusal of something between": (401, b"<html>"),
    "too many refusals": (429, b'{"code":"rate_limited"}'),
    "the database is away": (503, b'{"code":"storage_unavailable"}'),
}


@pytest.mark.parametrize(("status", "body"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none_is_no_verdict(shop: Identity, calls: Registry, status: int, body: bytes) -> None:
    calls.answer = Answer(status, body)
    with pytest.raises(TrustUnavailable):
        shop.access_token("kafka")


def test_no_token_is_asked_for_where_it_could_be_read_on_the_way(shop: Identity, calls: Registry) -> None:
    calls.confidential = False
    with pytest.raises(ConfigurationError, match="must begin with https"):
        shop.access_token("kafka")
    assert calls.asked == 0


def test_a_child_forked_while_a_thread_asks_does_not_wait_for_it(shop: Identity, calls: Registry) -> None:
    calls.go_on.clear()
    calls.answer = Answer(200, b'{"access_token":"a.b.c","token_type":"Bearer","expires_in":300,"scope":"a"}')
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shop.access_token, "kafka")
        assert calls.arrived.wait(20)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if shop.access_token("kafka").text == "a.b.c" else 1
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        calls.go_on.set()
        assert waiting.result(20).text == "a.b.c"


def test_no_log_has_a_token(shop: Identity, calls: Registry, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token: Any = shop.access_token("kafka")
    calls.down = True
    clock.forward(230)
    shop.access_token("kafka")
    assert token.text not in caplog.text
    assert "eyJ" not in caplog.text
