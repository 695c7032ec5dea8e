"""The JSON of local programs: what the agent reads, and what it names where it cannot."""

from typing import Any

import pytest

from peerseal.agent.questions import QuestionRefused, read_sign, read_verify
from peerseal.protocol.encoding import canonical_json

REQUEST = {"method": "POST", "target": "/a"}


def question(**members: Any) -> bytes:
    return canonical_json(REQUEST | {"audience": "billing"} | members)


def test_a_question_without_a_body_is_about_an_empty_one() -> None:
    asked = read_sign(question())
    assert (asked.audience, asked.ctx, asked.request.body, asked.request.content_digest) == ("billing", None, b"", None)


@pytest.mark.parametrize(
    ("members", "body"), [({"body": "ü"}, "ü".encode()), ({"body_base64": "/wA="}, b"\xff\0"), ({"body": None}, b"")]
)
def test_a_body_is_text_or_base64(members: dict[str, Any], body: bytes) -> None:
    assert read_sign(question(**members)).request.body == body


def test_names_of_headers_are_lower_case_and_values_without_blanks() -> None:
    assert read_sign(question(headers={"Content-Type": " text/plain\t"})).request.headers == {
        "content-type": "text/plain"
    }


def test_a_verify_question_may_leave_the_token_to_the_headers() -> None:
    asked = read_verify(canonical_json(REQUEST))
    assert (asked.token, asked.scope, asked.transaction) == (None, None, False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not strict JSON"),
        (b"[]", "not a JSON object"),
        (b'{"method":"GET","method":"PUT"}', "not strict JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"body":"\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "not strict JSON"),
        (question(audience=None), "audience is missing"),
        (question(audience=7), "audience is of type int, expected str"),
        (question(method=""), "method is missing"),
        (question(method="G T"), "method is 'G T', expected a token such as GET"),
        (question(method="GET\r\n"), r"method is 'GET\r\n', expected"),
        (question(method="é"), "method is 'é', expected"),
        (question(target=["/a"]), "target is of type list"),
        (question(scope="a"), "unknown member 'scope'; known are method, target"),
        (question(headers=[]), "headers is of type list, expected dict"),
        (question(headers={"a": 1}), "the header 'a' is of type int"),
        (question(headers={"a": "1", "A": "1"}), "is given twice"),
        (question(body="a", content_digest="b"), "body and content_digest are given"),
        (question(body_base64="a"), "not base64"),
        (question(body_base64="/wA=\n"), "not base64"),
        (question(body_base64="_wA="), "not base64"),
        (question(ctx="a"), "ctx is of type str, expected dict"),
    ],
)
def test_a_question_that_cannot_be_read_names_the_member(data: bytes, says: str) -> None:
    with pytest.raises(QuestionRefused, match="malformed_body") as refused:
        read_sign(data)
    assert says in str(refused.value)


def test_any_token_is_a_method() -> None:
    assert read_sign(question(method="M-SEARCH")).request.method == "M-SEARCH"


def test_a_switch_is_true_or_false() -> None:
    with pytest.raises(QuestionRefused, match="transaction is of type str, expected bool"):
        read_verify(canonical_json(REQUEST | {"transaction": "false"}))
