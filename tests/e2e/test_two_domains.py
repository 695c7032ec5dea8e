"""Two trust domains with a real registry each: calls, revocation, outage, a hang, a new root, and the end of trust."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import requests

import peerseal
from peerseal.errors import PeersealError
from tests.support.served_domains import LIMITS, Domain, domains
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e]

SHOP, BILLING = "acme.internal/shop", "partner.example/billing"


@dataclass
class World:
    """The shop of acme with its URL, a client of the same domain, and the partner's billing with its URL."""

    acme: Domain
    partner: Domain
    opened: ExitStack
    shop: peerseal.Identity
    shop_url: str
    client: peerseal.Identity
    billing: peerseal.Identity
    billing_url: str

    def call(self, by: peerseal.Identity | None = None) -> requests.Response:
        """A call to the shop, without another attempt: by the partner's billing, where no other is given."""
        token = (by or self.billing).sign_request(SHOP, method="GET", target="/who")
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{self.shop_url}/who", headers=headers, timeout=60)

    def code(self, by: peerseal.Identity | None = None) -> str:
        """The code of the refusal; empty for a call that is answered."""
        answer = self.call(by)
        return "" if answer.status_code == 200 else str(answer.json()["code"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with domains(tmp_path) as (acme, partner, opened):
        shop, client, billing = acme.identity("shop"), acme.identity("client"), partner.identity("billing")
        shop_url = acme.serve(shop, allow={BILLING: {"read", "write"}, "client": {"read"}})
        billing_url = partner.serve(billing, allow={SHOP: {"read"}})
        yield World(acme, partner, opened, shop, shop_url, client, billing, billing_url)


def is_refused_with(world: World, code: str) -> Callable[[], bool]:
    return lambda: world.code() == code


def test_services_of_two_domains_call_each_other_and_prove_their_answers(world: World) -> None:
    assert world.code() == "unknown_key"
    world.acme.federate(world.partner, "--service", "billing", "--scopes", "read")
    world.partner.federate(world.acme)
    until(lambda: world.code() == "")
    assert world.call().json() == {"id": BILLING, "scopes": ["read"]}
    with world.shop.session(BILLING, world.billing_url, require_signed_response=True) as session:
        assert session.get("/who").json()["id"] == SHOP


def test_a_revoked_foreign_key_and_a_federation_that_was_taken_away_are_refused(world: World) -> None:
    world.acme.federate(world.partner)
    assert world.code() == ""
    second = world.partner.identity("billing")
    world.partner.operate("revoke", world.billing.credentials.key_id)
    until(is_refused_with(world, "revoked_key"))
    assert world.code(second) == ""
    world.acme.operate("federation", "remove", "partner.example")
    until(lambda: world.code(second) == "unknown_key")
    assert world.code(world.client) == ""


def test_an_outage_of_the_partner_is_no_outage_here(world: World) -> None:
    world.acme.federate(world.partner)
    assert world.code() == ""
    newcomer = world.partner.identity("billing")
    world.partner.down = True
    assert world.code() == ""
    assert world.code(newcomer) == "trust_unavailable"
    assert world.code(world.client) == ""
    world.partner.down = False
    until(lambda: world.code(newcomer) == "")


def test_while_the_partner_hangs_the_own_domain_is_served(world: World) -> None:
    """The first call of a client of the own domain too, whose key is fetched while a foreign call waits."""
    world.acme.federate(world.partner)
    world.partner.answers.clear()
    asked, codes = world.partner.asked, list[str]()
    waiting = threading.Thread(target=lambda: codes.append(world.code()))
    waiting.start()
    until(lambda: world.partner.asked > asked)
    assert world.code(world.client) == ""
    assert codes == [], "the own domain was served before the foreign call had an answer"
    world.partner.answers.set()
    waiting.join()
    assert codes == [""], "the partner answered in time"


def test_the_partner_replaces_its_root(world: World, tmp_path: Path) -> None:
    world.acme.federate(world.partner)
    assert world.code() == ""
    successor = Domain("partner.example", tmp_path / "successor", world.opened)
    moved = successor.identity("billing")
    assert world.code(moved) in ("unknown_key", "trust_unavailable")
    world.acme.federate(successor, "--overlap")
    until(lambda: (world.code(), world.code(moved)) == ("", ""))
    world.acme.operate("federation", "remove", "partner.example", "--root", world.partner.pin)
    until(is_refused_with(world, "unknown_key"))
    assert world.code(moved) == ""


def test_an_event_crosses_only_with_the_scopes_that_the_federation_names(world: World) -> None:
    payload, topic = b"{}", "OrderCreated"
    headers = world.billing.sign_event(
        payload, topic=topic, audience="jobs.example.com", scope="read", event_id="e-1", transaction_id="t-1"
    )
    verifier = peerseal.EventVerifier(
        world.shop.trust, audience="jobs.example.com", allow={BILLING: {"read"}}, max_age=timedelta(days=1)
    )

    def outcome() -> str:
        try:
            return verifier.verify(payload, headers, topic=topic).issuer
        except PeersealError as error:
            return error.code

    world.acme.federate(world.partner)
    until(lambda: outcome() == "caller_not_allowed")
    world.acme.federate(world.partner, "--transactions", "--scopes", "read")
    until(lambda: outcome() == BILLING)
    world.acme.federate(world.partner, "--transactions", "--scopes", "write")
    until(lambda: outcome() == "insufficient_scope")


def test_a_restart_of_the_shop_while_the_partner_is_down_believes_what_was_on_disk(
    world: World, tmp_path: Path
) -> None:
    world.acme.federate(world.partner)
    kid, folder = world.billing.credentials.key_id, tmp_path / "cache"

    def trust() -> peerseal.TrustStore:
        store = peerseal.TrustStore(world.acme.url, pin=world.acme.pin, limits=LIMITS, cache_dir=folder)
        world.opened.callback(store.stop)
        return store

    assert trust().key(kid).service_id == BILLING
    world.partner.down = True
    assert trust().key(kid).service_id == BILLING
    world.acme.operate("federation", "remove", "partner.example")
    with pytest.raises(peerseal.errors.UnknownKey):
        trust().key(kid)
