"""The OpenAPI document, put together."""

from copy import deepcopy
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from registry.web.openapi.parts import SECURITY_SCHEMES
from registry.web.openapi.paths import GROUPS
from registry.web.openapi.schemas import SCHEMAS, Json

_DESCRIPTION = (
    "Services publish their public keys here, and fetch those of others. Every answer that others build on is signed, "
    "and every change is an entry in an append-only ledger. Errors are application/problem+json with a stable code."
)


@cache
def document(prefix: str = "") -> Json:
    """The OpenAPI 3.1 document of every call that the registry answers. ``prefix`` is what a proxy in front strips."""
    paths: Json = {}
    for group, found in GROUPS.items():
        for path, methods in deepcopy(found).items():
            for described in methods.values():
                described["tags"] = [group]
            paths[path] = methods
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Peerseal registry",
            "version": _version(),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "tags": [{"name": group} for group in GROUPS],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": SECURITY_SCHEMES},
    }


def _version() -> str:
    try:
        return version("peerseal")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
