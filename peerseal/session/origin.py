"""The origin of the service that a session calls, and the targets that it signs."""

import re

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from peerseal.errors import ConfigurationError, UnsignableRequest
from peerseal.protocol.hosts import is_valid_host
from peerseal.protocol.plain import plain_text

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PORTS = {"http": 80, "https": 443}
_NO_BASE_URL = "a base URL is http(s)://host[:port][/path], and nothing else"


class Origin:
    """A scheme, a host and a port (RFC 6454), at which a session reaches one service.

    ``url`` is the origin, ``prefix`` the path of the base URL without a slash at its end. ``name`` is the origin in the
    one spelling of RFC 6454.
    """

    def __init__(self, base_url: str) -> None:
        """Raises ConfigurationError for a URL that is not ``http(s)://host[:port][/path]``. The error does not show the
        URL, which may contain a password."""
        text = plain_text(base_url)
        try:
            parsed = parse_url(text or "")
        except LocationParseError:
            raise ConfigurationError(_NO_BASE_URL) from None  # the cause shows the URL
        if parsed.scheme not in _PORTS or not is_valid_host(parsed.host, parsed.port) or "\\" in (text or ""):
            raise ConfigurationError(_NO_BASE_URL)
        if parsed.auth or parsed.query or parsed.fragment:
            raise ConfigurationError(_NO_BASE_URL)
        self._key = _origin_key(parsed)
        self.url = f"{parsed.scheme}://{parsed.netloc}"
        self.name = f"{parsed.scheme}://{parsed.host}" if _is_default(parsed) else self.url
        self.prefix = _path(parsed).rstrip("/")

    def resolve(self, url: str) -> str:
        """The URL of a call: an absolute one as it is, any other text as a path below the base URL."""
        if _SCHEME.match(url):
            return url
        return f"{self.url}{self.prefix}{'' if url.startswith('/') else '/'}{url}"

    def holds(self, url: str) -> bool:
        """Whether the URL is below the base URL after its dot segments are resolved."""
        return (self.target(url) or "").startswith(f"{self.prefix}/")

    def target(self, url: str) -> str | None:
        """The origin-form target that is sent for ``url``; None if it belongs to another origin.

        It has the one spelling that requests, urllib3 and proxies do not change: no dot segments, escapes in upper
        case, one slash at the start. Raises UnsignableRequest for a URL with a user name.
        """
        try:
            parsed = parse_url(url)
        except LocationParseError:
            return None  # requests reports the error
        if _origin_key(parsed) != self._key:
            return None
        if parsed.auth:
            raise UnsignableRequest("the URL has a user name: signed requests carry none, remove it")
        return _path(parsed) + (f"?{parsed.query}" if parsed.query else "")


def origin_url(url: str) -> str:
    """The origin of a URL, such as ``http://billing:8080``. Raises ConfigurationError for a URL that has none; the
    error does not show the URL."""
    try:
        parsed = parse_url(url)
    except LocationParseError:
        parsed = Url()
    if parsed.netloc is None or parsed.scheme not in _PORTS:
        raise ConfigurationError("this is no URL of a service: expected http(s)://host[:port]/path")
    return Origin(f"{parsed.scheme}://{parsed.netloc}").url


def _origin_key(parsed: Url) -> tuple[str | None, str | None, int | None]:
    return parsed.scheme, parsed.host, parsed.port or _PORTS.get(parsed.scheme or "")


def _is_default(parsed: Url) -> bool:
    return parsed.port in (None, _PORTS.get(parsed.scheme or ""))


def _path(parsed: Url) -> str:
    return "/" + (parsed.path or "").lstrip("/")
