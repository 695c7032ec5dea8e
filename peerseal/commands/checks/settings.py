"""Checks of the variables."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from peerseal.commands.checks.finding import Finding, error, ok, warning
from peerseal.commands.checks.host import Host
from peerseal.errors import PeersealError
from peerseal.identity.environment import KNOWN, options_in
from peerseal.runtime.settings import unknown_names

_PREFIX = "PEERSEAL_"
_REQUIRED = {
    "PEERSEAL_SERVICE": "set it to the name of this service, as the registry's operator knows it",
    "PEERSEAL_REGISTRY_URL": "set it to the URL of the registry, such as http://registry:8080",
}


def check_settings(host: Host) -> Iterator[Finding]:
    """Each variable is known, can be read, and contradicts no other; those that every service needs are set."""
    unknown = list(unknown_names(host.environ, _PREFIX, KNOWN))
    for name, near in unknown:
        remedy = f"is {near} meant? Rename it" if near else "remove it, or look its name up in the settings"
        yield warning(f"{name} is no setting, and is ignored", remedy)
    missing = [name for name in _REQUIRED if not host.environ.get(name)]
    for name in missing:
        yield error(f"{name} is not set", _REQUIRED[name])
    if missing:
        return
    try:
        options_in({name: value for name, value in host.environ.items() if name not in dict(unknown)})
    except PeersealError as refused:
        yield error(str(refused), "correct that variable; the service does not start with it")
    else:
        known = sum(name.startswith(_PREFIX) for name in host.environ) - len(unknown)
        yield ok(f"PEERSEAL_SERVICE={host.service}; {known} variables, all can be read")


def check_urls(host: Host) -> Iterator[Finding]:
    """The registry's URLs name its base, without the path that each call adds."""
    for url in host.urls:
        if urlsplit(url).path.endswith("/v1"):
            base = url.removesuffix("/v1")
            yield error(f"PEERSEAL_REGISTRY_URL={url} ends in /v1, which each call adds itself", f"set it to {base}")
