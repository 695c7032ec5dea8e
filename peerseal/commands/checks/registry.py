"""Checks of the registry: whether it answers, whether it is the right one, and what time it has."""

from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy

from peerseal.commands.checks.finding import Finding, error, ok, warning
from peerseal.commands.checks.host import Asked, Host
from peerseal.errors import PeersealError
from peerseal.protocol.documents.changes import CHANGES_LIFETIME, Changes
from peerseal.transport.clocks import MOST_OFFSET, offset_in_words
from peerseal.transport.failure_words import CA_VARIABLES, unusable_authorities
from peerseal.transport.fetch import is_loopback

_ASK_FOR_PIN = "ask the registry's operator for its root key's thumbprint, and set PEERSEAL_REGISTRY_PIN to it"

_NAME_AUTHORITIES = "name a file of authorities (PEM) there, or unset the variable: then the public ones are used"


def check_registry(host: Host) -> Iterator[Finding]:
    """Each URL answers, and answers as a registry does."""
    if not host.urls:
        yield error("no URL of a registry can be read", "correct PEERSEAL_REGISTRY_URL")
    for asked in host.asked:
        proxy = _proxy_of(asked.url)
        way = f" through the HTTP proxy {proxy}" if proxy else ""
        if asked.keys is not None:
            yield ok(f"{asked.url} answers{way}: the registry of {asked.keys.subject}")
        elif not asked.answered:
            yield error(f"not reached{way}: {asked.failure}", _remedy_of_silence(asked, proxy))
        else:
            yield error(
                f"{asked.url} answers{way}, and not as a registry does: {asked.failure}", _remedy_of_answer(asked)
            )


def _remedy_of_silence(asked: Asked, proxy: str | None) -> str:
    if proxy:
        return f"add {urlsplit(asked.url).hostname} to NO_PROXY, or correct HTTP_PROXY or HTTPS_PROXY"
    if any(f"{name}=" in asked.failure for name in CA_VARIABLES):
        return _NAME_AUTHORITIES
    if "SSLError" in asked.failure:
        return "set REQUESTS_CA_BUNDLE to the file of your authority, or correct the scheme and port of the URL"
    return "check the host and port in PEERSEAL_REGISTRY_URL, that the registry runs, and the network's rules"


def _remedy_of_answer(asked: Asked) -> str:
    if urlsplit(asked.url).path.endswith("/v1"):
        return "leave out /v1 in PEERSEAL_REGISTRY_URL"
    return "another server may listen there: check the host, port and path in PEERSEAL_REGISTRY_URL"


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL, without the user's name and password."""
    if is_loopback(url):
        return None
    proxy = select_proxy(url, get_environ_proxies(url))
    return None if proxy is None else proxy.rpartition("@")[2].removeprefix("http://")


def check_tls(host: Host) -> Iterator[Finding]:
    """Calls to the registry are encrypted where that is needed, and the authorities of this host can be read."""
    for variables in (CA_VARIABLES, ("SSL_CERT_FILE",)):  # of requests, and of httpx
        if wrong := unusable_authorities(host.environ, variables):
            yield warning(f"{wrong}; calls over https fail", _NAME_AUTHORITIES)
    for asked in host.asked:
        if not asked.answered:
            continue
        if asked.url.startswith("https:"):
            yield ok(f"{asked.url}: the certificate is valid for this name")
        elif is_loopback(asked.url):
            yield ok(f"{asked.url}: on this machine, no TLS is needed")
        elif host.settings.path("PEERSEAL_OIDC_TOKEN_FILE") is not None:
            yield error(f"{asked.url}: a platform's token is sent over https only", "use an https URL of the registry")
        else:
            yield ok(f"{asked.url}: no TLS; documents are signed, and no secret is sent")


def check_pin(host: Host) -> Iterator[Finding]:
    """The root key of the registry is the pinned one."""
    pins = dict(_pins(host))
    for asked in host.asked:
        if asked.keys is None:
            if not pins and not is_loopback(asked.url):
                yield error(f"no pin is set, and {asked.url} is not on this machine", _ASK_FOR_PIN)
            continue
        seen = asked.keys.root.thumbprint
        wrong = {name: pin for name, pin in pins.items() if pin != seen}
        for name, pin in wrong.items():
            yield error(
                f"the root key of {asked.url} is {seen}, {name} says {pin}",
                f"another registry answers, or {name} is of another one: compare with what its operator says",
            )
        if pins and not wrong:
            yield ok(f"the root key is {seen}, as in {' and '.join(pins)}")
        elif not pins:
            yield _without_pin(asked.url, seen)


def _without_pin(url: str, seen: str) -> Finding:
    remedy = "compare this thumbprint with the operator's, then set PEERSEAL_REGISTRY_PIN to it"
    if is_loopback(url):
        return warning(f"no pin is set; the root key on this machine is {seen}", remedy)
    return error(f"no pin is set, and {url} is not on this machine; its root key is {seen}", remedy)


def _pins(host: Host) -> Iterator[tuple[str, str]]:
    """The pins of this host, by the name of their source. Other checks say what of them cannot be read."""
    if pin := host.settings.text("PEERSEAL_REGISTRY_PIN"):
        yield "PEERSEAL_REGISTRY_PIN", pin
    with suppress(PeersealError):
        if host.join_token is not None:
            yield "the join token", host.join_token.pin
    with suppress(PeersealError, OSError):
        if host.stored.pin:
            yield "the key folder", host.stored.pin


def check_clock(host: Host) -> Iterator[Finding]:
    """This host's clock agrees with the registry's, by the header ``Date`` and by the time in a document that the
    registry signs for each answer."""
    registry = host.registry
    if registry is None:
        return
    if registry.offset is not None:
        yield _finding_of(registry.offset, "by the answer's Date")
    try:
        domain = registry.keys.subject if registry.keys else ""
        signed = host.trust(registry).document(Changes, "/v1/changes", domain, witnessed=False)
    except PeersealError as refused:
        yield warning(f"the signed time cannot be read: {refused}", "compare the clocks of this host and the registry")
        return
    age = host.clock() - signed.issued_at
    within = -MOST_OFFSET <= age <= CHANGES_LIFETIME + MOST_OFFSET
    yield _finding_of(0.0 if within else age, "by the time that it signs")


def _finding_of(offset: float, source: str) -> Finding:
    found = f"{offset_in_words(offset if abs(offset) > 1 else 0.0)}, {source}"
    if abs(offset) <= MOST_OFFSET:
        return ok(found)
    return error(found, f"synchronise both clocks (NTP): tokens that are more than {MOST_OFFSET} s off are refused")
