"""``peerseal sign``: the Authorization header of one request, for curl and other programs without the SDK."""

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from peerseal.commands.own_identity import own_identity
from peerseal.errors import ConfigurationError
from peerseal.protocol.tokens.request import REQUEST_LIFETIME
from peerseal.runtime.settings import read_bytes
from peerseal.runtime.terminal import say, say_json
from peerseal.wsgi import MAX_BODY

_CHANGED_ON_THE_WAY = re.compile(r"[^?]*/\.{1,2}(?:[/?]|\Z)|.*?[^!-~]|.*#", re.DOTALL)
"""What curl changes before it sends the target: dot segments, blanks and other characters, fragments."""


def add_sign(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "sign",
        help="print the Authorization header of one request",
        description="Prints the Authorization header with which AUDIENCE accepts one request, once, within a minute.",
        epilog='examples:\n  curl -H "$(peerseal sign billing GET http://billing:8080/invoices/7)" '
        "http://billing:8080/invoices/7\n"
        "  peerseal sign billing POST http://billing:8080/invoices --data @new.json --type application/json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("audience", metavar="AUDIENCE", help="the service that is called")
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("url", metavar="URL", help="as it is called; the scheme and the host are not signed")
    parser.add_argument(
        "--data", default="", metavar="TEXT", help="the body: the text, @FILE, or @- for standard input"
    )
    parser.add_argument("--type", dest="content_type", metavar="TYPE", help="the Content-Type that is sent with it")
    parser.add_argument("--json", action="store_true", dest="as_json", help="as JSON, with the lifetime in seconds")
    parser.set_defaults(run=_print_header)


def _print_header(arguments: argparse.Namespace) -> int:
    """Prints the header. Raises as `own_identity` does, and ConfigurationError or UnsignableRequest for a request that
    cannot be signed."""
    target, body = target_of(arguments.url), _body(arguments.data)
    headers = {} if arguments.content_type is None else {"content-type": arguments.content_type}
    with own_identity() as identity:
        token = identity.sign_request(
            arguments.audience, method=arguments.method.upper(), target=target, body=body, headers=headers
        )
    if arguments.as_json:
        say_json({"Authorization": f"Bearer {token}", "expires_in": REQUEST_LIFETIME})
    else:
        say(f"Authorization: Bearer {token}")
    return 0


def target_of(url: str) -> str:
    """The request-target (origin form, RFC 9112 section 3.2.1) that a client sends for the URL. Raises
    ConfigurationError for a URL that clients change before they send it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{url!r} cannot be read as a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(f"{url!r} is no URL: expected http(s)://host[:port]/path")
    target = url.split("://", 1)[1].removeprefix(parts.netloc) or "/"
    target = f"/{target}" if target.startswith("?") else target
    if _CHANGED_ON_THE_WAY.match(target):
        raise ConfigurationError(
            f"clients change the target {target!r} before they send it: leave out dot segments and the fragment, and"
            " write blanks and other characters with percent signs"
        )
    return target


def _body(data: str) -> bytes:
    """The bytes of the body. Raises ConfigurationError."""
    if data == "@-":
        content = sys.stdin.buffer.read(MAX_BODY + 1)
        if len(content) > MAX_BODY:
            raise ConfigurationError(f"standard input holds more than {MAX_BODY} bytes")
        return content
    return read_bytes(Path(data[1:]), data[1:], MAX_BODY) if data.startswith("@") else data.encode()
