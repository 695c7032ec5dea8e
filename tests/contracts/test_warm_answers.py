"""Reads that memory answers before Flask sees them: the same answers, and never an older one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import request, request_started
from werkzeug.test import TestResponse

from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from registry.services.documents.answer_cache import AnswerCache
from registry.web import metrics
from tests.registry.driver import JSON, Clock, Driver, fail_revisions, outcome
from tests.support.keys import key

SET = "/v1/services/billing/jwks.jwt"
KINDS = ["jwks.jwt", "jwks.json", "policy.jwt", "statement", "domain", "federation"]


@pytest.fixture
def billing(registry: Driver) -> KeyPair:
    return registry.joined(key(), "billing")


@pytest.fixture
def other(registry: Driver) -> Iterator[Driver]:
    """Another node on the same database."""
    node = registry.node()
    node.operator = registry.operator
    yield node
    node.close()


def path_of(kind: str, billing: KeyPair) -> str:
    """The path of a document about billing, or of the domain's."""
    if kind in ("domain", "federation"):
        return f"/v1/{kind}.jwt"
    name = f"keys/{billing.public.thumbprint}.jwt" if kind == "statement" else kind
    return f"/v1/services/billing/{name}"


@contextmanager
def flask_serves(registry: Driver) -> Iterator[list[str]]:
    """The paths that Flask dispatches in the block."""
    paths: list[str] = []

    def note(_app: object, **_: object) -> None:
        paths.append(request.path)

    with request_started.connected_to(note, registry.app):
        yield paths


def seen(response: TestResponse) -> tuple[str, list[tuple[str, str]], bytes]:
    return response.status, sorted(response.headers), response.data


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_from_memory_is_the_one_that_flask_gives(registry: Driver, billing: KeyPair, kind: str) -> None:
    path = path_of(kind, billing)
    etag = registry.client.get(path).headers["ETag"]
    for tags, status in ((None, 200), ('"other"', 200), (etag, 304), ("*", 304), (f'W/"other", {etag}', 304)):
        headers = {} if tags is None else {"If-None-Match": tags}
        with flask_serves(registry) as paths:
            warm = registry.client.get(path, headers=headers)
            assert paths == []
            by_flask = registry.client.get(f"{path}?unknown", headers=headers)
            assert paths == [path]
        assert seen(warm) == seen(by_flask)
        assert warm.status_code == status


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_from_memory_is_counted(registry: Driver, billing: KeyPair, kind: str) -> None:
    def counted() -> dict[tuple[str, str], float]:
        metrics.answered.count()
        [requests] = metrics.REQUESTS.collect()
        return {
            (one.labels["endpoint"], one.labels["status"]): one.value
            for one in requests.samples
            if one.name.endswith("_total")
        }

    path = path_of(kind, billing)
    before = counted()
    registry.client.get(f"{path}?unknown")
    [endpoint] = [name for name, value in counted().items() if value != before.get(name)]
    before = counted()
    registry.client.get(path)
    assert counted()[endpoint] == before[endpoint] + 1


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_any_other_request_goes_to_flask(registry: Driver, billing: KeyPair) -> None:
    registry.got(SET)
    for method, path in [
        ("HEAD", SET),
        ("OPTIONS", SET),
        ("POST", SET),
        *(
            ("GET", f"{SET}?{query}")
            for query in ("seq=1&seq=1", "seq=", "seq=-1", "seq=%31", "seq=01", "seq=1000000", "seq=1 ")
        ),
        *(("GET", path) for path in (f"{SET}/", f"/{SET}", f"{SET}%0A")),
        *(("GET", f"/v1/services/{name}/jwks.jwt") for name in ("shipping", "BILLING", "registry", "billing%2F")),
    ]:
        with flask_serves(registry) as paths:
            registry.client.open(path, method=method)
        assert len(paths) == 1, (method, path)


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_a_seq_that_memory_covers_is_answered_from_memory(registry: Driver, billing: KeyPair) -> None:
    seq = registry.key_set("billing").seq
    with flask_serves(registry) as paths:
        assert registry.client.get(f"{SET}?seq={seq}").status_code == 200
    assert paths == []


@pytest.mark.parametrize("kind", KINDS[:-2])
def test_what_another_node_changed_shows_in_the_next_answer(
    registry: Driver, other: Driver, billing: KeyPair, kind: str
) -> None:
    path = path_of(kind, billing)
    for _ in range(3):
        before = registry.got(path)
        assert registry.got(path) == before
        other.joined(key(), "billing")
        assert registry.got(path) != before
    before = registry.got(path)
    assert other.operator_ends(billing, "billing").status_code == 204
    assert registry.got(path) != before


def test_what_another_node_set_for_the_domain_shows_in_the_next_answer(registry: Driver, other: Driver) -> None:
    assert registry.got("/v1/domain.jwt") == registry.got("/v1/domain.jwt")
    body = canonical_json({"minters": ["edge"], "issuers": []})
    headers = {**other.operator, **JSON, "If-Match": '"0"'}
    assert other.client.put("/v1/domain", data=body, headers=headers).status_code == 200
    assert registry.read(DomainDocument, registry.got("/v1/domain.jwt")).seq > 0


def test_a_policy_that_becomes_restricted_is_told_to_nobody_from_the_next_answer_on(
    registry: Driver, other: Driver, billing: KeyPair
) -> None:
    path = path_of("policy.jwt", billing)
    registry.got(path)
    body = canonical_json({"allow": {}, "restricted": True})
    headers = {**other.operator, **JSON, "If-Match": '"0"'}
    assert other.client.put(path.removesuffix(".jwt"), data=body, headers=headers).status_code in (200, 201)
    for _ in range(2):  # the second time it is in memory
        assert outcome(registry.client.get(path)) == (401, "missing_token")


def test_an_answer_that_is_due_to_be_signed_again_is(registry: Driver, billing: KeyPair, clock: Clock) -> None:
    before = registry.got(SET)
    clock.forward(registry.settings.limits.resign_after)
    assert registry.got(SET) == before
    clock.forward(registry.settings.limits.signing_period)
    assert registry.got(SET) != before


def test_an_unexpected_error_is_answered_as_a_problem(
    registry: Driver, billing: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    registry.got(SET)
    for way in ("kept", "answer"):
        monkeypatch.setattr(AnswerCache, way, broken)
    assert outcome(registry.client.get(SET)) == (500, "internal_error")


def test_with_the_database_down_memory_answers_until_the_answer_expires(
    registry: Driver, billing: KeyPair, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, expires_at = registry.got(SET), registry.key_set("billing").expires_at
    fail_revisions(monkeypatch, "service")
    clock.forward(expires_at - clock() - 1)
    assert registry.got(SET) == before
    clock.forward(1)
    assert outcome(registry.client.get(SET)) == (503, "storage_unavailable")
