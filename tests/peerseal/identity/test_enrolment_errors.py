"""An enrolment that the registry refuses says why, what its log calls the request, and which variable to set."""

import pytest

from peerseal.errors import DocumentRefused, EnrolmentPending, EnrolmentRefused, FetchError, TrustUnavailable
from peerseal.identity.enrolment import Enrolment
from peerseal.identity.enrolment_errors import enrolment_refused
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Answer, Clock, MemoryRegistry

NOW = 1_800_000_000.0
DATE = "Fri, 15 Jan 2027 08:00:00 GMT"
PATH = "/v1/services/billing/keys"


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry(clock=Clock(NOW))


def enrolled(registry: MemoryRegistry, token: str, *, off: float = 0.0) -> None:
    """An attempt of a host whose clock is ``off`` by that many seconds."""
    clock = Clock(NOW + off)
    trust = registry.trust_store(clock=clock)
    Enrolment("billing", trust, clock).join(KeyPair.generate("ES256"), JoinToken.parse(token))


def test_a_spent_join_token_names_its_causes_in_order(registry: MemoryRegistry) -> None:
    token = registry.join_token("billing")
    enrolled(registry, token)
    with pytest.raises(EnrolmentRefused) as caught:
        enrolled(registry, token)
    error = caught.value
    assert error.code == "join_refused"
    assert error.clock_offset == 0.0
    assert error.request_id is not None
    message = str(error)
    assert f"the registry answered 401, request {error.request_id}" in message
    workers, ended, other = (message.index(part) for part in ("PEERSEAL_KEY_DIR", "has ended", "PEERSEAL_SERVICE"))
    assert workers < ended < other
    assert "`peerseal-registry join-token create billing`" in message
    assert token.split(".")[2] not in message


def test_a_fast_clock_is_named_with_its_offset(registry: MemoryRegistry) -> None:
    with pytest.raises(EnrolmentRefused) as caught:
        enrolled(registry, registry.join_token("billing"), off=121)
    assert (caught.value.code, caught.value.clock_offset) == ("not_yet_valid", 121.0)
    assert "this host's clock is 121 s ahead of the registry's: synchronise both (NTP)" in str(caught.value)


def test_a_slow_clock_is_named_with_its_offset(registry: MemoryRegistry) -> None:
    with pytest.raises(TrustUnavailable) as caught:
        enrolled(registry, registry.join_token("billing"), off=-121)
    assert "this host's clock is 121 s behind the registry's: synchronise both (NTP)" in str(caught.value)


def test_a_statement_from_the_future_names_the_clock(registry: MemoryRegistry) -> None:
    clock = Clock(NOW)
    trust = registry.trust_store(clock=clock)
    enrolment = Enrolment("billing", trust, clock)
    assert trust.domain == registry.domain  # by the root's document, which is older
    registry.clock = Clock(NOW + 75)
    with pytest.raises(DocumentRefused) as caught:
        enrolment.join(KeyPair.generate("ES256"), JoinToken.parse(registry.join_token("billing")))
    assert caught.value.code == "document_from_future"
    assert "75 s behind the registry's" in str(caught.value)


@pytest.mark.parametrize("off", [-30, 0, 30])
def test_clocks_that_agree_well_enough_are_not_named(off: int) -> None:
    answer = Answer(401, b'{"code":"join_refused"}', {"date": DATE})
    assert "clock" not in str(enrolment_refused(answer, "billing", NOW + off))


def test_the_age_of_a_cached_answer_is_no_difference_of_clocks() -> None:
    answer = Answer(401, b'{"code":"join_refused"}', {"date": DATE, "age": "90"})
    assert enrolment_refused(answer, "billing", NOW + 92).clock_offset == 2


@pytest.mark.parametrize("date", ["", "soon", "Fri, 99 Jan 2027 08:00:00 GMT"])
def test_an_answer_without_a_time_has_no_offset(date: str) -> None:
    assert enrolment_refused(Answer(401, b"{}", {"date": date}), "billing", NOW).clock_offset is None


@pytest.mark.parametrize("request_id", ["x" * 200, "a\nb", "", "<b>"])
def test_a_request_id_that_is_not_plain_is_left_out(request_id: str) -> None:
    error = enrolment_refused(Answer(401, b"{}", {"x-request-id": request_id}), "billing", NOW)
    assert (error.request_id, "request" in str(error)) == (None, False)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code":1}', b"{" * 5000])
def test_any_other_answer_is_refused_without_a_code_of_its_own(body: bytes) -> None:
    error = enrolment_refused(Answer(418, body), "billing", NOW)
    assert (error.code, "the registry answered 418; docs/reference/errors.md" in str(error)) == ("refused", True)


def test_a_registry_that_fails_is_asked_again_and_names_its_request(registry: MemoryRegistry) -> None:
    registry.answers[PATH] = Answer(503, b"", {"x-request-id": "abc"})
    with pytest.raises(FetchError, match="the registry answered 503, request abc"):
        enrolled(registry, registry.join_token("billing"))


def test_a_key_that_waits_names_the_command_of_the_operator(registry: MemoryRegistry) -> None:
    registry.answers[PATH] = Answer(202, b"")
    with pytest.raises(EnrolmentPending, match=r"`peerseal-registry approve test\.internal/billing/"):
        enrolled(registry, registry.join_token("billing"))
