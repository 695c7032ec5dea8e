"""Foreign registries and services that lie: none of it is believed, and none of it reaches the own domain."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from peerseal import Verifier
from peerseal.errors import InvalidName, MalformedToken, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.federation import (
    FederatedDomain,
    Federation,
    FederationDocument,
)
from peerseal.protocol.documents.frame import Document, sign_document
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.peerseal.trust.test_witnessed import DELAY, NAMES, TWO_OF_THREE, serve_cosigned
from tests.support.two_domains import BILLING, QUIET, TwoDomains, code_of, two_domains

FEDERATION = "/v1/federation.jwt"
BILLING_KEYS = "/v1/services/billing/jwks.jwt"


@pytest.fixture
def domains(clock: Clock) -> Iterator[TwoDomains]:
    with two_domains(clock) as domains:
        yield domains


def jwt(jws: str) -> Answer:
    return Answer(200, jws.encode(), {"content-type": "application/jwt"})


def entry(registry: MemoryRegistry, domain: str = "partner.example") -> FederatedDomain:
    return FederatedDomain(domain, (registry.url,), registry.pin)


def own_domain_works(domains: TwoDomains) -> bool:
    own = domains.acme.identity("client", limits=QUIET)
    return domains.call(domains.verifier({"client": {"read"}}), own).id == "acme.internal/client"


# ---- a foreign registry that speaks for others


@pytest.mark.parametrize("claimed", ["acme.internal", "third.example"])
def test_a_foreign_registry_does_not_speak_for_another_domain(domains: TwoDomains, clock: Clock, claimed: str) -> None:
    """Its root key is the one in the document, and its own documents name another domain: ours, or a third."""
    with MemoryRegistry(claimed, clock=clock) as liar:
        service = liar.identity("billing", limits=QUIET)
        domains.acme.elsewhere[liar.url] = liar
        domains.acme.set_federation(Federation((entry(liar),)))
        verifier = domains.verifier({BILLING: {"read"}, f"{claimed}/billing": {"read"}})
        assert code_of(lambda: domains.call(verifier, service)) == "unknown_key"
        thumbprint = service.credentials.key_id.rpartition("/")[2]
        with pytest.raises(UnknownKey):
            domains.trust.key(f"{BILLING}/{thumbprint}")
    assert own_domain_works(domains)


def test_a_foreign_key_set_with_a_kid_of_the_own_domain_is_not_believed(domains: TwoDomains) -> None:
    """The partner's registry signs a set that gives a key of its own to the own domain's administration."""
    domains.acme.federate(domains.partner)
    honest = domains.partner.jwk_set("billing")
    [key] = honest.keys
    forged = make_kid("acme.internal/admin", key.public.thumbprint)
    lies: dict[str, Document] = {
        "subject": replace(honest, subject="acme.internal/admin", keys=(replace(key, kid=forged),)),
        "kid": replace(honest, keys=(replace(key, kid=forged),)),
        "issuer": replace(honest, issuer="acme.internal/registry"),
    }
    for lie in lies.values():
        domains.partner.answers[BILLING_KEYS] = jwt(domains.partner.sign(lie))
        trust = domains.acme.trust_store(limits=QUIET)
        for kid in (domains.billing.credentials.key_id, forged):
            with pytest.raises((TrustUnavailable, UnknownKey)):
                trust.key(kid)
    assert own_domain_works(domains)


def test_another_root_than_the_one_in_the_document_is_not_believed(domains: TwoDomains, clock: Clock) -> None:
    with MemoryRegistry("partner.example", clock=clock) as impostor:
        impostor.identity("billing", limits=QUIET)
        domains.acme.federate(domains.partner)
        domains.acme.elsewhere[domains.partner.url] = impostor
        assert code_of(lambda: domains.call(domains.verifier())) == "trust_unavailable"
    assert own_domain_works(domains)


def test_trust_does_not_pass_on_to_the_partners_of_a_partner(domains: TwoDomains, clock: Clock) -> None:
    with MemoryRegistry("third.example", clock=clock) as third:
        other = third.identity("billing", limits=QUIET)
        domains.partner.federate(third)
        domains.acme.federate(domains.partner)
        domains.acme.elsewhere[third.url] = third
        verifier = domains.verifier({BILLING: {"read"}, "third.example/billing": {"read"}})
        assert domains.call(verifier).id == BILLING
        third.calls.clear()
        assert code_of(lambda: domains.call(verifier, other)) == "unknown_key"
        assert third.calls.total() == 0
        assert domains.partner.calls[f"GET {FEDERATION}"] == 0


@pytest.mark.parametrize(
    "alike", ["partner.examp1e", "partner-example.com", "xn--partner-x9a.example", "partner.example.evil.example"]
)
def test_a_domain_of_a_similar_name_is_another_domain(domains: TwoDomains, clock: Clock, alike: str) -> None:
    with MemoryRegistry(alike, clock=clock) as liar:
        service = liar.identity("billing", limits=QUIET)
        domains.acme.federate(domains.partner)
        domains.acme.elsewhere[liar.url] = liar
        assert code_of(lambda: domains.call(domains.verifier(), service)) == "caller_not_allowed"
        named = domains.verifier({f"{alike}/billing": {"read"}})
        assert code_of(lambda: domains.call(named, service)) == "unknown_key"


@pytest.mark.parametrize("name", ["PARTNER.example", "partner.example.", "pаrtner.example", "partner.example/", ".."])
def test_names_in_another_spelling_are_refused(domains: TwoDomains, name: str) -> None:
    with pytest.raises(InvalidName):
        domains.verifier({f"{name}/billing": {"read"}})
    with pytest.raises(InvalidName):
        domains.acme.set_federation(Federation((replace(entry(domains.partner), domain=name),)))


# ---- federation documents that are not the registry's, or no longer


def test_the_own_domain_is_no_foreign_one(domains: TwoDomains, clock: Clock) -> None:
    with MemoryRegistry("acme.internal", clock=clock) as liar:
        service = liar.identity("billing", limits=QUIET)
        own = Federation((entry(liar, "acme.internal"), entry(domains.partner)))
        with pytest.raises(MalformedToken):
            domains.acme.set_federation(own)
        domains.acme.elsewhere[liar.url] = liar
        document = replace(domains.acme.federation_document(), federation=own)
        domains.acme.answers[FEDERATION] = jwt(domains.acme.sign(document))
        verifier = domains.verifier({BILLING: {"read"}, "billing": {"read"}})
        assert code_of(lambda: domains.call(verifier, service)) == "unknown_key"
        assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"
    assert own_domain_works(domains)


def forged(domains: TwoDomains, liar: MemoryRegistry) -> dict[str, FederationDocument]:
    """What a thief of the own registry's signing key, who has no key of the ledger, can sign at a proxy. Documents name
    the thief's registry ``liar``, or drop limits, each with another account of the entry that set this."""
    honest = domains.acme.federation_document()
    lie, said = replace(honest, federation=Federation((entry(liar),))), honest.entry
    lies = {"no entry": replace(lie, entry=None)}
    if said is not None:
        first = domains.acme.ledger.inclusion(0, honest.head)
        lies |= {
            "the honest entry": lie,
            "another entry": replace(lie, entry=replace(said, index=0, proof=first)),
            "no proof": replace(lie, entry=replace(said, proof=())),
            "no limits": replace(honest, federation=Federation((entry(domains.partner),))),
            "another operator": replace(honest, entry=replace(said, by={"operator": "o_thief"})),
            "another time": replace(honest, entry=replace(said, time=said.time - 1)),
            "a later entry": replace(lie, entry=replace(said, index=honest.head)),
        }
    return lies


@pytest.mark.parametrize("before", [False, True], ids=["without a federation", "with one"])
def test_a_stolen_signing_key_adds_no_foreign_domain(domains: TwoDomains, clock: Clock, before: bool) -> None:
    """The ledger has no entry that says so: the thief cannot sign its checkpoints, and monitors would see one."""
    if before:
        domains.acme.federate(domains.partner, scopes=["read"])
    with MemoryRegistry("partner.example", clock=clock) as liar:
        service = liar.identity("billing", limits=QUIET)
        domains.acme.elsewhere[liar.url] = liar
        for name, lie in forged(domains, liar).items():
            domains.acme.answers[FEDERATION] = jwt(domains.acme.sign(lie))
            trust = domains.acme.trust_store(limits=QUIET)
            for caller in (service, domains.billing):
                with pytest.raises(TrustUnavailable):
                    trust.key(caller.credentials.key_id)
            expected = "document_malformed" if name == "a later entry" else "document_not_in_ledger"
            assert set(trust.reader.refused) == {expected}, name
        assert f"GET {BILLING_KEYS}" not in liar.calls
    assert own_domain_works(domains)


def replayed_under(
    newest: FederationDocument, earlier: FederationDocument, registry: MemoryRegistry
) -> FederationDocument:
    """The federation of the earlier document, whose entry is in the ledger, under the newest checkpoint."""
    assert earlier.entry is not None
    proof = registry.ledger.inclusion(earlier.entry.index, newest.head)
    return replace(newest, federation=earlier.federation, entry=replace(earlier.entry, proof=proof))


def federation_that_ended(domains: TwoDomains, verifier: Verifier) -> FederationDocument:
    """The document of a federation that the verifier believed, and that was taken away since."""
    domains.acme.federate(domains.partner)
    domains.call(verifier)
    earlier = domains.acme.federation_document()
    domains.acme.end_federation("partner.example")
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "unknown_key"
    return earlier


@pytest.mark.parametrize("replayed", [True, False], ids=["the earlier one", "none"])
def test_an_earlier_entry_brings_no_federation_back(
    domains: TwoDomains, caplog: pytest.LogCaptureFixture, replayed: bool
) -> None:
    """The stolen key signs the federation of an earlier entry, which is in the ledger, under the newest checkpoint."""
    verifier = domains.verifier()
    earlier = federation_that_ended(domains, verifier)
    domains.acme.set_domain(minters=["edge"])
    newest = domains.acme.federation_document()
    lie = replace(newest, federation=Federation(), entry=None)
    if replayed:
        lie = replayed_under(newest, earlier, domains.acme)
    domains.acme.answers[FEDERATION] = jwt(domains.acme.sign(lie))
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"
    assert "document_rolled_back: set by entry" in caplog.text


def test_an_earlier_entry_brings_no_federation_back_after_a_restart(domains: TwoDomains, tmp_path: Path) -> None:
    """The host remembers the entry, also where its copy of the document is lost."""
    domains.acme.federate(domains.partner)
    earlier = domains.acme.federation_document()
    domains.acme.end_federation("partner.example")
    kid = domains.billing.credentials.key_id
    with pytest.raises(UnknownKey):
        domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    newest = domains.acme.federation_document()
    lie = replayed_under(newest, earlier, domains.acme)
    domains.acme.answers[FEDERATION] = jwt(domains.acme.sign(lie))
    [copy] = tmp_path.rglob("federation.jwt")
    copy.unlink()
    with pytest.raises(TrustUnavailable, match="document_rolled_back"):
        domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    assert domains.acme.trust_store(limits=QUIET).key(kid).kid == kid, "one that never saw the newer is deceived"


def test_an_earlier_entry_brings_no_federation_back_after_a_signing_key_was_dropped(
    domains: TwoDomains, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What a dropped key signed is doubted. That the ledger has the newer entry is not."""
    verifier = domains.verifier()
    earlier = federation_that_ended(domains, verifier)
    domains.acme.roll_signing_key()
    newest = domains.acme.federation_document()
    lie = replayed_under(newest, earlier, domains.acme)
    domains.acme.answers[FEDERATION] = jwt(domains.acme.sign(lie))
    clock.advance(60.0)  # the list of the registry's keys is asked for again
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"
    assert "document_rolled_back: set by entry" in caplog.text


def test_only_the_own_registry_says_who_is_believed(domains: TwoDomains) -> None:
    """Not another signer, not a document of another kind, not one about another domain."""
    federation = Federation((entry(domains.partner),))
    domains.acme.elsewhere[domains.partner.url] = domains.partner
    honest = replace(domains.acme.federation_document(), federation=federation)
    stranger = KeyPair.generate("ES256")
    lies = {
        "by a stranger": sign_document(honest, stranger),
        "by the root": sign_document(honest, domains.acme.root),
        "by the partner": domains.partner.sign(replace(domains.partner.federation_document(), federation=federation)),
        "about another": domains.acme.sign(replace(honest, subject="partner.example")),
        "settings": domains.acme.sign(domains.acme.domain_document()),
        "nothing": "",
        "no token": "a.b.c",
    }
    for name, lie in lies.items():
        domains.acme.answers[FEDERATION] = jwt(lie)
        verifier = Verifier(
            domains.acme.trust_store(limits=QUIET), audience="shop", allow={BILLING: {"read"}}, clock=domains.clock
        )
        assert code_of(lambda verifier=verifier: domains.call(verifier)) == "trust_unavailable", name  # type: ignore[misc]
    assert own_domain_works(domains)


def test_an_older_document_does_not_bring_a_federation_back(domains: TwoDomains) -> None:
    """A mirror or a cache that goes on with the document from before."""
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    before = domains.acme.sign(domains.acme.federation_document())
    domains.acme.end_federation("partner.example")
    domains.acme.answers[FEDERATION] = jwt(before)
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"
    del domains.acme.answers[FEDERATION]
    domains.clock.advance(QUIET.cooldown + 1)
    assert code_of(lambda: domains.call(verifier)) == "unknown_key"
    domains.acme.answers[FEDERATION] = jwt(before)
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "unknown_key"


def test_a_revoked_foreign_key_does_not_come_back_with_an_older_key_set(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    before = domains.partner.sign(domains.partner.jwk_set("billing"))
    domains.partner.revoke(domains.billing.credentials.key_id)
    domains.partner.answers[BILLING_KEYS] = jwt(before)
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) in ("revoked_key", "trust_unavailable")


# ---- requests


def test_a_foreign_service_does_not_speak_for_another_one(domains: TwoDomains) -> None:
    """Neither for another service of its domain, nor for one of the own domain with its name."""
    domains.partner.identity("invoices", limits=QUIET)
    domains.acme.identity("billing", limits=QUIET)
    domains.acme.federate(domains.partner)
    verifier = domains.verifier({"billing": {"read"}, "partner.example/invoices": {"read"}})
    assert code_of(lambda: domains.call(verifier)) == "caller_not_allowed"
    thumbprint = domains.billing.credentials.key_id.rpartition("/")[2]
    for owner in ("acme.internal/billing", "partner.example/invoices"):
        with pytest.raises((UnknownKey, TrustUnavailable)):
            domains.trust.key(f"{owner}/{thumbprint}")


def test_a_foreign_request_counts_once(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    token = domains.billing.sign_request("acme.internal/shop", method="GET", target="/")
    assert verifier.verify(token, method="GET", target="/").id == BILLING
    assert code_of(lambda: verifier.verify(token, method="GET", target="/")) == "replayed"
    other = domains.billing.sign_request("shop", method="GET", target="/")
    assert code_of(lambda: verifier.verify(other, method="GET", target="/")) == "wrong_audience"


# ---- with witnesses


@pytest.mark.parametrize("added", ["other.example", "partner.example"])
def test_a_federation_that_no_witness_saw_adds_trust_for_the_delay_alone(domains: TwoDomains, added: str) -> None:
    """The signing key and a key of the ledger are stolen: then the entry is in a history that witnesses do not see."""
    acme, clock = domains.acme, domains.clock
    with MemoryRegistry(added, clock=clock) as liar:
        service = liar.identity("billing", limits=QUIET)
        acme.federate(domains.partner)
        serve_cosigned(acme, *NAMES)
        trust = acme.trust_store(limits=QUIET, **TWO_OF_THREE)
        allow: dict[str, set[str]] = {BILLING: {"read"}, f"{added}/billing": {"read"}}
        verifier = Verifier(trust, audience="shop", allow=allow, clock=clock)
        assert domains.call(verifier).id == BILLING
        acme.elsewhere[liar.url] = liar
        acme.set_federation(Federation((*acme.federation_document().federation.domains, entry(liar, added))))
        trust.refresh()
        assert domains.call(verifier, service).id == f"{added}/billing", "a slow witness stops nothing"
        clock.advance(DELAY)
        trust.refresh()
        assert code_of(lambda: domains.call(verifier, service)) == "trust_unavailable"
        assert code_of(lambda: domains.call(verifier)) == "trust_unavailable", "the one that was cosigned was replaced"
        serve_cosigned(acme, *NAMES)
        clock.advance(DELAY)
        assert domains.call(verifier).id == BILLING


def test_a_cosigned_federation_goes_on_after_a_change_that_no_witness_saw(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    serve_cosigned(domains.acme, *NAMES)
    trust = domains.acme.trust_store(limits=QUIET, **TWO_OF_THREE)
    verifier = Verifier(trust, audience="shop", allow={BILLING: {"read"}}, clock=domains.clock)
    assert domains.call(verifier).id == BILLING
    domains.acme.set_domain(minters=["edge"])
    domains.clock.advance(DELAY)
    trust.refresh()
    domains.clock.advance(DELAY)
    assert domains.call(verifier).id == BILLING
    again = domains.acme.trust_store(limits=QUIET, **TWO_OF_THREE)
    verifier = Verifier(again, audience="shop", allow={BILLING: {"read"}}, clock=domains.clock)
    assert domains.call(verifier).id == BILLING, "after a restart, too"


@pytest.mark.parametrize("left", [True, False], ids=["another one stays", "none stays"])
def test_a_removal_that_no_witness_saw_takes_trust_away_at_once(domains: TwoDomains, clock: Clock, left: bool) -> None:
    with MemoryRegistry("third.example", clock=clock) as third:
        if left:
            domains.acme.federate(third)
        domains.acme.federate(domains.partner)
        serve_cosigned(domains.acme, *NAMES)
        trust = domains.acme.trust_store(limits=QUIET, **TWO_OF_THREE)
        verifier = Verifier(trust, audience="shop", allow={BILLING: {"read"}}, clock=clock)
        assert domains.call(verifier).id == BILLING
        domains.acme.admit("late", KeyPair.generate("ES256").public, {"join_token": "t"}, "p")
        trust.refresh()
        clock.advance(DELAY)
        domains.acme.end_federation("partner.example")
        trust.refresh()
        assert code_of(lambda: domains.call(verifier)) == ("trust_unavailable" if left else "unknown_key")
