"""Trust domains, services, service ids and key ids (docs/protocol.md).

A service id is ``<trust domain>/<service>``; a kid is ``<service id>/<RFC 7638 thumbprint>``. A kid names its owner
and is computed from the key, so a reader can check both.
"""

import re

from peerseal.errors import InvalidName
from peerseal.protocol.plain import plain_text, text_like

REGISTRY = "registry"
"""The reserved service name under which the registry itself signs and is called."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_NAME = re.compile(_DNS_NAME)
_SERVICE_ID = re.compile(rf"({_DNS_NAME})/({_DNS_NAME})")
_THUMBPRINT = r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]"
_WHOLE_THUMBPRINT = re.compile(_THUMBPRINT)
_KID = re.compile(rf"(({_DNS_NAME})/({_DNS_NAME}))/({_THUMBPRINT})")

_DOMAIN_LENGTH = 253  # RFC 1035 section 3.1, in text form
_SERVICE_LENGTH = 100
_THUMBPRINT_LENGTH = 43
_KID_LENGTH = _DOMAIN_LENGTH + _SERVICE_LENGTH + _THUMBPRINT_LENGTH + 2


def check_thumbprint(text: str) -> str:
    """The text itself if it is an RFC 7638 SHA-256 thumbprint as a kid has it, else InvalidName."""
    return _match(_WHOLE_THUMBPRINT, text, _THUMBPRINT_LENGTH, "a thumbprint")[0]


def name_text(name: object) -> str:
    """A name as exactly ``str``, for look-ups. Raises InvalidName for anything but text."""
    text = plain_text(name)
    if text is None:
        raise InvalidName(f"not a name: {text_like(name)}")
    return text


def check_trust_domain(name: str) -> str:
    """The name itself if it is a DNS-like lower-case name of 253 characters at most, else InvalidName."""
    return _match(_NAME, name, _DOMAIN_LENGTH, "a trust domain")[0]


def check_service(name: str) -> str:
    """The name itself if it is lower-case DNS labels joined by dots, 100 characters at most, else InvalidName.

    ``registry`` passes here. It is reserved, and the registry refuses to register keys for it.
    """
    return _match(_NAME, name, _SERVICE_LENGTH, "a service name")[0]


def service_id(domain: str, service: str) -> str:
    """``<domain>/<service>``. Raises InvalidName."""
    return f"{check_trust_domain(domain)}/{check_service(service)}"


def registry_id(domain: str) -> str:
    """The service id of a domain's registry."""
    return service_id(domain, REGISTRY)


def split_service_id(name: str) -> tuple[str, str]:
    """``(domain, service)`` of a service id. Raises InvalidName."""
    domain, service = _match(_SERVICE_ID, name, _DOMAIN_LENGTH + 1 + _SERVICE_LENGTH, "a service id").groups()
    return check_trust_domain(domain), check_service(service)


def qualify(name: str, domain: str) -> str:
    """The service id of a short name or an id, as code and configuration have them. Raises InvalidName."""
    text = name_text(name)
    if "/" in text:
        split_service_id(text)
        return text
    return service_id(domain, text)


def check_peer_name(name: str) -> str:
    """The name itself if it is a short name or a service id, as code and configuration have them. Raises
    InvalidName."""
    text = name_text(name)
    if "/" in text:
        split_service_id(text)
        return text
    return check_service(name)


def make_kid(owner: str, thumbprint: str) -> str:
    """The kid of a key that the service with id ``owner`` holds. Raises InvalidName."""
    kid = f"{owner}/{thumbprint}"
    split_kid(kid)
    return kid


def split_kid(kid: str) -> tuple[str, str]:
    """``(service id, thumbprint)`` of a kid. Raises InvalidName.

    The thumbprint must be the canonical base64url of 32 bytes: the last character holds four bits only.
    """
    owner, domain, service, thumbprint = _match(_KID, kid, _KID_LENGTH, "a kid").groups()
    check_trust_domain(domain)
    check_service(service)
    return owner, thumbprint


def _match(pattern: re.Pattern[str], value: object, longest: int, what: str) -> re.Match[str]:
    """The match of the whole text. Raises InvalidName, which names what was expected."""
    text = plain_text(value)
    match = pattern.fullmatch(text) if text is not None and len(text) <= longest else None
    if match is None:
        raise InvalidName(f"not {what}: {text_like(value)}")
    return match
