"""The registry's own keys: where every client begins."""

from flask import Blueprint, Response

from registry.services.authority.authority import Authority
from registry.services.documents.answer_cache import JWK_SET, JWT, PublicAnswer
from registry.services.documents.publish import registry_jwks
from registry.web.wire import published, registry

blueprint = Blueprint("wellknown", __name__, url_prefix="/.well-known")


@blueprint.get("/peerseal-registry")
def registry_keys() -> Response:
    """The root-signed registry keys document."""
    authority = registry().authority.newest()
    return published(_rendered(authority, authority.jws.encode("ascii"), JWT))


@blueprint.get("/jwks.json")
def jwks() -> Response:
    """The registry's own signing keys as a plain JWK Set."""
    authority = registry().authority.newest()
    return published(_rendered(authority, registry_jwks(authority), JWK_SET))


def _rendered(authority: Authority, body: bytes, content_type: str) -> PublicAnswer:
    return PublicAnswer.of(body, content_type, 0, 0, authority.keys.issued_at, authority.keys.expires_at)
