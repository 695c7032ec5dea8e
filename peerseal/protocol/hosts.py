"""Whether a host in a URL, or the address of a connection, is this machine or another one.

`is_loopback_host` decides which hosts are trusted as loopback. `is_this_machine` decides which requests go without a
proxy. `may_be_other_machine` decides to which hosts the URLs of a foreign issuer may send our requests. This module
resolves no names: `peerseal.transport` checks the address of a connection once it is made.
"""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_LOCALHOST = re.compile(r"(?:[a-z0-9_-]+\.)*localhost\.?", re.IGNORECASE | re.ASCII)  # RFC 6761 section 6.3

_VISIBLE = re.compile(r"[!-\[\]-~]+")  # ASCII without a backslash
_LABEL = re.compile(
    r"(?:[A-Za-z0-9_-]|[^\x00-\x7f\ud800-\udfff]){1,63}"
)  # RFC 1035 section 2.3.4; characters outside of ASCII belong to IDNs
_AUTHORITY = re.compile(r"(?:\[[^\[\]@]*:[^\[\]@]*\]|[^\[\]@:]+)(?::[0-9]*)?")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 section 2.1

Address = IPv4Address | IPv6Address


def is_loopback_host(host: str | None) -> bool:
    """Whether the host of a URL is the loopback of this machine: 127.0.0.0/8, ::1, their IPv4-mapped form, `localhost`,
    or a name below `localhost`. Other spellings of an address (``127.1``) do not count: another reader may read them
    differently."""
    if not host:
        return False
    address = _address(host)
    return bool(_LOCALHOST.fullmatch(host)) if address is None else address.is_loopback


def is_valid_host(host: str | None, port: int | None) -> bool:
    """Whether the host and the port have the right syntax. The host is an address (IPv6 with or without brackets and a
    zone), or a name, whose labels have 1 to 63 letters, digits, hyphens or underscores. A port of None means the
    default port of the scheme."""
    text = (host or "").removeprefix("[").removesuffix("]")
    if ":" in text:
        return port != 0 and _address(text.partition("%")[0]) is not None
    return port != 0 and all(map(_LABEL.fullmatch, text.removesuffix(".").split(".")))


def is_usable_url(url: str) -> bool:
    """Whether the URL has a host and a port of the right syntax, and all parsers read the same host in it."""
    try:
        parts = urlsplit(url)
        valid = is_valid_host(parts.hostname, parts.port) and has_one_host(parts.netloc)
        return valid and _VISIBLE.fullmatch(url) is not None
    except ValueError:
        return False


def has_one_host(authority: str) -> bool:
    """Whether the authority of a URL is a host, with or without a port, and nothing else. Python's own parser takes the
    text in brackets for the host and ignores the text around them."""
    return _AUTHORITY.fullmatch(authority) is not None


def is_this_machine(host: str) -> bool:
    """Whether the host is loopback or unspecified in any spelling that resolvers accept, so that data stays on this
    machine. Do not send such data through a proxy. A host such as ``127.1`` is still not trusted as loopback."""
    if is_loopback_host(host):
        return True
    address = _address(host) or _address_in_old_spelling(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def may_be_other_machine(host: str) -> bool:
    """Whether the host, a name or an address in any spelling that resolvers accept, can be another machine:
    True for every address but loopback, unspecified, link-local, multicast and reserved ones."""
    if is_loopback_host(host):
        return False
    address = _address(host) or _address_in_old_spelling(host)
    return address is None or not _stays_here(inner_address(address))


def _stays_here(address: Address) -> bool:
    first_block = isinstance(address, IPv4Address) and address.packed[0] == 0  # 0.0.0.0/8: "this network", RFC 1122
    special = address.is_loopback or address.is_unspecified or address.is_link_local or address.is_multicast
    return special or first_block or address.is_reserved


def _address(host: str) -> Address | None:
    """The address; an IPv4-mapped address is returned as IPv4. None for a name."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def inner_address(address: Address) -> Address:
    """The IPv4 address inside an IPv6 address of one of these kinds; any other address as it is.

    - IPv4-mapped (RFC 4291 section 2.5.5.2)
    - NAT64 (RFC 6052): in this form a host with IPv6 only sees IPv4 hosts
    - 6to4 (RFC 3056): it contains the IPv4 address of a site's router
    """
    if not isinstance(address, IPv6Address):
        return address
    translated = IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
    return address.ipv4_mapped or address.sixtofour or translated or address


def _address_in_old_spelling(host: str) -> IPv4Address | None:
    """As the C library reads ``127.1``, ``0x7f.0.0.1`` and ``2130706433``, without the network."""
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None
