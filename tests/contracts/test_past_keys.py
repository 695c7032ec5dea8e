"""Keys on record at the real registry: an event of a year ago is believed by the key as it stood, on both databases."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from peerseal import EventVerifier, Identity, RotationSchedule, TrustLimits, TrustStore
from peerseal.errors import RevokedKey
from registry.services.operators import Role
from tests.registry.driver import Clock, Driver
from tests.registry.in_process import InProcess

DAY = 24 * 3600
QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)
PAYLOAD = b"{}"


@pytest.fixture
def publisher(registry: Driver, clock: Clock) -> Iterator[Identity]:
    identity = Identity(
        "billing",
        registry="http://registry.test",
        join_token=registry.join_token("billing").encode(),
        rotation=RotationSchedule(every=0.9 * DAY),
        limits=QUIET,
        alg="ES256",
        clock=clock,
        fetcher=InProcess(registry),
    )
    yield identity.start()
    identity.stop()


def rotate(publisher: Identity, clock: Clock) -> None:
    clock.forward(0.9 * DAY)
    publisher._keeper.work()
    clock.forward(200)
    publisher._keeper.work()


@pytest.mark.slow
@pytest.mark.thorough
def test_an_event_verifies_364_days_and_400_rotations_later_and_not_once_its_key_is_revoked(
    registry: Driver, publisher: Identity, clock: Clock
) -> None:
    signed = publisher.sign_event(
        PAYLOAD,
        topic="OrderCreated",
        audience="jobs.example.com",
        scope="trigger_invoicing",
        event_id="e-1",
        transaction_id="t-1",
        lifetime=timedelta(days=365),
    )
    began, first = clock(), publisher.credentials.key_id
    for _ in range(400):
        rotate(publisher, clock)
    clock.forward(began + 364 * DAY - clock())
    fetcher = InProcess(registry)
    trust = TrustStore("http://registry.test", pin=registry.pin, limits=QUIET, clock=clock, fetcher=fetcher)
    verifier = EventVerifier(
        trust,
        audience="jobs.example.com",
        allow={"billing": {"trigger_invoicing"}},
        max_age=timedelta(days=365),
        clock=clock,
    )
    for _ in range(100):
        assert verifier.verify(PAYLOAD, signed, topic="OrderCreated").kid == first
    assert fetcher.calls <= 3, "the root's document, the key's statement, perhaps a proof"

    service, thumbprint = first.split("/")[1:]
    _, token = registry.registry.operators.create(Role.OPERATOR, 600)
    answer = registry.client.delete(
        f"/v1/services/{service}/keys/{thumbprint}?reason=compromised",
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 204
    trust.refresh()
    with pytest.raises(RevokedKey):
        verifier.verify(PAYLOAD, signed, topic="OrderCreated")
    clock.forward(2 * DAY)
    trust.stop()
