"""Past keys at the real registry: an event of a year ago is believed by the key as it stood, and a transaction for as
long as its token lives. On both databases."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from peerseal import EventVerifier, Identity, RotationSchedule, TrustLimits, TrustStore, User, Verifier
from peerseal.errors import RevokedKey
from peerseal.protocol.encoding import canonical_json
from registry.services.access.operators import Role
from tests.registry.driver import JSON, Clock, Driver
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
    publisher.look_after_keys()
    clock.forward(200)
    publisher.look_after_keys()


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


def service(registry: Driver, clock: Clock, name: str) -> Identity:
    return Identity(
        name,
        registry="http://registry.test",
        join_token=registry.join_token(name).encode(),
        rotation=RotationSchedule(lead=0, overlap=0),
        limits=QUIET,
        alg="ES256",
        clock=clock,
        fetcher=InProcess(registry),
    ).start()


def test_a_transaction_is_good_for_its_15_minutes_though_its_minters_key_was_rotated_away_at_once(
    registry: Driver, clock: Clock
) -> None:
    settled = canonical_json({"minters": ["edge"], "issuers": []})
    headers = {**registry.operator, **JSON, "If-Match": '"0"'}
    assert registry.client.put("/v1/domain", data=settled, headers=headers).status_code == 200
    edge, caller = service(registry, clock, "edge"), service(registry, clock, "caller")
    first = edge.credentials.key_id
    user = User("ada", "https://login.example.com", frozenset(("read",)), "u-1", 2**40, {})
    minted = {"txn-token": edge.mint_transaction(user, scope=["read"], lifetime=timedelta(minutes=15)).carry()}
    edge.rotate()
    for _ in range(2):
        clock.forward(1)
        edge.look_after_keys()
    assert registry.key_set("edge").keys[0].active_until <= clock(), "retired"
    assert edge.credentials.key_id != first
    minted_at = clock() - 2
    for after in (2, 450, 900 + 29):
        clock.now = minted_at + after
        fetcher = InProcess(registry)
        cold = TrustStore("http://registry.test", pin=registry.pin, limits=QUIET, clock=clock, fetcher=fetcher)
        verifier = Verifier(cold, audience="callee", allow={"caller": {"read"}}, clock=clock)
        request = caller.sign_request("callee", method="GET", target="/", headers=minted)
        peer = verifier.verify(request, method="GET", target="/", headers=minted, scope="read")
        assert peer.transaction is not None, after
        cold.stop()
    for each in (edge, caller):
        each.stop()
