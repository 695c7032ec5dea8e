"""Trust domains, services, service ids, key ids, scopes and audiences (docs/protocol.md).

A service id is ``<trust domain>/<service>``; a kid is ``<service id>/<RFC 7638 thumbprint>``. A kid names its owner
and is computed from the key, so a reader can check that it fits the owner and the key.
"""

import re
from functools import lru_cache
from typing import Any, Final

from peerseal.errors import InvalidName, MalformedToken
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

MAX_SCOPE: Final = 100
"""Characters of a scope (RFC 6749 section 3.3 sets no limit)."""
MAX_AUDIENCE: Final = 200
"""Characters of an audience of consumers."""
SCOPE: Final = re.compile(rf"[\x21\x23-\x5b\x5d-\x7e]{{1,{MAX_SCOPE}}}")
"""One scope: visible ASCII without quotes and backslashes."""
AUDIENCE: Final = re.compile(rf"[\x21\x23-\x2e\x30-\x5b\x5d-\x7e]{{1,{MAX_AUDIENCE}}}")
"""An audience of consumers: visible ASCII without quotes, backslashes and slashes."""


def check_thumbprint(text: str) -> str:
    """The text itself if it is a SHA-256 thumbprint (RFC 7638) in base64url, else InvalidName."""
    return _match(_WHOLE_THUMBPRINT, text, _THUMBPRINT_LENGTH, "a thumbprint")[0]


def exact_name(name: object) -> str:
    """The name as exactly ``str``, no subclass, for look-ups. Raises InvalidName for anything but text."""
    text = plain_text(name)
    if text is None:
        raise InvalidName(f"not a name: {text_like(name)}")
    return text


def check_trust_domain(name: str) -> str:
    """The name itself if it is a DNS-like lower-case name of 253 characters at most, else InvalidName."""
    return _match(_NAME, name, _DOMAIN_LENGTH, "a trust domain", "partner.example")[0]


def check_service(name: str) -> str:
    """The name itself if it is lower-case DNS labels joined by dots, 100 characters at most, else InvalidName.

    ``registry`` passes here. It is reserved, and the registry refuses to register keys for it.
    """
    return _match(_NAME, name, _SERVICE_LENGTH, "a service name", "billing")[0]


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
    """The service id for a name that may be short or already an id. Raises InvalidName."""
    text = exact_name(name)
    return _checked_id(text) if "/" in text else _id_in(exact_name(domain), text)


@lru_cache(maxsize=1024)
def _checked_id(name: str) -> str:
    split_service_id(name)
    return name


_id_in = lru_cache(maxsize=1024)(service_id)


def check_name_or_id(name: str) -> str:
    """The name itself if it is a short name or a service id: what `qualify` takes. Raises InvalidName."""
    text = exact_name(name)
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


def check_scope(scope: Any) -> str:
    """The scope itself if it is one token (RFC 6749 section 3.3). Raises MalformedToken."""
    if type(scope) is not str or not SCOPE.fullmatch(scope):
        raise MalformedToken(f"not a scope: {text_like(scope)}")
    return scope


def check_audience(audience: Any) -> str:
    """The audience itself if it may name the consumers of events (docs/protocol.md): 1 to MAX_AUDIENCE characters of
    visible ASCII without quotes, backslashes and slashes. Service ids have a slash, so no audience is a service id.
    Raises MalformedToken."""
    if type(audience) is not str or not AUDIENCE.fullmatch(audience):
        raise MalformedToken("not an audience of consumers")
    return audience


def _match(pattern: re.Pattern[str], value: object, max_length: int, expected: str, example: str = "") -> re.Match[str]:
    """The match of the whole text. Raises InvalidName, which names what was expected; of a DNS-like name with an
    ``example``."""
    text = plain_text(value)
    match = pattern.fullmatch(text) if text is not None and len(text) <= max_length else None
    if match is None:
        shape = f"lower-case letters, digits and hyphens in labels joined by dots, {max_length} characters at most"
        told = f", expected {shape}, such as {example}" if example else ""
        raise InvalidName(f"not {expected}: {text_like(value)}{told}")
    return match
