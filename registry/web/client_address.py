"""The address that a call comes from, also through proxies, and the account that the call counts for.

``REGISTRY_PROXIES`` is the number of proxies that add to ``X-Forwarded-For``. The address stands in that place from the
right; the client may have written everything to the left of it, quotation marks too. The header ``Forwarded`` (RFC
7239) is not read. Addresses in the form of its nodes are, since some proxies write them into X-Forwarded-For.
"""

import hashlib
import ipaddress
import logging
import re
from functools import lru_cache

from flask import Flask, current_app, request

from peerseal.protocol.hosts import inner_address

REMEMBERED = 10_000
"""Texts whose address a process remembers."""
LONGEST = 100
"""Characters of a text that are read: an address with zone, port and quotation marks has fewer."""
UNREADABLE_ACCOUNTS = 256
"""Accounts of one proxy for clients whose address cannot be read. A flooder whose text stays the same blocks few other
clients; a flooder whose text changes with each call gets this many times the limit, and no more."""

_EXTENSION = "peerseal-accounts"

log = logging.getLogger(__name__)

_PORT = r":(?:[0-9]{0,5}|_[A-Za-z0-9._-]+)"
_BRACKETED = re.compile(rf"\[([^\[\]]+)\](?:{_PORT})?")
_IPV6_AND_PORT = re.compile(r"([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*):[0-9]{1,5}")
"""Without brackets, as some proxies write it. The end is a port only where the whole text is no address."""
_WITH_PORT = re.compile(rf"([0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}){_PORT}")


class Accounts:
    """The accounts that calls count for: an IPv4 address, or the /64 of an IPv6 address, since one host can use all of
    it."""

    def __init__(self, proxies: int) -> None:
        self._proxies = proxies
        self._warned = False

    @classmethod
    def install(cls, app: Flask, proxies: int) -> None:
        """Has `calling_account` work in this application."""
        app.extensions[_EXTENSION] = cls(proxies)

    def of(self, peer: str, forwarded_for: str) -> str:
        """The account of a call: ``peer`` is the address of its connection, ``forwarded_for`` the header.

        Where the header names fewer clients than there are proxies, the call did not pass all of them, and counts for
        its peer. A call whose address cannot be read counts for one of UNREADABLE_ACCOUNTS of its peer.
        """
        own = network_of(peer[:LONGEST]) or "unknown"  # the peer of a Unix socket has no address
        members = [member for member in map(str.strip, forwarded_for.split(",")) if member]  # RFC 9110 section 5.6.1
        if not self._proxies or len(members) < self._proxies:
            return own
        text = members[-self._proxies][:LONGEST]
        return network_of(text) or self._unreadable(text, own)

    def _unreadable(self, text: str, own: str) -> str:
        """Also for ``unknown``, and for names that a proxy invents, perhaps a new one for each call (RFC 7239 section
        6.3)."""
        if not self._warned:  # once, because strangers may choose the texts
            self._warned = True
            log.warning(
                "X-Forwarded-For: %r, from %s, is no address, and its calls are limited as one of %d accounts; "
                "expected is an address in place %d from the right (REGISTRY_PROXIES)",
                *(text, own, UNREADABLE_ACCOUNTS, self._proxies),
            )
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return f"unreadable {int.from_bytes(digest[:4]) % UNREADABLE_ACCOUNTS} of {own}"


def calling_account() -> str:
    """The account that the current call counts for."""
    accounts: Accounts = current_app.extensions[_EXTENSION]
    return accounts.of(request.remote_addr or "", request.environ.get("HTTP_X_FORWARDED_FOR", ""))


@lru_cache(REMEMBERED)
def network_of(text: str) -> str | None:
    """An IPv4 address, also one that an IPv6 address translates, or the network of an IPv6 address; None where the text
    is no address."""
    address = address_in(text)
    if address is None:
        return None
    address = inner_address(address)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def address_in(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a text as proxies write it: alone, with a port, in brackets, in quotation marks, with a zone
    (X-Forwarded-For, and a node of RFC 7239 section 6). None for any other text."""
    text = text.strip().strip('"').strip()
    match = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    found = _address(match[1] if match else text)
    if found is None and (match := _IPV6_AND_PORT.fullmatch(text)):
        found = _address(match[1])
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
