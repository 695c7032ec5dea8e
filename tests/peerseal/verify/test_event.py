"""Events over the trust store: signed by identities, believed by keys on record, through rotations and a year."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from peerseal import (
    Event,
    EventVerifier,
    Identity,
    RotationSchedule,
    TrustLimits,
    TrustStore,
    User,
    carrying,
    current_transaction,
)
from peerseal.errors import (
    BadSignature,
    CallerNotAllowed,
    Expired,
    PeersealError,
    RevokedKey,
    TrustUnavailable,
    UnknownKey,
    UnsignableRequest,
)
from peerseal.testing import Clock, MemoryRegistry
from tests.support.between import Between

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)
"""The background thread sleeps through the test, which calls ``refresh`` itself."""
DAY = 24 * 3600
PAYLOAD = b'{"eventID":"e-1"}'
SENT: dict[str, Any] = {"topic": "OrderCreated", "audience": "jobs.example.com", "scope": "trigger_invoicing"}
STATEMENTS = "GET /v1/services/client/keys/"


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        registry.set_domain(minters=["client", "invoicing"])
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client", rotation=RotationSchedule(every=0.9 * DAY), limits=QUIET)


@pytest.fixture
def trust(registry: MemoryRegistry) -> TrustStore:
    return registry.trust_store(limits=QUIET)


class Consumer:
    """Consumers of ``OrderCreated`` who believe ``client``."""

    def __init__(self, trust: TrustStore, clock: Clock, max_age: timedelta = timedelta(days=365)) -> None:
        allow = {"client": {"trigger_invoicing"}}
        self._verifier = EventVerifier(trust, audience="jobs.example.com", allow=allow, max_age=max_age, clock=clock)

    def consume(self, headers: dict[str, str], payload: bytes = PAYLOAD) -> Event:
        return self._verifier.verify(payload, headers, topic="OrderCreated")


@pytest.fixture
def consumer(trust: TrustStore, clock: Clock) -> Consumer:
    return Consumer(trust, clock)


def signed(client: Identity, event_id: str = "e-1", **options: Any) -> dict[str, str]:
    return client.sign_event(PAYLOAD, **{**SENT, "event_id": event_id, "transaction_id": "t-1", **options})


def statements(registry: MemoryRegistry) -> int:
    """How many key statements were asked for so far."""
    return sum(count for call, count in registry.calls.items() if call.startswith(STATEMENTS))


def rotate(client: Identity, clock: Clock) -> None:
    """A day in the life of a service: the next key is published, signs, and the old one is retired."""
    clock.advance(0.9 * DAY)
    client.look_after_keys()
    clock.advance(200)
    client.look_after_keys()


# ---- what is signed


def test_an_event_says_who_published_it_for_which_user_and_transaction(client: Identity, consumer: Consumer) -> None:
    event = consumer.consume(signed(client, subject="ada"))
    assert (event.publisher, event.user, event.transaction_id, event.id) == ("client", "ada", "t-1", "e-1")
    assert consumer.consume(signed(client)).user == "test.internal/client", "where no user stands behind it"


def test_within_a_transaction_the_event_is_its_users(client: Identity, consumer: Consumer) -> None:
    user = User("ada", "https://login.example.com", frozenset(("trigger_invoicing",)), "u-1", 2**40, {})
    with carrying(client.mint_transaction(user, scope=["trigger_invoicing"], transaction_id="t-9")):
        headers = client.sign_event(PAYLOAD, **SENT, event_id="e-1")
        for other in ({"subject": "grace"}, {"transaction_id": "t-8"}):
            with pytest.raises(UnsignableRequest):
                client.sign_event(PAYLOAD, **SENT, event_id="e-1", **other)
        with pytest.raises(UnsignableRequest, match="does not allow"):
            client.sign_event(PAYLOAD, **{**SENT, "scope": "trigger_refund"}, event_id="e-1")
    event = consumer.consume(headers)
    assert (event.user, event.transaction_id) == ("ada", "t-9")
    assert event.authentication == {"iss": "https://login.example.com", "jti": "u-1"}
    with pytest.raises(UnsignableRequest, match="no current transaction"):
        client.sign_event(PAYLOAD, **SENT, event_id="e-1")


@pytest.mark.parametrize(
    "changes",
    [
        {"lifetime": timedelta(days=366)},
        {"lifetime": timedelta(0)},
        {"topic": "Order Created"},
        {"audience": "test.internal/client"},
        {"scope": "two purposes"},
        {"event_id": ""},
        {"subject": "x" * 600},
    ],
    ids=str,
)
def test_what_no_consumer_would_read_is_not_signed(client: Identity, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsignableRequest):
        signed(client, **changes)


# ---- keys on record


@pytest.mark.thorough
def test_an_event_of_today_is_good_in_364_days_after_400_rotations_and_not_after_a_revocation(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore, clock: Clock
) -> None:
    began, first = clock(), client.credentials.key_id
    year = timedelta(days=365)
    headers = signed(client, lifetime=year)
    rotate(client, clock)
    second, signed_later = client.credentials.key_id, signed(client, "e-2", lifetime=year)
    kids = {first, second}
    for _ in range(399):
        rotate(client, clock)
        kids.add(client.credentials.key_id)
    assert len(kids) == 401
    clock.advance(began + 364 * DAY - clock())
    assert consumer.consume(headers).kid == first
    assert consumer.consume(signed_later).kid == second
    registry.revoke(first)  # by default with all that it vouched for, the second among them
    trust.refresh()
    for revoked in (headers, signed_later):
        with pytest.raises(RevokedKey):
            consumer.consume(revoked)


def test_an_event_ends_with_its_year_however_good_its_key(client: Identity, consumer: Consumer, clock: Clock) -> None:
    headers = signed(client, lifetime=timedelta(days=365))
    clock.advance(364 * DAY)
    assert consumer.consume(headers).id == "e-1"
    clock.advance(2 * DAY)
    with pytest.raises(Expired):
        consumer.consume(headers)


def test_a_revocation_is_in_force_once_the_changes_were_heard(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore, clock: Clock
) -> None:
    headers = signed(client)
    rotate(client, clock)
    assert consumer.consume(headers).id == "e-1"
    registry.revoke(consumer.consume(headers).kid)
    trust.refresh()
    for _ in range(2):
        with pytest.raises(RevokedKey):
            consumer.consume(headers)


def test_a_key_is_asked_for_once_and_again_when_its_service_changes(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore, clock: Clock
) -> None:
    headers = [signed(client, f"e-{number}") for number in range(50)]
    for each in headers:
        consumer.consume(each)
    assert statements(registry) == 1
    registry.identity("somebody-else")
    trust.refresh()
    consumer.consume(headers[0])
    assert statements(registry) == 1
    rotate(client, clock)
    trust.refresh()
    for each in headers:
        consumer.consume(each)
    assert statements(registry) == 2


def test_what_changes_confirm_needs_no_registry_for_the_offline_limit_and_is_not_believed_after_it(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore, clock: Clock
) -> None:
    headers = signed(client)
    consumer.consume(headers)
    clock.advance(QUIET.offline_limit / 2)
    trust.refresh()
    registry.down = True
    clock.advance(QUIET.offline_limit - 1)
    assert consumer.consume(headers).id == "e-1"
    clock.advance(1)
    with pytest.raises(TrustUnavailable):
        consumer.consume(headers)
    registry.down = False
    assert consumer.consume(headers).id == "e-1"


def test_a_key_of_a_set_in_memory_costs_no_statement(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore
) -> None:
    trust.key(client.credentials.key_id)
    consumer.consume(signed(client))
    assert statements(registry) == 0


def test_made_up_kids_cost_a_bounded_number_of_calls_and_known_keys_none_of_it(
    registry: MemoryRegistry, client: Identity, trust: TrustStore
) -> None:
    for number in range(300):
        kid = f"test.internal/client/{number:042d}A"
        with pytest.raises((UnknownKey, TrustUnavailable)):
            trust.recorded_key(kid)
    assert statements(registry) <= QUIET.stranger_fetches
    asked = statements(registry)
    with pytest.raises(UnknownKey):
        trust.recorded_key(f"test.internal/client/{0:042d}A")
    assert statements(registry) == asked


def test_made_up_kids_that_come_together_are_all_counted(registry: MemoryRegistry, clock: Clock) -> None:
    """Of strangers that ask at once each finds the last call of the budget left. The budget is in debt after that."""
    together = threading.Barrier(5)

    def meet(path: str) -> None:
        if "/keys/" in path:
            with suppress(threading.BrokenBarrierError):
                together.wait(1)

    limits = replace(QUIET, stranger_fetches=1.0, stranger_rate=1.0)
    trust = registry.trust_store(limits=limits, fetcher=Between(registry, meet))
    assert trust.domain == "test.internal"

    strangers = (f"test.internal/stranger-{number}" for number in range(100))
    of_each_lock = list({hash(stranger) % 64: stranger for stranger in strangers}.values())

    def ask(stranger: str) -> str:
        with pytest.raises((UnknownKey, TrustUnavailable)) as refused:
            trust.recorded_key(f"{stranger}/{'A' * 43}")
        return refused.value.code

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(ask, of_each_lock[:5])) == ["unknown_key"] * 5
    clock.advance(2)
    assert ask(of_each_lock[5]) == "trust_unavailable", "five calls were made, and three seconds allow three"
    clock.advance(4)
    assert ask(of_each_lock[6]) == "unknown_key"


def test_the_statement_of_another_key_is_no_answer(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, clock: Clock
) -> None:
    headers = signed(client)
    kid = client.credentials.key_id
    rotate(client, clock)
    other = registry.statement(client.credentials.key_id)
    path = f"/v1/services/client/keys/{kid.rpartition('/')[2]}.jwt"
    registry.answers[path] = registry.call("GET", path.replace(kid.rpartition("/")[2], other.kid.rpartition("/")[2]))
    with pytest.raises(TrustUnavailable):
        consumer.consume(headers)


def test_a_statement_by_a_signing_key_that_the_root_dropped_is_asked_for_anew(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore, clock: Clock
) -> None:
    headers = signed(client)
    consumer.consume(headers)
    registry.roll_signing_key()
    clock.advance(QUIET.cooldown)
    trust.refresh()
    consumer.consume(headers)
    assert statements(registry) == 2


def test_a_statement_by_a_signing_key_that_was_new_is_asked_for_once(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, trust: TrustStore, clock: Clock
) -> None:
    assert trust.domain == "test.internal"
    registry.roll_signing_key()
    clock.advance(QUIET.cooldown)
    for number in range(3):
        consumer.consume(signed(client, f"e-{number}"))
    assert statements(registry) == 1


def test_of_too_many_statements_the_oldest_is_forgotten(
    registry: MemoryRegistry, client: Identity, clock: Clock
) -> None:
    trust = registry.trust_store(limits=replace(QUIET, max_statements=2))
    kids = [client.credentials.key_id]
    for _ in range(2):
        rotate(client, clock)
        kids.append(client.credentials.key_id)
    for kid in (*kids, kids[2], kids[1]):
        assert trust.recorded_key(kid).kid == kid
    assert statements(registry) == 3
    assert trust.recorded_key(kids[0]).kid == kids[0]
    assert statements(registry) == 4


def test_a_service_of_another_domain_is_unknown(trust: TrustStore) -> None:
    with pytest.raises(UnknownKey):
        trust.recorded_key("other.internal/client/" + "A" * 43)


def test_nobody_is_asked_about_a_publisher_that_is_not_allowed(
    registry: MemoryRegistry, trust: TrustStore, clock: Clock
) -> None:
    stranger = registry.identity("stranger")
    registry.calls.clear()
    with pytest.raises(CallerNotAllowed):
        Consumer(trust, clock).consume(signed(stranger))
    assert [call for call in registry.calls if "stranger" in call] == []


def test_an_altered_token_is_refused_before_anything_else_is_said(client: Identity, consumer: Consumer) -> None:
    head, payload, signature = signed(client)["authorization"].split(".")
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    with pytest.raises(BadSignature):
        consumer.consume({"authorization": f"{head}.{payload}.{flipped}"})


# ---- on behalf of the user, long after


def test_a_consumer_that_may_mint_calls_on_in_the_users_name_for_the_events_one_purpose(
    registry: MemoryRegistry, client: Identity, consumer: Consumer, clock: Clock
) -> None:
    event = consumer.consume(signed(client, subject="ada"))
    invoicing = registry.identity("invoicing", limits=QUIET)
    transaction = invoicing.transaction_for_event(event)
    assert transaction is not None
    assert (transaction.user, transaction.id, transaction.scopes) == ("ada", "t-1", {"trigger_invoicing"})
    token = transaction.carry()
    assert transaction.carry() == token, "minted once"
    clock.advance(300)
    assert transaction.carry() != token, "and anew before it ends"
    assert registry.identity("reporting", limits=QUIET).transaction_for_event(event) is None
    assert current_transaction() is None


def test_every_refusal_is_one_of_the_tree(client: Identity, consumer: Consumer) -> None:
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "Bearer " + "." * 10_000}):
        with pytest.raises(PeersealError):
            consumer.consume(headers)
