"""Problem documents: the members and headers of each kind of refusal."""

import json

import pytest

from peerseal.errors import (
    CallerNotAllowed,
    ContentTooLarge,
    Expired,
    MissingToken,
    PeersealError,
    TooManyCalls,
    TrustUnavailable,
)
from peerseal.protocol.problem_document import problem, problem_of


@pytest.mark.parametrize(
    ("error", "status", "title", "headers"),
    [
        (MissingToken("x"), 401, "Unauthorized", {"WWW-Authenticate": "Bearer"}),
        (Expired("x"), 401, "Unauthorized", {"WWW-Authenticate": 'Bearer error="invalid_token"'}),
        (CallerNotAllowed("x"), 403, "Forbidden", {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}),
        (ContentTooLarge("x"), 413, "Content Too Large", {}),
        (TrustUnavailable("x", 7), 503, "Service Unavailable", {"Retry-After": "7"}),
        (TooManyCalls("x"), 503, "Service Unavailable", {"Retry-After": "1"}),
    ],
)
def test_an_error_is_answered_with_its_status_code_and_headers(
    error: PeersealError, status: int, title: str, headers: dict[str, str]
) -> None:
    answer = problem_of(error)
    document = json.loads(answer.body)
    assert document.pop("title") in (title, "Request Entity Too Large")  # the phrase of 413 before Python 3.13
    assert document == {"type": "about:blank", "status": status, "code": error.code}
    always = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    assert (answer.status, answer.headers) == (status, always | headers)


def test_the_detail_of_an_error_is_not_sent() -> None:
    assert b"secret" not in problem_of(Expired("secret")).body


def test_a_detail_and_extensions_are_members_of_the_document() -> None:
    document = json.loads(problem(404, "not_found", detail="No such key.", request_id="1").body)
    assert (document["detail"], document["request_id"]) == ("No such key.", "1")
