"""Who may call, with which scopes."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerseal import EventVerifier, Verifier
from peerseal.errors import ConfigurationError, InvalidName
from peerseal.protocol.policies import CallPolicy
from peerseal.testing import MemoryRegistry
from peerseal.verify.allow import AllowedCallers

DOMAIN = "test.internal"


def test_nobody_may_call_unless_somebody_says_so() -> None:
    assert AllowedCallers.of({}, DOMAIN).scopes("test.internal/client") is None


def test_short_names_stand_for_services_of_the_own_domain() -> None:
    policy = AllowedCallers.of({"client": {"read"}}, DOMAIN)
    assert policy.scopes("test.internal/client") == {"read"}
    assert policy.scopes("other.internal/client") is None
    assert policy.scopes("client") is None


def test_a_service_of_another_domain_is_named_in_full() -> None:
    policy = AllowedCallers.of({"other.internal/client": {"read"}}, DOMAIN)
    assert policy.scopes("other.internal/client") == {"read"}
    assert policy.scopes("test.internal/client") is None


def test_a_caller_may_be_let_in_without_any_scope() -> None:
    assert AllowedCallers.of({"client": ()}, DOMAIN).scopes("test.internal/client") == frozenset()


def test_anyone_is_any_service_of_the_own_domain() -> None:
    policy = AllowedCallers.of({"*": ["read"]}, DOMAIN)
    assert policy.scopes("test.internal/whoever") == {"read"}
    assert policy.scopes("test.internal.evil/whoever") is None
    assert policy.scopes("evil.test.internal/whoever") is None
    assert policy.scopes("other.internal/whoever") is None


def test_a_caller_that_is_named_has_its_own_scopes_and_not_everybodys() -> None:
    policy = AllowedCallers.of({"*": {"read"}, "client": {"write"}}, DOMAIN)
    assert policy.scopes("test.internal/client") == {"write"}
    assert policy.scopes("test.internal/other") == {"read"}


def test_scopes_given_as_one_string_are_a_mistake() -> None:
    for caller in ("client", "*"):
        with pytest.raises(ConfigurationError, match="one string"):
            AllowedCallers.of({caller: "read"}, DOMAIN)


@pytest.mark.parametrize("scope", ["", " ", "read write", "read\n", 'a"b', "a\\b", "lire:été", None, 7, b"read"])
def test_what_is_no_scope_is_a_mistake(scope: Any) -> None:
    for caller in ("client", "*"):
        with pytest.raises(ConfigurationError, match="no scope"):
            AllowedCallers.of({caller: ["read", scope]}, DOMAIN)


def test_an_unset_variable_is_no_scope_that_needs_nothing() -> None:
    unset = ""
    allow = {"client": unset.split(" ")}
    with MemoryRegistry() as registry:
        with pytest.raises(ConfigurationError):
            Verifier(registry, audience="callee", allow=allow)
        with pytest.raises(ConfigurationError):
            EventVerifier(registry, audience="jobs", allow=allow, max_age=timedelta(days=1))


def test_scopes_that_can_be_read_only_once_are_read_once_and_all() -> None:
    with MemoryRegistry() as registry:
        client, trust = registry.identity("client"), registry.trust_store()
        allow = {"client": iter(["read", "write"]), "*": (scope for scope in ["read"])}
        verifier = Verifier(trust, audience="callee", allow=allow, clock=registry.clock)
        for _ in range(2):
            peer = verifier.verify(client.sign_request("callee", method="GET", target="/"), method="GET", target="/")
            assert peer.scopes == {"read", "write"}
        by_anyone = registry.identity("whoever").sign_request("callee", method="GET", target="/")
        assert verifier.verify(by_anyone, method="GET", target="/").scopes == {"read"}


@pytest.mark.parametrize("name", ["", "Client", "client/", "/client", "a/b/c", "client.", "clïent", "client*"])
def test_a_caller_whose_name_is_none_is_a_mistake(name: str) -> None:
    with pytest.raises(InvalidName):
        AllowedCallers.of({name: {"read"}}, DOMAIN)


def test_scopes_cannot_be_changed_after_the_fact() -> None:
    allow = {"client": {"read"}}
    policy = AllowedCallers.of(allow, DOMAIN)
    allow["client"].add("write")
    allow["other"] = {"read"}
    assert policy.scopes("test.internal/client") == {"read"}
    assert policy.scopes("test.internal/other") is None


# what code and registry both allow

NAMES = ["*", "client", "stranger", "other.internal/client"]
ALLOWS = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(["read", "write"])))


@given(ALLOWS, ALLOWS, st.sampled_from(["client", "stranger", "whoever"]))
def test_what_is_allowed_is_what_both_allow(
    code: dict[str, set[str]], laid_down: dict[str, set[str]], who: str
) -> None:
    ours = AllowedCallers.of(code, DOMAIN)
    named = {name if name in ("*", "other.internal/client") else f"{DOMAIN}/{name}": name for name in laid_down}
    theirs = CallPolicy({full: frozenset(laid_down[name]) for full, name in named.items()})
    caller = f"{DOMAIN}/{who}"
    allowed, by_code, by_registry = (
        ours.narrowed_by(theirs).scopes(caller),
        ours.scopes(caller),
        theirs.scopes(caller),
    )
    if by_code is None or by_registry is None:
        assert allowed is None
    else:
        assert allowed == by_code & by_registry


def test_the_registry_s_anyone_is_nobody_of_another_domain() -> None:
    ours = AllowedCallers.of({"other.internal/client": {"read"}}, DOMAIN)
    assert ours.narrowed_by(CallPolicy({"*": frozenset(("read",))})).scopes("other.internal/client") is None


def test_an_empty_policy_of_the_registry_lets_nobody_in() -> None:
    assert AllowedCallers.of({"*": {"read"}}, DOMAIN).narrowed_by(CallPolicy({})).scopes(f"{DOMAIN}/client") is None
