"""Transactions and events between two trust domains: none crosses unless the federation says so."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerseal import Event, EventVerifier, Identity, Transaction, User, carrying
from peerseal.errors import BadTransactionToken, CallerNotAllowed, UnsignableRequest
from peerseal.identity.signing import request_token
from peerseal.protocol.documents.federation import FederatedDomain
from peerseal.testing import Clock, MemoryRegistry
from peerseal.verify.border import crossing_scopes, event_scopes, scopes_of_foreigner
from peerseal.verify.request import Peer
from tests.support.keys import signing_key
from tests.support.two_domains import BILLING, QUIET, SHOP, TwoDomains, code_of, two_domains

PAYLOAD = b'{"eventID":"e-1"}'
SENT: dict[str, Any] = {"topic": "OrderCreated", "audience": "jobs.example.com", "event_id": "e-1"}
READ = {"read", "write"}


@pytest.fixture
def domains(clock: Clock) -> Iterator[TwoDomains]:
    with two_domains(clock) as domains:
        domains.acme.set_domain(minters=["shop", "edge"])
        domains.partner.set_domain(minters=["billing"])
        yield domains


def minted(by: Identity) -> Transaction:
    user = User("ada", "https://login.example.com", frozenset(READ), "u", 2**40, {"iss": "https://login.example.com"})
    return by.mint_transaction(user, scope=READ)


def carried(transaction: Transaction) -> Mapping[str, str]:
    return {"txn-token": transaction.carry()}


def bring(domains: TwoDomains, transaction: Transaction, by: Identity | None = None) -> Peer:
    """A call to the shop, with that transaction."""
    verifier = domains.verifier({BILLING: READ, "client": READ, "third.example/billing": READ})
    return domains.call(verifier, by, headers=carried(transaction))


# ---- transactions that come


def test_a_foreign_transaction_crosses_only_where_the_federation_says_so(domains: TwoDomains) -> None:
    domains.partner.federate(domains.acme, transactions=True, scopes=["read"])
    domains.acme.federate(domains.partner)
    assert code_of(lambda: bring(domains, minted(domains.billing))) == "bad_transaction_token"
    domains.federate(transactions=True, scopes=["read", "pay"])
    peer = bring(domains, minted(domains.billing))
    assert peer.transaction is not None
    assert peer.transaction.minter == BILLING
    assert peer.scopes == peer.transaction.scopes == {"read"}


def test_a_federation_that_names_no_scopes_lets_none_of_a_transaction_cross(domains: TwoDomains) -> None:
    domains.partner.federate(domains.acme, transactions=True)
    domains.acme.federate(domains.partner, transactions=True)
    assert bring(domains, minted(domains.billing)).scopes == frozenset()


def test_an_own_service_may_pass_a_foreign_transaction_on(domains: TwoDomains) -> None:
    client = domains.acme.identity("client", limits=QUIET)
    transaction = minted(domains.billing)
    domains.acme.federate(domains.partner)
    assert code_of(lambda: bring(domains, transaction, client)) == "bad_transaction_token"
    domains.federate(transactions=True, scopes=["read"])
    assert bring(domains, transaction, client).scopes == {"read"}


def test_a_foreign_service_that_is_no_minter_of_its_domain_mints_nothing(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner, transactions=True, scopes=["read"])
    domains.partner.federate(domains.acme, transactions=True, scopes=["read"])
    transaction = minted(domains.billing)
    token = transaction.carry()
    domains.partner.set_domain(minters=["edge"])
    domains.trust.refresh()
    client = domains.acme.identity("client", limits=QUIET)
    verifier = domains.verifier({"client": READ})
    assert code_of(lambda: domains.call(verifier, client, headers={"txn-token": token})) == "bad_transaction_token"


def test_a_minter_that_the_federation_does_not_name_mints_nothing(domains: TwoDomains) -> None:
    client = domains.acme.identity("client", limits=QUIET)
    transaction = minted(domains.billing)
    domains.acme.federate(domains.partner, transactions=True, scopes=["read"], services=["other"])
    assert code_of(lambda: bring(domains, transaction, client)) == "bad_transaction_token"


def test_a_foreign_service_is_no_minter_of_the_own_domain_whatever_its_settings_say(domains: TwoDomains) -> None:
    """A token of the partner's for the own domain: the partner mints for users of its own domain only."""
    domains.partner.federate(domains.acme, transactions=True, scopes=["read"])
    domains.acme.federate(domains.partner, transactions=True, scopes=["read"])
    domains.acme.set_domain(minters=["shop", BILLING])
    domains.trust.refresh()
    assert code_of(lambda: bring(domains, minted(domains.billing))) == "bad_transaction_token"


def test_an_own_transaction_that_a_foreign_service_brings_back_crosses_too(domains: TwoDomains) -> None:
    transaction = minted(domains.shop)
    domains.acme.federate(domains.partner)
    domains.partner.federate(domains.acme)
    assert code_of(lambda: bring(domains, transaction)) == "bad_transaction_token"
    domains.federate(transactions=True, scopes=["read"])
    assert bring(domains, transaction).scopes == {"read"}


def test_a_transaction_of_a_third_domain_does_not_come_through_the_second(
    domains: TwoDomains, clock: Clock, tmp_path: Path
) -> None:
    with MemoryRegistry("third.example", clock=clock) as third:
        other = third.identity("billing", limits=QUIET)
        third.set_domain(minters=["billing"])
        third.federate(domains.acme, transactions=True, scopes=["read"])
        domains.acme.federate(domains.partner, transactions=True, scopes=["read"])
        domains.acme.federate(third, transactions=True, scopes=["read"])
        transaction = minted(other)
        assert bring(domains, transaction, other).scopes == {"read"}
        between = domains.partner.identity("billing", limits=QUIET, key_dir=tmp_path)
        request: dict[str, Any] = {"method": "GET", "target": "/", "headers": carried(transaction)}
        with pytest.raises(UnsignableRequest):
            between.sign_request(SHOP, **request)
        key = signing_key(tmp_path, "billing", clock())  # of a partner that does not ask its SDK
        forged = request_token(key, SHOP, **request, now=clock())
        assert code_of(lambda: domains.verifier().verify(forged, **request)) == "bad_transaction_token"


def test_calls_without_a_transaction_need_no_permission_for_transactions(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner, scopes=["read"])
    assert domains.call(domains.verifier()).transaction is None


# ---- transactions that leave


def test_an_own_transaction_leaves_only_where_the_federation_says_so(domains: TwoDomains) -> None:
    transaction = minted(domains.shop)
    request: dict[str, Any] = {"method": "GET", "target": "/", "headers": carried(transaction)}
    with pytest.raises(UnsignableRequest, match=r"may not cross to partner\.example"):
        domains.shop.sign_request(BILLING, **request)
    domains.acme.federate(domains.partner)
    with pytest.raises(UnsignableRequest, match=r"may not cross to partner\.example"):
        domains.shop.sign_request(BILLING, **request)
    domains.federate(transactions=True, scopes=["read"])
    assert domains.shop.sign_request(BILLING, **request)
    assert domains.shop.sign_request("other", **request)
    assert domains.shop.sign_request("acme.internal/other", **request)


def test_a_session_to_a_foreign_service_names_it_and_leaks_no_transaction(domains: TwoDomains) -> None:
    session = domains.shop.session(BILLING, "http://127.0.0.1:9")
    with carrying(minted(domains.shop)), pytest.raises(UnsignableRequest, match=r"carrying\(None\)"):
        session.get("/invoices")


# ---- events


def consume(domains: TwoDomains, headers: Mapping[str, str], allow: Mapping[str, set[str]] | None = None) -> Event:
    verifier = EventVerifier(
        domains.trust,
        audience="jobs.example.com",
        allow={BILLING: {"trigger_invoicing"}} if allow is None else allow,
        max_age=timedelta(days=7),
        clock=domains.clock,
    )
    return verifier.verify(PAYLOAD, headers, topic="OrderCreated")


def published(domains: TwoDomains) -> Mapping[str, str]:
    return domains.billing.sign_event(PAYLOAD, **SENT, scope="trigger_invoicing", transaction_id="t-1")


def test_a_foreign_event_crosses_only_where_the_federation_says_so(domains: TwoDomains) -> None:
    headers = published(domains)
    domains.acme.federate(domains.partner)
    assert code_of(lambda: consume(domains, headers)) == "caller_not_allowed"
    domains.federate(transactions=True)
    assert code_of(lambda: consume(domains, headers)) == "insufficient_scope"
    domains.federate(transactions=True, scopes=["read"])
    assert code_of(lambda: consume(domains, headers)) == "insufficient_scope"
    domains.federate(transactions=True, scopes=["trigger_invoicing"])
    event = consume(domains, headers)
    assert (event.issuer, event.publisher) == (BILLING, BILLING)


def test_any_publisher_of_the_domain_is_no_foreign_one(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner, transactions=True, scopes=["trigger_invoicing"])
    headers = published(domains)
    assert code_of(lambda: consume(domains, headers, {"*": {"trigger_invoicing"}})) == "caller_not_allowed"


def test_a_foreign_event_is_good_after_the_partner_rotated_its_key_and_not_after_it_revoked_it(
    domains: TwoDomains,
) -> None:
    domains.acme.federate(domains.partner, transactions=True, scopes=["trigger_invoicing"])
    headers, kid = published(domains), domains.billing.credentials.key_id
    domains.partner.retire(kid)
    domains.clock.advance(3600)
    domains.trust.refresh()
    assert consume(domains, headers).issuer == BILLING
    domains.partner.revoke(kid)
    domains.trust.refresh()
    assert code_of(lambda: consume(domains, headers)) == "revoked_key"


def test_an_event_of_a_federation_that_was_taken_away_is_refused(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner, transactions=True, scopes=["trigger_invoicing"])
    headers = published(domains)
    consume(domains, headers)
    domains.acme.end_federation("partner.example")
    domains.trust.refresh()
    assert code_of(lambda: consume(domains, headers)) == "unknown_key"


# ---- for all federations

SCOPES = st.frozensets(st.sampled_from(["read", "write", "pay"]))
ENTRIES = st.builds(
    FederatedDomain,
    st.sampled_from(["partner.example", "third.example"]),
    st.just(("https://registry.example",)),
    st.just("A" * 43),
    scopes=st.none() | SCOPES,
    transactions=st.booleans(),
)


@given(SCOPES, ENTRIES)
def test_a_federation_never_widens_what_code_and_policies_allow(
    allowed: frozenset[str], entry: FederatedDomain
) -> None:
    found = scopes_of_foreigner(allowed, entry)
    assert found == allowed & (allowed if entry.scopes is None else entry.scopes)
    try:
        of_event = event_scopes(allowed, entry)
    except CallerNotAllowed:
        assert not entry.transactions
    else:
        assert entry.transactions
        assert of_event == allowed & (entry.scopes or frozenset())


@given(st.none() | ENTRIES, st.none() | ENTRIES)
def test_a_transaction_crosses_only_where_an_entry_of_its_own_domain_says_so(
    minted: FederatedDomain | None, carried: FederatedDomain | None
) -> None:
    foreign = [entry for entry in (minted, carried) if entry is not None]
    try:
        limit = crossing_scopes(minted, carried)
    except BadTransactionToken:
        assert len({entry.domain for entry in foreign}) > 1 or not foreign[0].transactions
    else:
        assert len({entry.domain for entry in foreign}) <= 1
        assert (limit is None) is (not foreign)
        assert limit is None or (foreign[0].transactions and limit == (foreign[0].scopes or frozenset()))
