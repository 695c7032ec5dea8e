"""What the console reads of the whole registry, on each database."""

from registry.services.insight.activity import Filter, Position
from tests.registry.driver import BY, Driver
from tests.support.keys import key


def test_numbers_activity_and_trust_are_read_alike_on_each_database(registry: Driver) -> None:
    ended = registry.joined(key(), "billing")
    registry.joined(key(), "shop")
    registry.operator_ends(ended, "billing")
    policies = registry.registry.policies
    policies.set_policy("billing", {"allow": {"shop": ["charge"], "*": []}}, {0}, BY)

    numbers = registry.registry.overview.numbers()
    assert numbers.keys is not None
    assert (numbers.services, numbers.applicants, numbers.keys.counts) == (2, 0, (1, 0, 1))
    assert numbers.root is not None

    activity = registry.registry.activity
    found = activity.older(None, Filter())
    assert [event.seq for event in found.events] == list(range(numbers.size, 0, -1))
    assert activity.newer(found.head, Filter()).events == ()
    since = Position(numbers.size - 2, found.head.act)
    assert [event.type for event in activity.newer(since, Filter()).events] == ["key_revoked", "policy_set"]
    by = str(found.events[1].by["operator"]) if found.events[1].by else ""
    for only in (Filter(type="key_revoked"), Filter(operator=by), Filter(service="billing", type="key_revoked")):
        assert [event.type for event in activity.older(None, only).events] == ["key_revoked"]

    graph = registry.registry.trust_graphs.current().graph
    assert [tuple(call) for call in graph.calls()] == [("*", "billing", ()), ("shop", "billing", ("charge",))]
    policies.set_policy("billing", {"allow": None}, {numbers.size}, BY)
    assert registry.registry.trust_graphs.current().graph.size == 0
