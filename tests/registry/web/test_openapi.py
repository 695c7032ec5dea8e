"""The OpenAPI document: it says all that the application answers, and nothing else; and the page made of it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from peerseal.errors import PeersealError
from peerseal.protocol.documents.history_statement import MAX_STATEMENTS
from peerseal.protocol.encoding import MAX_DIGITS
from peerseal.protocol.issuer_trust import MAX_CA, MAX_GIVEN_KEYS
from peerseal.protocol.policies import ACCESS_LIFETIMES, MAX_ACCESS_SCOPES, MAX_DERIVATIONS, MAX_DERIVED
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.protocol.tokens.event import ID_PATTERN, PAYLOAD_HASH, TOPIC
from registry.domain import errors
from registry.domain.admission import TOKEN_ID
from registry.domain.exchange import CLIENT_CREDENTIALS, GRANT, JWT
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.services.keys.records import Reason
from registry.web.routes.openapi import document
from tests.registry.driver import Driver

UNASKED = {"HEAD", "OPTIONS"}
"""Methods that Flask answers with each GET."""


def test_every_route_stands_in_the_document_and_every_call_of_the_document_is_a_route(registry: Driver) -> None:
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in registry.app.url_map.iter_rules()
        for method in (rule.methods or set()) - UNASKED
    }
    described = {(path, method.upper()) for path, methods in document()["paths"].items() for method in methods}
    assert described == routes


def test_every_parameter_of_a_path_is_described_and_every_operation_has_its_own_name() -> None:
    names = []
    for path, methods in document()["paths"].items():
        for call in methods.values():
            given = {each["name"] for each in call.get("parameters", ()) if each["in"] == "path"}
            assert given == set(re.findall(r"{(\w+)}", path)), path
            names.append(call["operationId"])
    assert len(set(names)) == len(names)


def test_every_shape_is_a_json_schema_and_every_reference_leads_to_one() -> None:
    schemas = document()["components"]["schemas"]
    for schema in schemas.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document())))
    assert references <= schemas.keys()


def test_every_call_that_may_be_refused_names_the_problem_document() -> None:
    for path, methods in document()["paths"].items():
        for call in methods.values():
            for status, answer in call["responses"].items():
                if status[0] in "45" and path != "/readyz":
                    assert "application/problem+json" in answer["content"], (path, status)
            if call["security"]:
                assert {"401", "403"} <= call["responses"].keys(), path


def schema(path: str) -> Any:
    """The part of the document's schemas with this path."""
    found: Any = document()["components"]["schemas"]
    for step in path.split("/"):
        found = found[step]
    return found


LIMITS = Limits()
DOMAIN = "Domain/properties"
ISSUER = f"{DOMAIN}/issuers/items/properties"
RESOURCE = f"{DOMAIN}/access_tokens/additionalProperties/properties"
ASKED = "ExchangeWanted/properties"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{ISSUER}/jwks/properties/keys/maxItems", MAX_GIVEN_KEYS),
        (f"{ISSUER}/ca/maxLength", MAX_CA),
        (f"{DOMAIN}/derived_scopes/maxItems", MAX_DERIVATIONS),
        (f"{DOMAIN}/derived_scopes/items/properties/to/maxItems", MAX_DERIVED),
        (f"{RESOURCE}/scopes/maxItems", MAX_ACCESS_SCOPES),
        (f"{RESOURCE}/lifetime/minimum", ACCESS_LIFETIMES[0]),
        (f"{RESOURCE}/lifetime/maximum", ACCESS_LIFETIMES[-1]),
        (f"{DOMAIN}/entry/maximum", 10**MAX_DIGITS - 1),
        ("JoinTokenWanted/properties/ttl/maximum", LIMITS.join_ttl),
        ("JoinTokenWanted/properties/uses/maximum", LIMITS.join_uses),
        ("OperatorTokenWanted/properties/ttl/maximum", LIMITS.operator_ttl),
        ("OperatorTokenWanted/properties/role/enum", [role.name.lower() for role in Role]),
        ("JoinToken/properties/id/pattern", f"^{TOKEN_ID.pattern}$"),
        ("OperatorToken/properties/id/pattern", f"^{TOKEN_ID.pattern}$"),
        ("Histories/properties/statements/maxItems", MAX_STATEMENTS),
        ("AccessWanted/properties/client_assertion_type/const", CLIENT_ASSERTION_TYPE),
        ("AccessWanted/properties/grant_type/const", CLIENT_CREDENTIALS),
        (f"{ASKED}/client_assertion_type/const", CLIENT_ASSERTION_TYPE),
        (f"{ASKED}/grant_type/const", GRANT),
        (f"{ASKED}/topic/pattern", f"^{TOPIC.pattern}$"),
        (f"{ASKED}/event_payload_hash/pattern", f"^{PAYLOAD_HASH.pattern}$"),
        ("Exchanged/properties/issued_token_type/const", JWT),
    ],
)
def test_a_limit_or_constant_in_the_document_is_the_one_of_the_code(path: str, value: object) -> None:
    assert schema(path) == value


def test_the_query_parameters_have_the_limits_of_the_code() -> None:
    found = {
        (path, given["name"]): given["schema"]
        for path, methods in document()["paths"].items()
        for call in methods.values()
        for given in call.get("parameters", ())
    }
    assert found["/v1/changes", "wait"]["maximum"] == LIMITS.wait
    assert found["/v1/services/{service}/keys/{thumbprint}", "reason"]["enum"] == [reason.value for reason in Reason]
    for name in ("after", "limit", "since", "seq", "from", "to"):
        limits = {of["maximum"] for (_, given), of in found.items() if given == name and of["type"] == "integer"}
        assert limits == {10**MAX_DIGITS - 1}, name


def test_event_ids_have_the_shape_that_the_code_checks() -> None:
    shape = re.compile(schema(f"{ASKED}/event_id/pattern"))
    for text in ("a", "!" * 200, "~", "a" * 201, "", "a b", "é"):
        assert bool(shape.fullmatch(text)) == bool(ID_PATTERN.fullmatch(text)), text


def error_classes(root: type[PeersealError]) -> Iterator[type[PeersealError]]:
    yield root
    for below in root.__subclasses__():
        yield from error_classes(below)


def test_the_answers_name_codes_that_errors_with_this_status_have() -> None:
    """Codes that depend on the case, such as those of keys, stand in the docstrings of their errors."""
    known = {(str(each.status), each.code) for each in error_classes(PeersealError)}
    named = {
        (status, code)
        for methods in document()["paths"].values()
        for call in methods.values()
        for status, answer in call["responses"].items()
        if status in ("401", "403", "412", "428", "503")
        for code in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", answer["description"])
    }
    assert len(named) > 10
    assert named <= known
    assert {code for status, code in known if status in ("412", "428")} == {
        errors.PreconditionFailed.code,
        errors.PreconditionRequired.code,
    }


def test_the_metrics_have_the_media_type_that_is_served() -> None:
    [media] = document()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert media == CONTENT_TYPE_LATEST


def test_the_document_is_served_with_an_etag(registry: Driver) -> None:
    answer = registry.client.get("/openapi.json")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert answer.get_json() == document()
    again = registry.client.get("/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_behind_a_proxy_that_strips_a_prefix_the_document_names_it(registry: Driver) -> None:
    node = registry.node(external_prefix="/trust")
    assert node.client.get("/openapi.json").get_json()["servers"] == [{"url": "/trust"}]
    node.close()


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name == "href"}
        self.ids |= {value or "" for name, value in attrs if name == "id"}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_names_every_call_and_runs_and_fetches_nothing(registry: Driver) -> None:
    answer = registry.client.get("/docs")
    assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8")
    page = Elements()
    page.feed(answer.text)
    for path, methods in document()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page.text
    assert not page.tags & {"script", "link", "img", "iframe", "form", "object"}
    assert not {name for name in page.attributes if name.startswith("on") or name in ("style", "src")}
    assert {link.removeprefix("#") for link in page.links} - page.ids == {"openapi.json", "docs/errors"}
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
