"""A transport adapter of `requests` whose calls end in time, and that decides to which machine a call may connect.

A URL on loopback is never proxied and leads to this machine or nowhere. A URL that a stranger named may have to lead
elsewhere. `peerseal.transport.timed_connection` has the connections.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from peerseal.protocol.hosts import is_this_machine, may_be_other_machine
from peerseal.transport.timed_connection import with_timed_connections

_ANY_PATH = "/-"
"""A path to ask `requests` about: the route is the same for every path."""


class Route(NamedTuple):
    """The way to a server: the pool of its connections, what a request line has before a path, and the headers that
    `requests` adds to each request."""

    pool: HTTPConnectionPool
    before_path: str
    headers: Mapping[str, str]


class TimedAdapter(HTTPAdapter):
    """An HTTPAdapter whose calls end when the thread's time is over (`no_longer_than`), also where a server falls
    silent. By `send`, `requests` raises ReadTimeout for a head, and ConnectionError for a body, ours or the answer's.

    With ``elsewhere`` no connection of its own leads to this machine, by whatever name: to loopback, a link-local,
    unspecified or multicast address, or an address of one of the machine's own interfaces. The address is checked once
    the connection is made, before anything is sent. Where a proxy connects, only the URL can be checked.

    ``ca`` holds the certificates (PEM) that https is checked with, and no others, whatever ``verify`` says.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "_elsewhere", "_ca"]  # noqa: RUF012 - as HTTPAdapter declares it

    def __init__(self, *, elsewhere: bool = False, ca: str | None = None, **options: Any) -> None:
        self._elsewhere = elsewhere
        self._ca = ca
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*arguments, ca_cert_data=self._ca, **options)
        with_timed_connections(self.poolmanager, self._elsewhere)

    def proxy_manager_for(self, proxy: str, **options: Any) -> PoolManager:
        """See HTTPAdapter."""
        return with_timed_connections(super().proxy_manager_for(proxy, ca_cert_data=self._ca, **options))

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """See HTTPAdapter, which adds the public authorities to those of ``ca``."""
        if self._ca is None:
            super().cert_verify(conn, url, verify, cert)
        else:
            conn.cert_reqs, conn.ca_certs, conn.ca_cert_dir = "CERT_REQUIRED", None, None

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """See HTTPAdapter. A proxy is not used for a URL on loopback."""
        request, proxies = self._checked(request, proxies)
        return super().send(request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies)

    def route(self, base: str, ca_file: str | None) -> Route:
        """The way to the server with that base URL: by the proxies and with the certificates that the environment
        names. Raises RequestException, or OSError where the certificates cannot be read."""
        with requests.Session() as session:
            session.auth = _no_auth
            request = session.prepare_request(requests.Request("GET", base + _ANY_PATH))
            settings = session.merge_environment_settings(str(request.url), {}, stream=True, verify=ca_file, cert=None)
        verify, cert = settings["verify"], settings["cert"]
        request, proxies = self._checked(request, settings["proxies"])
        pool = self.get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        self.cert_verify(pool, str(request.url), verify, cert)
        headers = {name: str(value) for name, value in request.headers.items()}
        return Route(pool, self.request_url(request, proxies).removesuffix(_ANY_PATH), headers)

    def _checked(
        self, request: requests.PreparedRequest, proxies: dict[str, str] | None
    ) -> tuple[requests.PreparedRequest, dict[str, str] | None]:
        """The request and its proxies: none for a URL on loopback. Raises InvalidURL."""
        host = _host(request)
        if "%" in host and ":" not in host:  # http.client asserts that it is the zone of an IPv6 address
            raise requests.exceptions.InvalidURL("a name of a host holds a percent sign", request=request)
        if self._elsewhere and not may_be_other_machine(host):
            raise requests.exceptions.InvalidURL(f"{host} is this machine", request=request)
        if is_this_machine(host) and select_proxy(str(request.url), proxies):
            proxies, request = None, request.copy()
            request.headers.pop("Proxy-Authorization", None)  # a redirect brings it along
        return request, proxies


def _host(request: requests.PreparedRequest) -> str:
    """The host as urllib3, which makes the connection, reads it; empty where it reads none."""
    try:
        return parse_url(str(request.url)).host or ""
    except HTTPError:
        return ""


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps `requests` from looking into a netrc file, whose password would replace our token."""
    return request
