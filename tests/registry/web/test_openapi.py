"""The OpenAPI document: it says all that the application answers, and nothing else; and the page made of it."""

import re
from html.parser import HTMLParser

import jsonschema_rs

from registry.web.openapi.document import document
from tests.registry.driver import Driver

UNASKED = {"HEAD", "OPTIONS"}
"""Methods that Flask answers beside each GET."""


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
    assert {link.removeprefix("#") for link in page.links} - page.ids == {"openapi.json"}
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
