"""A login token that says nothing of invoices becomes an invoice only where an operator derives the scope."""

import pytest

from peerseal import User
from tests.examples.test_users import token_of_another_sort
from tests.examples.world import ISSUER_URL, PEN, Person, World, ask
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


CUSTOMER = User("ada", ISSUER_URL, frozenset(("openid", "profile", "orders:write")), "j-1", 2**40, {})


@pytest.mark.parametrize("scope", ["", "openid profile orders", "orders:read", "orders", "orders:writer", "derived"])
def test_nothing_is_derived_from_another_scope_than_the_one_that_is_named(
    world: World, ada: Person, scope: str
) -> None:
    lay_down(world, DERIVED)
    ada.headers = {"Authorization": f"Bearer {token_of_another_sort(world, ada, scope=scope)}"}
    answer = ada.post("/orders", {"items": [PEN]})
    assert (answer.status_code, answer.get_json()["code"]) == (403, "insufficient_scope")


def test_the_derived_scope_opens_the_case_and_makes_the_invoice_of_its_user(served: World) -> None:
    lay_down(served, DERIVED)
    derived = served.transaction_of_event("e-1", user=CUSTOMER, scope="orders:write")
    assert ask(served.resource_app, served.invoicing, "/cases/t-1", derived).status_code == 200
    assert ask(served.resource_app, served.invoicing, "/invoices", derived, {"amount": 500}).status_code == 201
    assert served.invoiced("ada") == [500]


WIDER = [
    ("invoicing", "resource-service", "GET", "/invoices", "insufficient_scope"),
    ("invoicing", "resource-service", "GET", "/profiles/1", "insufficient_scope"),
    ("invoicing", "resource-service", "GET", "/cases", "insufficient_scope"),
    ("client-service", "resource-service", "GET", "/invoices", "insufficient_scope"),
    ("client-service", "resource-service", "GET", "/profiles/1", "insufficient_scope"),
    ("client-service", "resource-service", "GET", "/cases/t-1", "insufficient_scope"),
    ("client-service", "resource-service", "POST", "/invoices", "insufficient_scope"),
    ("shop", "resource-service", "POST", "/invoices", "caller_not_allowed"),
    ("resource-service", "case-service", "GET", "/cases", "insufficient_scope"),
    ("client-service", "case-service", "PUT", "/cases/t-1", "caller_not_allowed"),
    ("invoicing", "case-service", "PUT", "/cases/t-1", "caller_not_allowed"),
]


@pytest.mark.parametrize(("caller", "service", "method", "path", "code"), WIDER)
def test_the_derived_scope_is_good_for_nothing_wider(
    world: World, caller: str, service: str, method: str, path: str, code: str
) -> None:
    lay_down(world, DERIVED)
    derived = world.transaction_of_event("e-1", user=CUSTOMER, scope="orders:write")
    app = {"resource-service": world.resource_app, "case-service": world.cases_app}[service]
    body = {"amount": 500} if method == "POST" else None
    answer = ask(app, world.registry.identity(caller), path, derived, body, method=method, audience=service)
    assert (answer.status_code, answer.get_json()["code"]) == (403, code)
    assert world.invoiced("ada") == []
