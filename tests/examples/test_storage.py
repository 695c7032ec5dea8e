"""The examples' databases, on SQLite and on PostgreSQL: created by the first who comes, and never in part."""

from concurrent.futures import ThreadPoolExecutor

import client_service.storage
import resource_service.database
from peerseal import User
from peerseal.outbox import Outbox
from resource_service.database import Invoices
from tests.examples.world import ISSUER_URL, PEN, World

ADA = User("ada", ISSUER_URL, frozenset(("trigger_invoicing",)), "j-1", 2**40, {})


def test_workers_that_begin_at_once_make_the_tables_once(registry_database: str, world: World) -> None:
    def begin(_: int) -> None:
        client_service.storage.open_database(registry_database, world.folder)
        resource_service.database.open_database(registry_database)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(begin, range(8))) == [None] * 8


def test_orders_are_kept_with_their_events(registry_database: str, world: World) -> None:
    ada = world.person(database_url=registry_database, broker_url=None).log_in("ada")
    placed = ada.order(PEN)
    database = client_service.storage.open_database(registry_database, world.folder)
    assert Outbox(database, client_service.storage.OUTBOX).status().waiting == 1
    assert ada.get("/orders").get_json()["orders"] == [placed]
    database.dispose()


def test_of_many_calls_at_once_one_invoices_an_event(registry_database: str, world: World) -> None:
    database = resource_service.database.open_database(registry_database)
    invoices = Invoices(database, world.registry.clock)
    transaction = world.transaction_of_event("e-1", user=ADA)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: invoices.add(transaction, "e-1", 895), range(12)))
    assert sorted(is_new for _, is_new in made) == [False] * 11 + [True]
    assert len({invoice.id for invoice, _ in made}) == 1
    assert [invoice.amount for invoice in invoices.of(ISSUER_URL, "ada")] == [895]
    database.dispose()
