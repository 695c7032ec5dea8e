"""The registry's spans: they continue the traces of its callers, and begin none."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from werkzeug.test import create_environ

from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from registry.web.delayed_answer import DelayedBody
from tests.registry.driver import Driver
from tests.support.spans import GIVEN, SPAN, TRACE, Seen, id_of, parent_of, seeing
from tests.support.waiting import PATIENCE, until

ADMIT = "registry.admit"
END = "DELETE /v1/services/<service>/keys/<thumbprint:thumbprint>"


@pytest.fixture
def seen(registry: Driver) -> Iterator[Seen]:
    """Spans are made from now on, and each call of the driver comes with a trace."""
    registry.client.environ_base["HTTP_TRACEPARENT"] = GIVEN
    with seeing() as seen:
        yield seen


def inside(seen: Seen, outer: ReadableSpan) -> list[str]:
    """The names of the spans within that one, in order of their end."""
    return [each.name for each in seen.spans if parent_of(each) == id_of(outer)]


def test_a_registration_is_one_span_with_its_database_time_and_signatures(seen: Seen, registry: Driver) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    served, admit = seen.named("POST /v1/services/<service>/keys"), seen.named(ADMIT)
    assert served.kind is SpanKind.SERVER
    assert (f"{served.context.trace_id:032x}", parent_of(served)) == (TRACE, SPAN)
    assert (served.attributes or {})["http.response.status_code"] == 201
    assert parent_of(admit) == id_of(served)
    assert dict(admit.attributes or {}) == {
        "peerseal.operation": ADMIT,
        "peerseal.service": "billing",
        "registry.ground": "join_token",
    }
    assert "registry.write" in inside(seen, admit)
    signed = [(each.attributes or {})["registry.document"] for each in seen.spans if each.name == "registry.sign"]
    assert "peerseal-key+jwt" in signed
    (write,) = [each for each in seen.spans if each.name == "registry.write" and parent_of(each) == id_of(admit)]
    assert write.kind is SpanKind.CLIENT
    assert (write.attributes or {})["db.system.name"] == "sqlite"


def test_a_rotation_and_a_revocation_are_spans(seen: Seen, registry: Driver) -> None:
    old, new = registry.joined(KeyPair.generate("ES256"), "billing"), KeyPair.generate("ES256")
    seen.forget()
    assert registry.rotate(old, new, "billing").status_code == 201
    assert (seen.named(ADMIT).attributes or {})["registry.ground"] == "kid"
    assert registry.operator_ends(old, "billing").status_code == 204
    ended, served = seen.named("registry.end_key"), seen.named(END)
    assert parent_of(ended) == id_of(served)
    assert (ended.attributes or {})["registry.keys_ended"] == 2  # the key, and the one that it vouched for
    assert "registry.write" in inside(seen, ended)


def test_a_refusal_is_a_span_with_its_status_and_without_a_secret(seen: Seen, registry: Driver) -> None:
    token = registry.join_token("billing")
    assert registry.join(KeyPair.generate("ES256"), "billing", token).status_code == 201
    assert registry.join(KeyPair.generate("ES256"), "billing", token).status_code == 401
    refused = [each for each in seen.spans if each.name == ADMIT][-1]
    assert not refused.status.is_ok
    text = "".join(each.to_json() for each in seen.spans)
    assert "eyJ" not in text
    assert token.mac_key.hex() not in text
    assert token.id not in text


def test_an_answer_from_memory_is_a_span_without_a_database(seen: Seen, registry: Driver) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    registry.got("/v1/services/billing/jwks.jwt")
    assert seen.names[-1] == "GET /v1/services/<service>/jwks.jwt"
    seen.forget()
    registry.got("/v1/services/billing/jwks.jwt")
    assert seen.names == ["GET /v1/services/<service>/jwks.jwt"]


@pytest.mark.parametrize("told", [True, False], ids=["a change", "no change"])
def test_a_call_that_waits_is_one_span_until_its_answer(seen: Seen, registry: Driver, told: bool) -> None:
    new, token, waiting = KeyPair.generate("ES256"), registry.join_token("billing"), registry.registry.changes.waiting
    path = f"/v1/changes?since={registry.changes(0).seq}&wait={20 if told else 1}"
    seen.forget()
    with ThreadPoolExecutor(1) as pool:
        asking = registry.app.test_client()
        server = {"wsgi.multithread": True, "HTTP_TRACEPARENT": GIVEN}
        call = pool.submit(asking.get, path, environ_overrides=server)
        until(lambda: len(waiting) == 1)
        registry.client.environ_base.pop("HTTP_TRACEPARENT")
        if told:
            assert registry.join(new, "billing", token).status_code == 201
        assert call.result(PATIENCE).status_code == 200
    (served,) = [each for each in seen.spans if each.kind is SpanKind.SERVER]
    assert served.name == "GET /v1/changes"
    assert (f"{served.context.trace_id:032x}", parent_of(served)) == (TRACE, SPAN)
    assert (served.attributes or {})["http.response.status_code"] == 200
    assert told or (served.end_time or 0) - (served.start_time or 0) >= 10**9 - 10**7, "the wait is part of it"


def test_a_call_whose_client_leaves_is_one_span_without_a_status(seen: Seen, registry: Driver) -> None:
    head = registry.changes(0).seq
    seen.forget()
    environ = create_environ(f"/v1/changes?since={head}&wait=20", multithread=True, headers={"traceparent": GIVEN})
    body = registry.app.wsgi_app(environ, lambda *_: lambda _: None)
    assert isinstance(body, DelayedBody)
    assert [each.name for each in seen.spans if each.kind is SpanKind.SERVER] == []
    body.close()
    (served,) = [each for each in seen.spans if each.kind is SpanKind.SERVER]
    assert "http.response.status_code" not in (served.attributes or {})


@pytest.mark.parametrize("given", [None, "00-zz", GIVEN[:-2] + "00"])
def test_a_call_without_a_trace_that_is_sampled_makes_no_span(seen: Seen, registry: Driver, given: str | None) -> None:
    registry.client.environ_base.pop("HTTP_TRACEPARENT")
    headers = {} if given is None else {"traceparent": given}
    assert registry.client.get("/v1/changes?since=0", headers=headers).status_code == 200
    assert seen.names == []


def test_a_transaction_that_several_registrations_share_has_links_to_them(seen: Seen, registry: Driver) -> None:
    def joins(service: str, token: JoinToken) -> threading.Thread:
        caller = copy(registry)
        caller.client = registry.app.test_client()
        caller.client.environ_base["HTTP_TRACEPARENT"] = GIVEN
        thread = threading.Thread(target=caller.join, args=(KeyPair.generate("ES256"), service, token))
        thread.start()
        return thread

    joining = registry.registry.admission.joining
    tokens = {service: registry.join_token(service) for service in ("first", "second", "third")}
    with registry.store.write():  # the first registration waits for the database, and the others for the first
        threads = [joins("first", tokens["first"])]
        until(lambda: joining.busy and not joining.waiting)
        threads += [joins(service, tokens[service]) for service in ("second", "third")]
        until(lambda: joining.waiting == 2)
    for thread in threads:
        thread.join()
    admissions = {(each.attributes or {})["peerseal.service"]: each for each in seen.spans if each.name == ADMIT}
    (shared,) = [each for each in seen.spans if each.name == "registry.write" and each.links]
    linked = {f"{link.context.span_id:016x}" for link in shared.links}
    assert linked == {id_of(admissions["second"]), id_of(admissions["third"])}
