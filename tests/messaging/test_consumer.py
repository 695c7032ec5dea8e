"""What a consumer does with good events, and with everything else, on each broker."""

import threading
from collections.abc import Callable, Mapping

import pytest

import peerseal
from peerseal import Event, Verifier, current_transaction
from peerseal.errors import BrokerUnavailable, MessageRefused, WrongType
from peerseal.messaging import Outlet
from tests.messaging.world import World
from tests.support.brokers import eventually

ORDER = b'{"items":[{"itemID":1,"quantity":2,"price":100}]}'


def test_a_good_event_is_handled_once_for_its_user(world: World) -> None:
    seen: list[tuple[str, str | None, bytes]] = []

    def handle(event: Event) -> None:
        transaction = current_transaction()
        seen.append((event.id, transaction and transaction.user, event.payload))

    world.publish("e-1", ORDER)
    running = world.running(handle)
    running.until_handled(1)
    running.stop()
    assert seen == [("e-1", "ada", ORDER)]
    assert current_transaction() is None
    again = world.running(handle)
    world.publish("e-2", ORDER)
    again.until_handled(1)
    assert [event_id for event_id, _, _ in seen] == ["e-1", "e-2"], "what was done does not come again"


def test_a_consumer_that_may_not_mint_works_for_no_user(world: World) -> None:
    world.registry.set_domain(minters=[])
    seen: list[object] = []
    world.publish("e-1")
    world.running(lambda _: seen.append(current_transaction())).until_handled(1)
    assert seen == [None]


Send = Callable[[World], None]

REFUSED: Mapping[str, tuple[Send, str]] = {
    "price changed": (
        lambda w: w.send(ORDER.replace(b"100", b"001"), {"authorization": w.signed("e-1", ORDER)}),
        "wrong_payload",
    ),
    "items reordered": (
        lambda w: w.send(
            b'{"items":[{"quantity":2,"itemID":1,"price":100}]}', {"authorization": w.signed("e-1", ORDER)}
        ),
        "wrong_payload",
    ),
    "userID put into the body": (
        lambda w: w.send(ORDER.replace(b"{", b'{"userID":"grace",', 1), {"authorization": w.signed("e-1", ORDER)}),
        "wrong_payload",
    ),
    "another topic's": (lambda w: w.send(b"{}", {"authorization": w.signed("e-1", topic="Other")}), "wrong_topic"),
    "another audience's": (lambda w: w.publish("e-1", audience="reports.example.com"), "wrong_audience"),
    "another scope": (lambda w: w.publish("e-1", scope="trigger_refund"), "insufficient_scope"),
    "another registered service's": (lambda w: w.publish("e-1", by=w.stranger), "caller_not_allowed"),
    "a request token": (
        lambda w: w.send(
            b"{}", {"authorization": f"Bearer {w.client.sign_request('invoicing', method='GET', target='/')}"}
        ),
        "wrong_type",
    ),
    "no headers": (lambda w: w.send(ORDER, {}), "missing_token"),
    "not a token": (lambda w: w.send(ORDER, {"authorization": "Bearer rubbish"}), "malformed_token"),
    "an empty record": (lambda w: w.send(b"", {}), "missing_token"),
    "not text": (lambda w: w.send(bytes(range(256)), {"authorization": bytes(range(128, 256))}), "malformed_token"),
    "for a user whom no database takes": (
        lambda w: w.send(b"{}", {"authorization": w.forged("e-1", sub="ada\0")}),
        "malformed_token",
    ),
    "a thousand headers": (lambda w: w.send(b"", {f"h{n}": "x" for n in range(1000)}), "missing_token"),
}


@pytest.mark.parametrize(("send", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_put_aside_with_its_code_and_the_next_good_event_goes_through(
    world: World, send: Send, code: str
) -> None:
    send(world)
    world.publish("e-2", ORDER)
    seen: list[str] = []
    running = world.running(lambda event: seen.append(event.id))
    running.until_handled(1)
    running.until_refused(1)
    assert seen == ["e-2"]
    [(said, origin, letter)] = world.dead_letters(1)
    assert said == code
    assert origin.startswith(world.topic)
    assert letter.payload != ORDER or code not in ("wrong_payload",), "as it came"
    assert running.consumer.counts.refused == {code: 1}


def test_an_event_for_which_nothing_can_be_minted_is_put_aside_and_the_next_one_is_handled(world: World) -> None:
    """Its publisher says more of how the user was authenticated than a transaction has room for."""
    world.send(b"{}", {"authorization": world.forged("e-1", rctx={"jti": "x" * 1100})})
    world.publish("e-2")
    seen: list[str] = []

    def handle(event: Event) -> None:
        transaction = current_transaction()
        assert transaction is not None
        assert transaction.carry(), "as a call in the user's name does"
        seen.append(event.id)

    running = world.running(handle)
    running.until_refused(1)
    running.until_handled(1)
    assert seen == ["e-2"]
    assert world.dead_letters(1)[0][0] == "event_unmintable"
    assert running.consumer.counts.retried == {}


def test_a_dead_letter_is_as_it_came_and_names_no_secret_of_ours(world: World) -> None:
    world.send(ORDER + b" ", {"authorization": world.signed("e-1", ORDER), "trace": "abc"})
    world.running(lambda _: None).until_refused(1)
    [(_, _, letter)] = world.dead_letters(1)
    headers = dict(letter.headers)
    assert letter.payload == ORDER + b" "
    assert headers["trace"] == b"abc"
    assert set(headers) == {"authorization", "trace", "peerseal-code", "peerseal-origin"}


def test_a_dead_letter_cannot_bring_its_own_verdict(world: World) -> None:
    world.send(ORDER, {"peerseal-code": "fine", "peerseal-origin": "elsewhere"})
    world.running(lambda _: None).until_refused(1)
    [(code, origin, letter)] = world.dead_letters(1)
    assert (code, origin.partition("/")[0]) == ("missing_token", world.topic)
    assert [name for name, _ in letter.headers].count("peerseal-code") == 1


def test_an_event_of_a_revoked_key_is_put_aside(world: World) -> None:
    world.publish("e-1")
    world.registry.revoke(world.client.credentials.key_id)
    world.running(lambda _: None).until_refused(1)
    assert world.dead_letters(1)[0][0] == "revoked_key"


def test_an_event_token_opens_no_http_endpoint(world: World) -> None:
    token = world.signed("e-1").removeprefix("Bearer ")
    verifier = Verifier(world.invoicing.trust, audience="invoicing", allow={"client": {"trigger_invoicing"}})
    with pytest.raises(WrongType):
        verifier.verify(token, method="GET", target="/")


# ---- what is tried again


def test_work_that_fails_is_tried_again_and_counted_once(world: World) -> None:
    attempts: list[str] = []

    def handle(event: Event) -> None:
        attempts.append(event.id)
        if len(attempts) < 3:
            raise ConnectionError("the chained call failed")
        world.store(event)

    world.publish("e-1")
    running = world.running(handle)
    running.until_handled(1)
    assert attempts == ["e-1"] * 3
    assert world.invoices() == ["e-1"]
    assert running.consumer.counts.retried == {"ConnectionError": 2}
    assert running.consumer.counts.refused == {}


def test_a_token_error_of_the_applications_own_is_no_verdict_on_the_event(world: World) -> None:
    attempts: list[str] = []

    def handle(event: Event) -> None:
        attempts.append(event.id)
        if len(attempts) == 1:
            raise WrongType("of some other token that the application looked at")

    world.publish("e-1")
    running = world.running(handle)
    running.until_handled(1)
    assert running.consumer.counts.refused == {}


@pytest.mark.parametrize("code", ["malformed_order", "ungültige_bestellung"])
def test_an_event_that_the_application_never_takes_is_put_aside_with_its_code(world: World, code: str) -> None:
    def handle(event: Event) -> None:
        raise MessageRefused(code, "no items")

    world.publish("e-1")
    world.running(handle).until_refused(1)
    assert world.dead_letters(1)[0][0] == code


def test_while_the_registry_is_away_nothing_is_refused_and_nothing_is_lost(world: World) -> None:
    world.publish("e-1")
    world.registry.down = True
    seen: list[str] = []
    running = world.running(lambda event: seen.append(event.id))
    eventually(lambda: running.consumer.counts.retried.get("trust_unavailable", 0) >= 2, "tried again")
    assert running.consumer.counts.refused == {}
    world.registry.down = False
    running.until_handled(1)
    assert seen == ["e-1"]


class Down:
    """An outlet whose broker is away, until it is not."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self.down = True

    def send(self, *arguments: object) -> None:
        if self.down:
            raise BrokerUnavailable("away")
        self._outlet.send(*arguments)  # type: ignore[arg-type]

    def flush(self, timeout: float) -> None:
        self._outlet.flush(timeout)

    def close(self) -> None:
        self._outlet.close()


def test_a_refusal_that_cannot_be_put_aside_is_tried_again(world: World) -> None:
    letters = Down(world.ends.outlet())
    consumer = world.consumer(dead_letters=letters)
    world.send(b"{}", {})
    world.publish("e-2")
    thread = threading.Thread(target=consumer.run, args=(lambda _: None,), kwargs={"wait": 0.05})
    thread.start()
    try:
        eventually(lambda: consumer.counts.retried.get("broker_unavailable", 0) >= 2, "tried again")
        letters.down = False
        eventually(lambda: consumer.counts.handled == 1, "the next one handled")
    finally:
        consumer.stop()
        thread.join()
    assert world.dead_letters(1)[0][0] == "missing_token"


# ---- each event once


def test_an_event_that_was_copied_counts_once(world: World) -> None:
    headers = {"authorization": world.signed("e-1", ORDER)}
    for _ in range(3):
        world.send(ORDER, headers)
    world.running(world.store).until_handled(3)
    assert world.invoices() == ["e-1"]


def test_a_consumer_that_ends_between_its_work_and_telling_so_makes_no_second_invoice(world: World) -> None:
    world.publish("e-1")
    consumer = world.consumer()

    def die(event: Event) -> None:
        world.store(event)
        raise KeyboardInterrupt  # the process is gone before the broker hears of it

    with pytest.raises(KeyboardInterrupt):
        consumer.run(die, wait=0.1)
    world.publish("e-2")
    world.running(world.store).until_handled(2)
    assert world.invoices() == ["e-1", "e-2"]


def test_two_members_share_the_work_through_rebalances(world: World) -> None:
    events = [f"e-{number:03d}" for number in range(60)]
    one = world.running(world.store)
    for event_id in events[:20]:
        world.publish(event_id)
    other = world.running(world.store)
    for event_id in events[20:40]:
        world.publish(event_id)
    one.stop()
    for event_id in events[40:]:
        world.publish(event_id)
    eventually(lambda: world.invoices() == events, f"all invoiced: {len(world.invoices())}")
    other.stop()
    assert world.invoices() == events


def test_what_is_public_has_a_name_at_the_top() -> None:
    assert peerseal.messaging.EventConsumer is not None
    assert peerseal.kafka.KafkaInlet is not None
