"""A store's waiting question names the services that it holds documents of, and ends when it holds one of another."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import InvalidName
from peerseal.protocol.documents.changes import MAX_WATCHED, Watched
from tests.support.patient import PatientRegistry, served
from tests.support.revoked import is_revoked
from tests.support.waiting import until

LONG = TrustLimits(wait=600.0, poll_interval=0.1, refresh_interval=24 * 3600.0)
"""A question that is not ended waits longer than the test."""
CHANGES = "GET /v1/changes"


@pytest.fixture
def patient() -> Iterator[PatientRegistry]:
    with PatientRegistry() as registry:
        yield registry


@pytest.fixture
def url(patient: PatientRegistry) -> Iterator[str]:
    with served(patient) as url:
        yield url


@contextmanager
def following(registry: PatientRegistry, *urls: str) -> Iterator[TrustStore]:
    trust = TrustStore(urls, pin=registry.pin, limits=LONG)
    try:
        yield trust
    finally:
        trust.stop()


@pytest.fixture
def trust(patient: PatientRegistry, url: str) -> Iterator[TrustStore]:
    with following(patient, url) as trust:
        yield trust


def new_kid(registry: PatientRegistry, service: str) -> str:
    return registry.identity(service, limits=TrustLimits(poll_interval=3600.0)).credentials.key_id


def asks_about(registry: PatientRegistry, *services: str) -> None:
    """Returns once the last question names these services."""
    until(lambda: registry.watched[-1:] == [frozenset(services)], what=f"a question about {services}")


def test_a_question_names_the_services_of_all_documents_that_are_held(
    patient: PatientRegistry, trust: TrustStore
) -> None:
    client, consumer = new_kid(patient, "client"), new_kid(patient, "consumer")
    trust.key(client)
    trust.recorded_key(consumer)
    trust.policy(f"{patient.domain}/callee")
    trust.settings()
    asks_about(patient, "client", "consumer", "callee", "registry")


def test_a_newly_held_service_ends_the_question_that_waits_and_its_changes_are_seen_at_once(
    patient: PatientRegistry, trust: TrustStore, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = new_kid(patient, "first"), new_kid(patient, "second")
    trust.key(first)
    asks_about(patient, "first")
    trust.key(second)
    asks_about(patient, "first", "second")
    patient.revoke(second)
    until(lambda: is_revoked(trust, second))
    assert "cannot follow" not in caplog.text, "to end the own question is no failure"
    assert trust.status().failed.get("changes", 0) == 0


def test_a_revocation_just_before_the_question_names_the_service_is_seen(
    patient: PatientRegistry, trust: TrustStore
) -> None:
    first, second = new_kid(patient, "first"), new_kid(patient, "second")
    trust.key(first)
    asks_about(patient, "first")
    trust.key(second)
    patient.revoke(second)
    until(lambda: is_revoked(trust, second))


def test_a_question_that_this_process_ended_is_not_put_to_a_mirror(
    patient: PatientRegistry, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with PatientRegistry() as other, served(other) as mirror, following(patient, url, mirror) as trust:
        first, second = new_kid(patient, "first"), new_kid(patient, "second")
        trust.key(first)
        asks_about(patient, "first")
        trust.key(second)
        asks_about(patient, "first", "second")
        assert other.calls[CHANGES] == 0
    assert "passed over" not in caplog.text


def test_a_change_of_another_service_does_not_end_the_question(patient: PatientRegistry, trust: TrustStore) -> None:
    kid = new_kid(patient, "client")
    trust.key(kid)
    asks_about(patient, "client")
    asked = len(patient.watched)
    for number in range(5):
        new_kid(patient, f"other-{number}")
    patient.revoke(kid)
    until(lambda: is_revoked(trust, kid))
    until(lambda: len(patient.watched) == asked + 1)


def test_a_registry_that_tells_of_every_change_is_followed_as_before(
    patient: PatientRegistry, trust: TrustStore
) -> None:
    patient.filters = False
    kid = new_kid(patient, "client")
    trust.key(kid)
    asks_about(patient, "client")
    asked = len(patient.watched)
    for number in range(3):
        new_kid(patient, f"other-{number}")
        until(lambda number=number: len(patient.watched) > asked + number)
    patient.revoke(kid)
    until(lambda: is_revoked(trust, kid))


def test_more_services_than_fit_into_a_question_are_not_named(patient: PatientRegistry, trust: TrustStore) -> None:
    for number in range(13):
        kid = new_kid(patient, f"{number}{'x' * 61}")
        trust.key(kid)
    asks_about(patient)
    patient.revoke(kid)
    until(lambda: is_revoked(trust, kid))


def test_text_and_names_of_watched_services() -> None:
    some, more = Watched.of(["b", "a"]), Watched.of(["a", "b", "c"])
    assert some.text == "a,b"
    assert Watched.read("a,b") == some
    assert more >= some
    assert not some >= more
    assert Watched() >= more
    assert not more >= Watched()
    assert some | Watched.of(["c"]) == more
    assert some | Watched() == Watched()
    assert Watched.of(["x" * 99 + str(number) for number in range(8)]) == Watched(), "with the commas"
    with pytest.raises(InvalidName):
        Watched.read("x" * (MAX_WATCHED + 1))
