"""Who may call, with which scopes."""

import pytest

from peerseal.errors import ConfigurationError, InvalidName
from peerseal.peers.policy import AllowPolicy

DOMAIN = "test.internal"


def test_nobody_may_call_unless_somebody_says_so() -> None:
    assert AllowPolicy.of({}, DOMAIN).scopes("test.internal/client") is None


def test_short_names_stand_for_services_of_the_own_domain() -> None:
    policy = AllowPolicy.of({"client": {"read"}}, DOMAIN)
    assert policy.scopes("test.internal/client") == {"read"}
    assert policy.scopes("other.internal/client") is None
    assert policy.scopes("client") is None


def test_a_service_of_another_domain_is_named_in_full() -> None:
    policy = AllowPolicy.of({"other.internal/client": {"read"}}, DOMAIN)
    assert policy.scopes("other.internal/client") == {"read"}
    assert policy.scopes("test.internal/client") is None


def test_a_caller_may_be_let_in_without_any_scope() -> None:
    assert AllowPolicy.of({"client": ()}, DOMAIN).scopes("test.internal/client") == frozenset()


def test_anyone_is_any_service_of_the_own_domain() -> None:
    policy = AllowPolicy.of({"*": ["read"]}, DOMAIN)
    assert policy.scopes("test.internal/whoever") == {"read"}
    assert policy.scopes("test.internal.evil/whoever") is None
    assert policy.scopes("evil.test.internal/whoever") is None
    assert policy.scopes("other.internal/whoever") is None


def test_a_caller_that_is_named_has_its_own_scopes_and_not_everybodys() -> None:
    policy = AllowPolicy.of({"*": {"read"}, "client": {"write"}}, DOMAIN)
    assert policy.scopes("test.internal/client") == {"write"}
    assert policy.scopes("test.internal/other") == {"read"}


def test_scopes_given_as_one_string_are_a_mistake() -> None:
    for caller in ("client", "*"):
        with pytest.raises(ConfigurationError, match="one string"):
            AllowPolicy.of({caller: "read"}, DOMAIN)


@pytest.mark.parametrize("name", ["", "Client", "client/", "/client", "a/b/c", "client.", "clïent", "client*"])
def test_a_caller_whose_name_is_none_is_a_mistake(name: str) -> None:
    with pytest.raises(InvalidName):
        AllowPolicy.of({name: {"read"}}, DOMAIN)


def test_scopes_cannot_be_changed_after_the_fact() -> None:
    allow = {"client": {"read"}}
    policy = AllowPolicy.of(allow, DOMAIN)
    allow["client"].add("write")
    allow["other"] = {"read"}
    assert policy.scopes("test.internal/client") == {"read"}
    assert policy.scopes("test.internal/other") is None
