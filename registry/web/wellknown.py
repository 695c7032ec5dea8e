"""The registry's own keys: where every client begins."""

from flask import Blueprint, Response

from registry.services.publish import registry_jwks
from registry.services.rendered import JWK_SET, JWT, Rendered
from registry.web.wire import published, registry

blueprint = Blueprint("wellknown", __name__, url_prefix="/.well-known")


@blueprint.get("/peerseal-registry")
def registry_keys() -> Response:
    """The root-signed registry keys document."""
    authority = registry().authority.current()
    return published(_rendered(authority.jws.encode("ascii"), JWT))


@blueprint.get("/jwks.json")
def jwks() -> Response:
    """The registry's own signing keys as a plain JWK Set."""
    return published(_rendered(registry_jwks(registry().authority.current()), JWK_SET))


def _rendered(body: bytes, content_type: str) -> Rendered:
    keys = registry().authority.current().keys
    return Rendered.of(body, content_type, 0, 0, keys.issued_at, keys.expires_at)
