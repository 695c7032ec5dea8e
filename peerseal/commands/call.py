"""``peerseal call`` makes one signed call, as a person would with HTTPie, and prints the answer."""

import argparse
import base64
import json
import os
import re
import sys
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests
from requests.structures import CaseInsensitiveDict
from urllib3.util import SKIP_HEADER

from peerseal.commands.arguments import Subcommands, add_command, seconds
from peerseal.commands.own_identity import own_identity
from peerseal.commands.tokens import given_body, method_of, shown_url
from peerseal.errors import (
    ConfigurationError,
    ContentTooLarge,
    ContentUnreadable,
    Forbidden,
    MalformedToken,
    PeersealError,
    TokenError,
    TrustUnavailable,
)
from peerseal.protocol.encoding import HTTP_TOKEN, strict_json
from peerseal.requests import refusal_of
from peerseal.runtime.settings import named
from peerseal.runtime.terminal import naming, on_terminal, say, say_json
from peerseal.session.origin import origin_url
from peerseal.session.retries import cause_of
from peerseal.transport.failure_words import unusable_authorities
from peerseal.verify.context import REQUEST_ID, serving
from peerseal.wsgi_environ import MAX_BODY

CLIENT_ERROR: Final = 4
"""The exit code for a status 4xx."""
SERVER_ERROR: Final = 5
"""The exit code for a status 5xx."""

_NO_ANSWER = 1
_EXIT_CODES = {2: 0, 3: 0, 4: CLIENT_ERROR, 5: SERVER_ERROR}
"""By the first digit of the status; any other status is no final answer (RFC 9110 section 15)."""
_WIDTH = 80
_PART = 64 * 1024
_LAID_OUT = 1024 * 1024
"""Bytes of JSON that is indented for people: the indent of nested values may take more room than they do."""
_SEPARATOR = re.compile(r"(?<!\\)(?::=@?|==|=@?|:)")
_ESCAPED = re.compile(r"\\([:=@])")
_FRAMING = ("content-length", "transfer-encoding")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # RFC 3986 section 3.1
_LOCAL = re.compile(r":(?=[0-9])")
_REFUSALS: tuple[type[PeersealError], ...] = (
    *TokenError.__subclasses__(),
    *Forbidden.__subclasses__(),
    *(TrustUnavailable, ContentTooLarge, ContentUnreadable),
)
_MEANINGS = {error.code: error.__doc__ for error in _REFUSALS}
"""What the codes of a callee's verification mean."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the items of a call say. ``body`` is None where no item and no ``--raw`` gives one."""

    headers: Mapping[str, str | None]
    query: tuple[tuple[str, str], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the callee answered. ``response`` is without its body, which is in ``body``."""

    response: requests.Response
    body: bytes


def add_call(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "call",
        _call,
        summary="make one signed call, and print the answer",
        description="Makes one call to AUDIENCE, signed by the service in PEERSEAL_SERVICE.",
        notes="items, as HTTPie's; :=@FILE and =@FILE take the value from a file:\n"
        "  name=text  name:=JSON   a member of the JSON object that is the body\n"
        "  name==text              a parameter of the query\n"
        "  Name:value              a header",
        examples=(
            "peerseal call billing GET http://billing:8080/invoices limit==10",
            "peerseal call billing POST :8080/invoices customer=ada amount:=250",
        ),
        exit_codes="0 a status 2xx or 3xx, 4 a status 4xx, 5 a status 5xx; without an answer 1 an error, 2 wrong"
        " usage, 3 the registry cannot be reached",
        as_json="print {status, headers, body} as JSON",
    )
    parser.usage = "%(prog)s [OPTION...] AUDIENCE METHOD URL [ITEM...]"
    parser.add_argument("audience", metavar="AUDIENCE", help="the service that is called")
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("url", metavar="URL", help="http:// may be left out; :8080/path is on this host")
    parser.add_argument("items", nargs="*", default=[], metavar="ITEM", help="see below")
    parser.add_argument(
        "--raw", metavar="TEXT", help="the body: the text, @FILE, or @- for standard input; JSON unless a header says"
    )
    parser.add_argument("-v", "--headers", action="store_true", help="print the headers of the answer too")
    parser.add_argument(
        "--follow", action="store_true", help="follow redirects; only those within the service are signed"
    )
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="SECONDS", help="time for the call [30]")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates (PEM) to check https with")


def _call(arguments: argparse.Namespace) -> int:
    """Makes the call and prints the answer. Raises as `own_identity` does, and ConfigurationError or
    UnsignableRequest."""
    method, url = method_of(arguments.method), url_of(arguments.url)
    content = content_of(arguments.items, arguments.raw)
    if arguments.ca is not None and not arguments.ca.is_file():
        raise ConfigurationError(f"--ca {arguments.ca}: no such file")
    if arguments.ca is None and url.startswith("https:") and (wrong := unusable_authorities(os.environ)):
        raise ConfigurationError(wrong)
    # the callee logs the id, unless an item without a value leaves it out
    with nullcontext("") if content.headers.get(REQUEST_ID, "") is None else serving(None) as request_id:
        try:
            answer = _answer(arguments, method, url, content)
        except requests.RequestException as error:
            say(f"Error: {origin_url(url)} gives no answer: {cause_of(error) or error}", error=True)
            return _NO_ANSWER
    if arguments.as_json:
        say_json(_as_json(answer), indent=2 if len(answer.body) <= _LAID_OUT else None)
    else:
        _print(answer, request_id, headers=arguments.headers)
    return _EXIT_CODES.get(answer.response.status_code // 100, _NO_ANSWER)


def _answer(arguments: argparse.Namespace, method: str, url: str, content: Content) -> Answer:
    limits = {"timeout": arguments.timeout, "deadline": arguments.timeout, "retries": 0}
    body: deque[bytes] = deque(maxlen=1)  # of the last answer, after its redirects
    with own_identity() as identity, identity.session(arguments.audience, origin_url(url), **limits) as session:
        answer = session.request(
            method,
            url,
            params=content.query,
            data=content.body,
            headers=content.headers,
            allow_redirects=arguments.follow,
            verify=None if arguments.ca is None else str(arguments.ca),
            stream=True,
            # The session calls it within the deadline, and for a redirect before requests reads the body itself.
            hooks={"response": lambda answer, **_: body.append(_body_of(answer))},
        )
    return Answer(answer, body[0])


def _body_of(answer: requests.Response) -> bytes:
    """The decoded body. Raises PeersealError for one that is larger than `MAX_BODY`: compressed, it may fill the memory
    all the same."""
    body = bytearray()
    for part in answer.iter_content(_PART):
        body += part
        if len(body) > MAX_BODY:
            raise PeersealError(
                f"{origin_url(answer.url)} answers with more than {MAX_BODY} bytes: peerseal sign makes the header for"
                " curl, which writes them to a file"
            )
    return bytes(body)


# ---- what is sent


def url_of(text: str) -> str:
    """The URL of HTTPie's short forms: ``:8080/path`` and ``:/path`` are on this host, and ``http://`` may be left
    out. Raises ConfigurationError."""
    _check_text("the URL", text)
    if text.startswith(":"):
        url = "http://localhost" + (text if _LOCAL.match(text) else text[1:])
    else:
        url = text if _SCHEME.match(text) else f"http://{text}"
    return named(shown_url(text), _url_with_origin, url)


def _url_with_origin(url: str) -> str:
    origin_url(url)
    return url


def content_of(items: Iterable[str], raw: str | None = None) -> Content:
    """What the items and the option ``--raw`` say. Raises ConfigurationError, which names the item."""
    headers: CaseInsensitiveDict[str | None] = CaseInsensitiveDict()
    data: dict[str, Any] = {}
    query: list[tuple[str, str]] = []
    for item in items:
        name, separator, value = _parts(item)
        if separator == "==":
            query.append((name, value))
            continue
        known = headers if separator == ":" else data
        if name in known:
            raise ConfigurationError(f"{name} is given twice")
        if separator == ":":
            headers[_header(name)] = _header_value(name, value.strip()) or _unsent(name)
        else:
            data[name] = _member(name, separator, value)
    if data and raw is not None:
        raise ConfigurationError("--raw and items both give a body: give one of them")
    body = given_body(raw) if raw is not None else json.dumps(data).encode() if data else None
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
        headers.setdefault("Accept", "application/json, */*;q=0.5")
    return Content(headers, tuple(query), body)


def _parts(item: str) -> tuple[str, str, str]:
    """Name, separator and value. Raises ConfigurationError."""
    found = _SEPARATOR.search(item)
    if found is None or not found.start():
        raise ConfigurationError(f"{item!r} is no item: expected name=text, name:=JSON, name==text or Header:value")
    name, value = (_ESCAPED.sub(r"\1", part) for part in (item[: found.start()], item[found.end() :]))
    _check_text(name, item)
    return name, found[0], value


def _check_text(what: str, text: str) -> None:
    """Passes for text that can be sent: an argument may hold bytes that are none. Raises ConfigurationError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{what}: not UTF-8 text; a body of other bytes is for --raw @FILE") from error


def _header(name: str) -> str:
    """The name of a header. Raises ConfigurationError for what is none, and for one that says where the body ends."""
    if not re.fullmatch(HTTP_TOKEN, name):
        raise ConfigurationError(f"{name!r} is no name of a header: expected one such as Content-Type")
    if name.lower() in _FRAMING:
        raise ConfigurationError(f"{name}: the command sends it as the body needs it; leave the item out")
    return name


def _header_value(name: str, value: str) -> str:
    """The value of a header (RFC 9110 section 5.5). Raises ConfigurationError for what no header can have."""
    if wrong := re.search(r"[^\t -~\x80-\xff]", value):
        raise ConfigurationError(
            f"{name}: {wrong[0]!r} stands in the value: a header has no line breaks, other controls or characters"
            " beyond U+00FF"
        )
    return value


def _unsent(name: str) -> str | None:
    """The value of a header that is not sent, as HTTPie's without a value: None for `requests`, and a mark for the two
    that urllib3 adds once more."""
    return SKIP_HEADER if name.lower() in ("accept-encoding", "user-agent") else None


def _member(name: str, separator: str, value: str) -> Any:
    """The value of a member of the body. Raises ConfigurationError."""
    if "[" in name:
        raise ConfigurationError(f"{name}: nested names are HTTPie's; give the whole value, such as items:='[1]'")
    try:
        text = given_body(f"@{value}").decode() if separator.endswith("@") else value
        return strict_json(text) if ":" in separator else text
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name}: not UTF-8 text: {error}") from error
    except MalformedToken as error:
        raise ConfigurationError(f"{name}: {error}") from error


# ---- what is printed


def _as_json(answer: Answer) -> dict[str, Any]:
    """The answer. A body that is neither JSON nor UTF-8 text is in ``body_base64``."""
    shown: dict[str, Any] = {"status": answer.response.status_code, "headers": dict(answer.response.headers)}
    text = _text(answer)
    if text is None:
        return {**shown, "body": None, "body_base64": base64.b64encode(answer.body).decode()}
    value = _json(answer)
    return {**shown, "body": text if value is None else value[0]}


def _print(answer: Answer, request_id: str, *, headers: bool) -> None:
    """For people; where standard output is no terminal, the bytes of the body, as HTTPie does."""
    if headers or on_terminal():
        say(f"{_version(answer)} {answer.response.status_code} {answer.response.reason}")
    if headers:
        say(*(f"{name}: {value}" for name, value in answer.response.headers.items()), "")
    refusal = _refusal(answer, request_id)
    if refusal is not None:
        say(*refusal, error=True)
    if not on_terminal():
        _write(answer.body)
    elif refusal is None:
        say(*_lines(answer))


def _version(answer: Answer) -> str:
    return "HTTP/1.0" if answer.response.raw.version == 10 else "HTTP/1.1"


def _refusal(answer: Answer, request_id: str) -> list[str] | None:
    """The refusal of the callee in words; None for any other answer. ``request_id`` was sent, unless an item named
    another one."""
    refusal = refusal_of(answer.response)
    if refusal is None:
        return None
    sent = answer.response.request.headers.get(REQUEST_ID)
    known_as = refusal.request_id or (sent if isinstance(sent, str) else request_id)
    lines = [f"Error: {refusal.code}: {refusal.title or answer.response.reason}"]
    told = f"The callee's log names this request {known_as}." if known_as else None
    for text in (refusal.detail, _MEANINGS.get(refusal.code), told):
        if text:
            lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines


def _lines(answer: Answer) -> Iterator[str]:
    """The body for a terminal."""
    value, text = _json(answer), _text(answer)
    if value is not None and len(answer.body) <= _LAID_OUT:
        yield from json.dumps(value[0], indent=2, ensure_ascii=False).split("\n")
    elif text is None:
        yield f"{len(answer.body)} bytes that are no text: redirect the output to a file"
    else:
        yield from text.expandtabs().splitlines()


def _json(answer: Answer) -> tuple[Any] | None:
    """The value of a body that is JSON, which may be null; None for any other body, and for JSON that programs read in
    different ways or not at all."""
    if not _media_type(answer).endswith("json"):
        return None
    try:
        return (strict_json(answer.body),)
    except MalformedToken:
        return None


def _text(answer: Answer) -> str | None:
    try:
        return answer.body.decode()
    except UnicodeDecodeError:
        return None


def _media_type(answer: Answer) -> str:
    return answer.response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _write(content: bytes) -> None:
    """Write the bytes as they are. Raises BrokenPipeError where the reader is gone."""
    if sys.stdout is not None:
        with naming("standard output"):
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
