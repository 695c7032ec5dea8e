"""A login token that says nothing of invoices becomes an invoice only where an operator derives the scope."""

import pytest

from tests.examples.test_users import token_of_another_sort
from tests.examples.world import PEN, Person, World
from tests.support.brokers import eventually

pytestmark = pytest.mark.slow

MINTERS = ["client-service", "invoicing"]
DERIVED: dict[str, object] = {"minter": "client-service", "from": "orders:write", "to": ["trigger_invoicing"]}


@pytest.fixture
def ada(world: World) -> Person:
    """Her token allows orders, and no invoice."""
    person = world.person().log_in("ada")
    scope = "openid profile orders:write orders:read invoices:read"
    person.headers = {"Authorization": f"Bearer {token_of_another_sort(world, person, scope=scope)}"}
    return person


def lay_down(world: World, *derived_scopes: dict[str, object]) -> None:
    world.registry.set_domain(minters=MINTERS, issuers=[world.issuer], derived_scopes=derived_scopes)
    for identity in (world.client, world.invoicing, world.resource):
        identity.trust.refresh()


def test_a_login_token_becomes_an_invoice(served: World, ada: Person) -> None:
    lay_down(served, DERIVED)
    with served.consuming():
        placed = ada.order(PEN)
        eventually(lambda: ada.get("/invoices").get_json()["invoices"] != [], "there is an invoice")
    (invoice,) = ada.get("/invoices").get_json()["invoices"]
    assert (invoice["transactionID"], invoice["userID"]) == (placed["transactionID"], "ada")


def test_without_the_derivation_the_order_is_refused_and_an_event_on_its_way_is_put_aside(
    served: World, ada: Person
) -> None:
    refused = ada.post("/orders", {"items": [PEN]})
    assert (refused.status_code, refused.get_json()["code"]) == (403, "insufficient_scope")
    lay_down(served, DERIVED)
    ada.order(PEN)
    served.messages(1)
    lay_down(served)
    with served.consuming():
        assert served.refusals(1) == ["insufficient_scope"]
    assert served.invoiced("ada") == []
