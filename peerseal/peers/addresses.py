"""Which hosts are this machine, told by a URL's text and by the address of a connection.

A text says what was meant; only a connection says where a name leads, now. So both are looked at: the text for what is
allowed and for proxies, the connection before the first byte is sent on it.
"""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

Address = IPv4Address | IPv6Address

_LOCALHOST: Final = "localhost"  # and all names below it: RFC 6761 section 6.3
_LEGACY: Final = re.compile(r"[0-9a-fA-FxX.]+")  # 127.1, 0x7f000001: resolvers take these
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine's loopback: ``localhost``, a name below it, or an address of 127.0.0.0/8
    or ::1 in any spelling. What such a host is connected to is checked again then (`wrong_address`)."""
    try:
        host = parse_url(url).host
    except LocationParseError:
        return False
    return host is not None and is_loopback_host(host)


def is_loopback_host(host: str) -> bool:
    """See `is_loopback`; ``host`` is as a URL has it."""
    name = host.rstrip(".").lower()
    if name == _LOCALHOST or name.endswith(f".{_LOCALHOST}"):
        return True
    address = literal(name)
    return address is not None and address.is_loopback


def literal(host: str) -> Address | None:
    """The address that a URL's host is written as; None for a name."""
    text = host.strip("[]").partition("%")[0]
    try:
        return _unwrapped(ip_address(text))
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(text)) if _LEGACY.fullmatch(text) else None
    except OSError:
        return None


def local_class(address: Address) -> str | None:
    """Why no remote issuer may send us to that address; None for an address of another machine. Private addresses
    (RFC 1918, RFC 4193) are other machines': issuers of companies live there."""
    if address.is_loopback:
        return "loopback"
    if address.is_unspecified:
        return "unspecified"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    return "reserved" if address.is_reserved else None


def wrong_address(host: str, connection: socket.socket, *, remote_only: bool) -> str | None:
    """What is wrong with where a connection to ``host`` ended; None where nothing is.

    A loopback name leads to loopback. With ``remote_only`` a host is not on this machine: neither in a class of
    `local_class`, nor an own address of this machine, which a connection then has at both of its ends.
    """
    peer = literal(str(connection.getpeername()[0]))
    own = literal(str(connection.getsockname()[0]))
    if peer is None:
        return f"{host} was connected to at no address"
    if is_loopback_host(host) and not peer.is_loopback:
        return f"{host} leads to {peer}, which is not loopback"
    if not remote_only:
        return None
    kind = local_class(peer) or ("this machine's own" if peer == own else None)
    return None if kind is None else f"{host} leads to {peer}, a {kind} address: only another machine may be named here"


def _unwrapped(address: Address) -> Address:
    """The IPv4 address in an IPv6 address that stands for one: mapped, 6to4 or NAT64."""
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
