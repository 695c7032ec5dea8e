"""Trust domains, services, service ids and key ids (SPEC section 1).

A service id is ``<trust domain>/<service>``; a kid is ``<service id>/<RFC 7638 thumbprint>``. A kid names its owner
and is computed from the key, so whoever reads one can check both.
"""

import re

from peerseal.errors import InvalidName

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


def check_thumbprint(text: str) -> str:
    """The text itself if it is an RFC 7638 SHA-256 thumbprint as a kid has it, else InvalidName."""
    if not _WHOLE_THUMBPRINT.fullmatch(text):
        raise InvalidName(f"not a thumbprint: {text[:120]!r}")
    return text


_KID_LENGTH = _DOMAIN_LENGTH + _SERVICE_LENGTH + 45


def _is_text(value: object, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest


def _shown(name: object) -> str:
    """What an error quotes of a name: so much of it, or the type of what is no text."""
    return repr(name[:120]) if isinstance(name, str) else f"a value of type {type(name).__name__}"


def check_trust_domain(name: str) -> str:
    """The name itself if it is a DNS-like lower-case name of 253 characters at most, else InvalidName."""
    if not _is_text(name, _DOMAIN_LENGTH) or not _NAME.fullmatch(name):
        raise InvalidName(f"not a trust domain: {_shown(name)}")
    return name


def check_service(name: str) -> str:
    """The name itself if it is lower-case DNS labels joined by dots, 100 characters at most, else InvalidName.

    ``registry`` passes: it is reserved, which is for the registry to refuse where somebody registers it.
    """
    if not _is_text(name, _SERVICE_LENGTH) or not _NAME.fullmatch(name):
        raise InvalidName(f"not a service name: {_shown(name)}")
    return name


def service_id(domain: str, service: str) -> str:
    """``<domain>/<service>``. Raises InvalidName."""
    return f"{check_trust_domain(domain)}/{check_service(service)}"


def registry_id(domain: str) -> str:
    """The service id of a domain's registry."""
    return service_id(domain, REGISTRY)


def split_service_id(name: str) -> tuple[str, str]:
    """``(domain, service)`` of a service id. Raises InvalidName."""
    match = _SERVICE_ID.fullmatch(name) if _is_text(name, _DOMAIN_LENGTH + 1 + _SERVICE_LENGTH) else None
    if match is None:
        raise InvalidName(f"not a service id: {_shown(name)}")
    domain, service = match.groups()
    return check_trust_domain(domain), check_service(service)


def qualify(name: str, domain: str) -> str:
    """The service id that a short name or an id stands for in code and configuration. Raises InvalidName."""
    if not _is_text(name, _KID_LENGTH) or "/" in name:
        split_service_id(name)
        return name
    return service_id(domain, name)


def check_peer_name(name: str) -> str:
    """The name itself if it is a short name or a service id, as code and configuration have them. Raises
    InvalidName."""
    if _is_text(name, _KID_LENGTH) and "/" in name:
        split_service_id(name)
        return name
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
    match = _KID.fullmatch(kid) if _is_text(kid, _KID_LENGTH) else None
    if match is None:
        raise InvalidName(f"not a kid: {_shown(kid)}")
    owner, domain, service, thumbprint = match.groups()
    check_trust_domain(domain)
    check_service(service)
    return owner, thumbprint
