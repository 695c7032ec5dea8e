"""All error codes as a page for people: what happened, likely causes, and what to do."""

import re
from functools import cache
from html import escape
from importlib import resources

import yaml
from flask import Blueprint, Response
from werkzeug.datastructures import Headers

from registry.services.documents.answer_cache import PublicAnswer
from registry.web.published import published
from registry.web.routes.openapi import POLICY, STYLE, Json, rendered

blueprint = Blueprint("error_codes", __name__)

_CODE = re.compile(r"`([^`]+)`")
_TITLES = ("Code", "Status", "What happened", "Likely causes", "What to do")


@blueprint.get("/docs/errors")
def show() -> Response:
    """The page. Each code has an anchor of its name."""
    response = published(_page())
    response.headers = Headers({**response.headers, "Content-Security-Policy": POLICY})
    return response


@cache
def _page() -> PublicAnswer:
    """The links are relative: a proxy in front may strip a prefix."""
    found: list[Json] = yaml.safe_load(resources.files("registry.web").joinpath("errors.yaml").read_text("utf-8"))
    page = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Error codes</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        "<h1>Error codes</h1><p>Each refusal and each error has a stable <code>code</code>; programs decide by it. An"
        " answer over HTTP has it in a problem document (RFC 9457), whose <code>request_id</code> finds the details in"
        " the registry’s log. The status is that of the answer; – means that the code is in exceptions, logs or"
        " commands only."
        f'<p><a href="../docs">The HTTP interface</a>.{"".join(map(_section, found))}</html>\n'
    )
    return rendered(page.encode("utf-8"), "text/html; charset=utf-8")


def _section(section: Json) -> str:
    titles = "".join(f'<th scope="col">{title}' for title in _TITLES)
    return f"<h2>{escape(section['name'])}</h2><table><tr>{titles}{''.join(map(_row, section['codes']))}</table>"


def _row(row: Json) -> str:
    code = escape(row["code"])
    cells = "".join(f"<td>{_marked(row[name])}" for name in ("status", "happened", "causes", "remedy"))
    return f'<tr id="{code}"><th scope="row"><code>{code}</code>{cells}'


def _marked(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))
