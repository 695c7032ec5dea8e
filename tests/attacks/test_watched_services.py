"""Attacks by way of the services that a waiting question names: by who stands in between, and by who asks."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.protocol.documents.changes import MAX_WATCHED, Watched
from peerseal.testing import Answer
from registry.services.documents import watchers
from registry.services.documents.changes import WaitingCall
from tests.registry.driver import Driver
from tests.support.keys import key as new_key
from tests.support.patient import PatientRegistry, served
from tests.support.revoked import is_revoked
from tests.support.waiting import until

LIMITS = TrustLimits(wait=2.0, poll_interval=0.1, refresh_interval=24 * 3600.0)


class Altering(PatientRegistry):
    """A registry that others reach through a proxy which alters the services in questions."""

    alter: Callable[[str], str] = staticmethod(str)

    def serve(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        return super().serve(method, self.alter(path), body, headers)


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda path: path.replace("&services=", "&services=not-"), id="other names"),
        pytest.param(lambda path: path.partition("&services=")[0], id="none"),
    ],
)
def test_who_alters_the_named_services_delays_a_revocation_by_one_wait_at_most(alter: Callable[[str], str]) -> None:
    """The list at the end of a wait is complete whatever the question named: its signature covers ``since``."""
    with Altering() as registry, served(registry) as url:
        registry.alter = alter
        kid = registry.identity("client", limits=TrustLimits(poll_interval=3600.0)).credentials.key_id
        trust = TrustStore(url, pin=registry.pin, limits=LIMITS)
        try:
            trust.key(kid)
            until(lambda: registry.asking == 1)
            registry.revoke(kid)
            until(lambda: is_revoked(trust, kid))
        finally:
            trust.stop()


@pytest.fixture
def registry(registry_database: str, tmp_path: Path) -> Iterator[Driver]:
    registry = Driver(registry_database, tmp_path / "home")
    yield registry
    registry.registry.changes.waiting.end()
    registry.close()


def test_a_stranger_with_calls_that_name_invented_services_takes_bounded_memory_and_delays_no_other(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "MOST_WATCHED", 1_000)
    feed, head = registry.registry.changes, registry.changes(0).seq
    honest, crowd = feed.wait(head, "127.0.0.1", Watched.of(["billing"])), list[WaitingCall]()
    for number in range(100):
        text = ",".join(f"{number:x}z{one:x}" for one in range(100))
        call = feed.wait(head, "192.0.2.1", Watched.read(text))
        assert call is not None
        crowd.append(call)
    registry.joined(new_key(), "billing")
    assert honest is not None
    honest.wait(20)
    assert honest.answer is not None
    assert sum(call.answer is None for call in crowd) <= 500 // 100, "the others are told of any change"


def test_a_stranger_who_fills_the_index_leaves_others_undisturbed_by_changes_they_do_not_watch(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "MOST_WATCHED", 1_000)
    feed, head = registry.registry.changes, registry.changes(0).seq
    crowd = [feed.wait(head, "192.0.2.1", Watched.of(f"a{one:x}" for one in range(200))) for _ in range(10)]
    honest, witness = (
        feed.wait(head, f"127.0.0.{n}", Watched.of([name])) for n, name in ((1, "orders"), (2, "billing"))
    )
    registry.joined(new_key(), "billing")
    assert None not in crowd
    assert honest is not None
    assert witness is not None
    witness.wait(20)
    assert (witness.answer is not None, honest.answer) == (True, None)


@pytest.mark.parametrize(
    "text", ["a" * 64, "," * MAX_WATCHED, "a," * 400, "a" * 4000, "ä", "a\u0000b", "../x", "a%2Cb,"]
)
def test_hostile_text_is_refused_before_anything_waits(registry: Driver, text: str) -> None:
    answer = registry.client.get("/v1/changes", query_string={"since": "0", "wait": "20", "services": text})
    assert (answer.status_code, answer.get_json()["code"]) == (400, "invalid_parameter")
    assert len(registry.registry.changes.waiting) == 0
