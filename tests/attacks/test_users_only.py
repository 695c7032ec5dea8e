"""What is done for users only is done for no service: not even for one that a transaction goes along with."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import flask
import pytest

from peerseal import EventVerifier, Identity, Transaction, User, carrying
from peerseal.asgi import ANY_ALLOWED, Need
from peerseal.flask import PeerAuth
from peerseal.testing import MemoryRegistry
from tests.support import asgi
from tests.support.asgi import signed

Call = Callable[[str, Transaction | None], tuple[int, str]]
"""Calls a path of ``callee`` in a transaction: status and code."""


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["client"])
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    """Consumes events, mints for them, and calls on."""
    return registry.identity("client")


@pytest.fixture(params=["flask", "asgi"])
def call(request: pytest.FixtureRequest, registry: MemoryRegistry, client: Identity) -> Call:
    by_asgi = asgi.Callee(registry, needs={"/mine": Need("read", transaction=True), "/": ANY_ALLOWED})
    app = flask.Flask(__name__)
    auth = PeerAuth(app, registry.identity("callee"), allow={"client": {"read"}})
    app.add_url_rule("/mine", view_func=auth.require(scope="read", transaction=True)(lambda: {}), endpoint="mine")
    app.add_url_rule("/x", view_func=lambda: {}, endpoint="x")

    def call(path: str, transaction: Transaction | None) -> tuple[int, str]:
        txn: dict[str, Any] = {} if transaction is None else {"txn_token": transaction.carry()}
        headers = signed(client, target=path, **txn)
        if request.param == "asgi":
            answer = by_asgi.call(target=path, headers=headers)
            return answer.status, answer.json.get("code", "")
        response = app.test_client().get(path, headers=headers)
        return response.status_code, response.get_json(force=True).get("code", "")

    return call


def for_event_of(publisher: Identity, client: Identity, subject: str | None = None) -> Transaction:
    """The transaction of an event that ``publisher`` publishes."""
    headers = publisher.sign_event(
        b"{}", topic="T", audience="jobs", scope="read", event_id="e", transaction_id="t", subject=subject
    )
    allow = {"publisher": {"read"}, "client": {"read"}}
    verifier = EventVerifier(client.trust, audience="jobs", allow=allow, max_age=timedelta(days=1), clock=client.clock)
    transaction = client.transaction_for_event(verifier.verify(b"{}", headers, topic="T"))
    assert transaction is not None
    return transaction


def test_a_user_must_stand_behind_the_call(call: Call, client: Identity) -> None:
    ada = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    assert call("/mine", None) == (401, "bad_transaction_token")
    assert call("/mine", client.mint_transaction(ada, scope=["read"])) == (200, "")


def test_behind_an_event_of_a_publishers_own_stands_no_user(
    call: Call, registry: MemoryRegistry, client: Identity
) -> None:
    publisher = registry.identity("publisher")
    own = for_event_of(publisher, client)
    assert own.user == "test.internal/publisher"
    assert call("/mine", own) == (401, "bad_transaction_token")
    assert call("/x", own) == (200, ""), "where no user is needed it may go along"
    assert call("/mine", for_event_of(publisher, client, subject="ada")) == (200, "")


def test_nor_behind_what_its_consumer_publishes_in_turn(call: Call, registry: MemoryRegistry, client: Identity) -> None:
    with carrying(for_event_of(registry.identity("publisher"), client)):
        followed = for_event_of(client, client)
    assert (followed.user, followed.workload) == ("test.internal/publisher", "test.internal/client")
    assert call("/mine", followed) == (401, "bad_transaction_token")


@pytest.mark.parametrize("name", ["test.internal/client", "test.internal/ada"])
def test_a_user_who_was_authenticated_is_one_whatever_the_name(call: Call, client: Identity, name: str) -> None:
    named_so = User(name, "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    assert call("/mine", client.mint_transaction(named_so, scope=["read"])) == (200, "")
