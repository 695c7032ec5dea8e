"""The description of the HTTP interface: ``openapi.yaml``, served to programs as JSON and to people as a page.

The page holds no script, no style but one that its Content-Security-Policy allows by hash, and nothing from elsewhere.
"""

import base64
import hashlib
import time
from functools import cache
from html import escape
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml
from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.datastructures import Headers

from peerseal.protocol.encoding import canonical_json
from registry.services.documents.answer_cache import PublicAnswer
from registry.web.published import published
from registry.web.wire import registry

Json = dict[str, Any]

blueprint = Blueprint("described", __name__)

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
code { font: .95em ui-monospace, monospace } table { border-collapse: collapse; margin: .5rem 0 1rem }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #d8dde4 }
details { margin: .25rem 0; border-left: 3px solid #c3ccd8; padding-left: .75rem } summary { cursor: pointer }
h2 { margin-top: 2.5rem } pre { overflow-x: auto; background: #f3f5f8; padding: .75rem }
@media (prefers-color-scheme: dark) {
  body { background: #14181f; color: #dfe5ee } pre { background: #1e242e } td, th { border-color: #39424f }
  a { color: #8ab4f8 }
}
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The page's Content-Security-Policy."""


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """The OpenAPI 3.1 document."""
    return published(_rendered_document(registry().settings.external_prefix))


@blueprint.get("/docs")
def docs() -> Response:
    """The same as a page."""
    response = published(_rendered_page())
    response.headers = Headers({**response.headers, "Content-Security-Policy": POLICY})
    return response


@cache
def document(prefix: str = "") -> Json:
    """The OpenAPI document. ``prefix`` is the path that a proxy in front of the registry strips."""
    found: Json = yaml.safe_load(resources.files("registry.web").joinpath("openapi.yaml").read_text("utf-8"))
    del found["x-shared"]  # the YAML anchors
    found["info"]["version"] = _version()
    found["servers"] = [{"url": prefix or "/"}]
    metrics = found["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    metrics[CONTENT_TYPE_LATEST] = metrics.pop("text/plain")  # its version depends on prometheus_client's
    return found


def _version() -> str:
    try:
        return version("peerseal")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"


@cache
def _rendered_document(prefix: str) -> PublicAnswer:
    return rendered(canonical_json(document(prefix)), "application/json")


@cache
def _rendered_page() -> PublicAnswer:
    return rendered(page(document()).encode("utf-8"), "text/html; charset=utf-8")


def rendered(body: bytes, content_type: str) -> PublicAnswer:
    """A page or document that stays as it is while this process runs."""
    now = int(time.time())
    return PublicAnswer.of(body, content_type, 0, 0, now, now)


def page(document: Json) -> str:
    """The document as one HTML page."""
    info = document["info"]
    groups = "".join(_group(tag["name"], document["paths"]) for tag in document["tags"])
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    schemes = "".join(
        f"<tr><td><code>{name}</code><td>{escape(scheme['description'])}"
        for name, scheme in document["components"]["securitySchemes"].items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}"
        f'<p>For programs: <a href="openapi.json">openapi.json</a>. What each code of an error means,'
        f' and what to do: <a href="docs/errors">error codes</a>.<h2>Who calls</h2><table>{schemes}</table>'
        f"{groups}<h2>Schemas</h2>{schemas}</html>\n"
    )


def _group(name: str, paths: Json) -> str:
    calls = [
        _call(method, path, call)
        for path, methods in paths.items()
        for method, call in methods.items()
        if name in call["tags"]
    ]
    return f"<h2>{escape(name)}</h2>{''.join(calls)}"


def _call(method: str, path: str, call: Json) -> str:
    head = f"<code>{method.upper()} {escape(path)}</code> · {escape(call['summary'])}"
    asked = "".join(
        f"<tr><td><code>{escape(given['name'])}</code><td>{given['in']}"
        f"<td>{'required' if given['required'] else ''}<td>{escape(given['description'])}"
        for given in call.get("parameters", ())
    )
    body = call.get("requestBody")
    if body is not None:
        asked += f"<tr><td>body<td><td>required<td>{_linked(next(iter(body['content'].values()))['schema'])}"
    answered = "".join(
        f"<tr><td>{status}<td>{escape(found['description'])}<td>{_media(found)}"
        for status, found in sorted(call["responses"].items())
    )
    who = " or ".join(", ".join(names) or "without a token" for names in call["security"]) or "anyone"
    asks = f"<table>{asked}</table>" if asked else ""
    return f"<details><summary>{head}</summary><p>Called by: {who}.{asks}<table>{answered}</table></details>"


def _media(found: Json) -> str:
    return ", ".join(f"{escape(media)} {_linked(of['schema'])}" for media, of in found.get("content", {}).items())


def _linked(schema: Json) -> str:
    """Links to the named schemas; empty for a schema without a name."""
    names = [of["$ref"].rpartition("/")[2] for of in schema.get("oneOf", [schema]) if "$ref" in of]
    return " or ".join(f'<a href="#{name}">{name}</a>' for name in names)


def _schema(name: str, schema: Json) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(member)}</code><td>{'' if member in schema.get('required', ()) else 'optional'}"
        f"<td>{_kind(of)}<td>{escape(str(of.get('description', '')))}"
        for member, of in schema.get("properties", {}).items()
    )
    return f'<h3 id="{name}">{name}</h3><p>{escape(str(schema.get("description", "")))}<table>{rows}</table>'


def _kind(schema: Json) -> str:
    """The kind of a value in a few words."""
    if "$ref" in schema:
        return _linked(schema)
    if "oneOf" in schema:
        return " or ".join(map(_kind, schema["oneOf"]))
    if "enum" in schema:
        return escape(" | ".join(map(str, schema["enum"])))
    if "const" in schema:
        return escape(str(schema["const"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return escape(str(schema.get("type", "anything")))
