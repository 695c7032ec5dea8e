"""Signed answers: which ones are signed, and that clients who require them accept the honest ones."""

from collections.abc import Iterator

import pytest
import requests

from peerseal.errors import ConfigurationError, ResponseRefused
from peerseal.flask import PeerAuth
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.requests import PeerSession
from peerseal.verify.response import ResponseHead, ResponseVerifier
from tests.support.signed_answers import (
    BODY,
    CALLEE,
    WAYS,
    Way,
    World,
    by_async_session,
    by_requests,
    signing_service,
)

pytestmark = pytest.mark.usefixtures("no_proxies")
each_way = pytest.mark.parametrize("call", WAYS)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with signing_service() as world:
        yield world


@pytest.fixture
def world(shared: World) -> World:
    shared.sent.clear()
    return shared


@each_way
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_an_honest_answer_is_accepted(world: World, call: Way, method: str) -> None:
    got = call(world, method=method)
    assert (got.status, got.body) == (200, b"" if method == "HEAD" else BODY)


@each_way
@pytest.mark.parametrize("status", [201, 204, 400, 404, 500])
def test_an_answer_of_any_status_is_signed(world: World, call: Way, status: int) -> None:
    assert call(world, f"/status/{status}").status == status


@each_way
@pytest.mark.parametrize(
    ("path", "status"), [("/broken", 500), ("/nowhere", 404), ("/invoices", 403), ("/stream", 200), ("/moved", 200)]
)
def test_errors_refusals_and_streams_and_redirects_are_signed(world: World, call: Way, path: str, status: int) -> None:
    assert call(world, path).status == status
    assert all(dict(sent.headers).get(RESPONSE_HEADER) for sent in world.sent)


def test_a_refusal_for_want_of_a_scope_is_signed_once(world: World) -> None:
    assert by_requests(world, "/invoices").status == 403
    token = world.sent[-1].request_token
    again = replay(world, "/invoices", token)
    assert (again.status_code, again.headers.get(RESPONSE_HEADER)) == (401, None)


def replay(world: World, path: str, token: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}", "Peerseal-Want-Response": "1"}
    return requests.get(world.url + path, headers=headers, timeout=20)


def test_without_the_wish_of_the_caller_nothing_is_signed(world: World) -> None:
    assert by_requests(world, require_signed_response=False).status == 200
    assert RESPONSE_HEADER not in dict(world.sent[-1].headers)


def test_by_default_nothing_is_signed_and_a_caller_that_requires_it_is_told_why() -> None:
    with signing_service(sign_responses=False) as world:
        with pytest.raises(ResponseRefused, match="sign_responses") as refused:
            by_requests(world)
        assert refused.value.code == "unsigned_response"


def test_all_answers_to_verified_callers_are_signed_if_the_service_says_so() -> None:
    with signing_service(sign_responses=True) as world:
        assert by_requests(world, require_signed_response=False).status == 200
        assert RESPONSE_HEADER in dict(world.sent[-1].headers)
        assert by_requests(world).status == 200


@pytest.mark.parametrize("path", ["/orders", "/public", "/nowhere"])
@pytest.mark.parametrize("mode", [True, "on_request"])
def test_nothing_is_signed_for_a_stranger(mode: bool | str, path: str) -> None:
    with signing_service(sign_responses=mode) as world:
        answer = requests.get(world.url + path, headers={"Peerseal-Want-Response": "1"}, timeout=20)
        assert RESPONSE_HEADER not in answer.headers
        forged = world.registry.identity("stranger").sign_request(CALLEE, method="GET", target=path)
        assert RESPONSE_HEADER not in replay(world, path, forged).headers


def test_a_stream_of_events_is_passed_on_unsigned(world: World) -> None:
    with pytest.raises(ResponseRefused) as refused:
        by_requests(world, "/events")
    assert refused.value.code == "unsigned_response"
    assert by_requests(world, "/events", require_signed_response=False).body == b"data: 1\n\n" * 3


@pytest.mark.parametrize("path", ["/orders", "/stream"])
def test_a_body_over_the_bound_is_passed_on_whole_and_unsigned(path: str) -> None:
    with signing_service(sign_responses=True, max_signed_body=10) as world:
        whole = by_requests(world, path, require_signed_response=False)
        assert whole.body in (BODY, b"piece" * 3)
        with pytest.raises(ResponseRefused) as refused:
            by_requests(world, path)
        assert refused.value.code == "unsigned_response"


@each_way
def test_a_caller_reads_no_more_than_its_bound(world: World, call: Way) -> None:
    with pytest.raises(ResponseRefused, match="max_buffer"):
        call(world, max_buffer=len(BODY) - 1)


@each_way
def test_a_compressed_answer_is_checked_as_it_arrives_and_unpacked_for_the_application(world: World, call: Way) -> None:
    assert call(world, "/zipped").body == b"text" * 100


@each_way
def test_bound_headers_of_the_application_are_signed(call: Way) -> None:
    with signing_service(bind_response_headers=("X-Price",)) as world:
        assert call(world, signed_response_headers=("x-price",)).headers["X-Price"] == "7"
        world.between = lambda sent: sent.holding("X-Price", "1")
        with pytest.raises(ResponseRefused, match="x-price"):
            call(world)


@each_way
def test_a_header_that_the_caller_requires_to_be_signed_counts_only_if_it_is(world: World, call: Way) -> None:
    with pytest.raises(ResponseRefused, match=r"x-price is '7', signed was missing: .*bind_response_headers"):
        call(world, signed_response_headers=("X-Price",))
    assert call(world, signed_response_headers=("X-Other",)).status == 200


@each_way
def test_the_next_key_of_the_callee_signs_answers_too(call: Way) -> None:
    with signing_service() as world:
        assert call(world).status == 200
        world.callee.rotate()
        world.clock.advance(40)
        assert call(world).status == 200


def test_rsa_keys_sign_answers_too() -> None:
    with signing_service("RS256") as world:
        assert by_requests(world).body == BODY


@pytest.mark.parametrize(
    "options",
    [
        {"sign_responses": "always"},
        {"sign_responses": 1},
        {"bind_response_headers": "etag"},
        {"bind_response_headers": ("a b",)},
        {"bind_response_headers": ("Set-Cookie",)},
        {"bind_response_headers": ("date",)},
        {"max_signed_body": "1"},
    ],
)
def test_wrong_options_are_refused_at_the_start(world: World, options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        PeerAuth(None, world.callee, **{"sign_responses": True, **options})  # type: ignore[arg-type]


def test_a_session_needs_an_identity_to_check_answers(world: World) -> None:
    class Bare:
        sign_request = world.caller.sign_request

    with pytest.raises(ConfigurationError, match=r"no peerseal\.Identity"):
        PeerSession(Bare(), CALLEE, world.url, require_signed_response=True)


def test_response_hooks_of_httpx_are_refused_because_they_run_before_the_check(world: World) -> None:
    async def hook(_: object) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="event_hooks"):
        by_async_session(world, event_hooks={"response": [hook]})


def test_cookies_and_streams_of_requests_work_as_ever(world: World) -> None:
    with world.caller.session(CALLEE, world.url, require_signed_response=True) as session:
        answer = session.get("/cookie", stream=True)
        assert b"".join(answer.iter_content(1)) == b"text"
        assert session.cookies["a"] == "1"


@each_way
@pytest.mark.parametrize("name", ["content-length", "Date", "Peerseal-Response"])
def test_a_header_that_can_never_be_signed_cannot_be_required(world: World, call: Way, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be signed: {name.lower()}"):
        call(world, signed_response_headers=(name,))


@pytest.mark.parametrize("call", WAYS)
def test_a_refused_answer_is_counted_and_logged_without_its_content(
    world: World, call: Way, caplog: pytest.LogCaptureFixture
) -> None:
    counted = 'peerseal_responses_refused_total{code="wrong_binding"} '
    before = _number_after(counted, world.caller.metrics())
    with caplog.at_level("WARNING"), pytest.raises(ResponseRefused):
        call(world, signed_response_headers=("x-price",))
    assert _number_after(counted, world.caller.metrics()) == before + 1
    told = [record.getMessage() for record in caplog.records if "refused an answer" in record.getMessage()]
    assert told == ["refused an answer of orders: wrong_binding, status 200"]


def _number_after(text: str, metrics: str) -> int:
    found = [line.removeprefix(text) for line in metrics.splitlines() if line.startswith(text)]
    return int(found[0]) if found else 0


CAUSES = {
    200: "its path is public",
    206: "a header that chooses it was added to the request",
    103: "an informational answer came before the answer",
    413: "longer than the service",
    503: "the service cannot verify callers now",
}


@pytest.mark.parametrize("status", CAUSES)
def test_the_refusal_of_an_unsigned_answer_names_what_it_may_mean(world: World, status: int) -> None:
    verifier = ResponseVerifier(world.caller.trust, caller="client", audience=CALLEE)
    with pytest.raises(ResponseRefused, match=CAUSES[status]):
        verifier.verify(ResponseHead.of(status, []), request_token="a.b.c", body=b"")


def test_answers_are_counted_by_outcome(world: World) -> None:
    by_requests(world)
    with pytest.raises(ResponseRefused):
        by_requests(world, "/events")
    for outcome in ("signed", "stream"):
        assert f'peerseal_responses_total{{outcome="{outcome}"}}' in world.callee.metrics()
