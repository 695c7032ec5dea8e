"""What a service asks for in its own name (RFC 6749 section 4.4): an access token for one resource server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.policies import check_resource, scopes_from
from registry.domain.exchange import ExchangeRefused, asserted, needed

CLIENT_CREDENTIALS: Final = "client_credentials"


@dataclass(frozen=True, slots=True)
class AccessWanted:
    """An access token for the resource server with the URI ``resource``; ``scopes`` is None where all are wanted."""

    assertion: str = field(repr=False)
    client_id: str | None
    resource: str
    scopes: frozenset[str] | None

    @classmethod
    def read(cls, form: Mapping[str, str]) -> Self:
        """From a form. Raises ExchangeRefused."""
        assertion = asserted(form)
        try:
            resource = check_resource(needed(form, "resource"))
        except MalformedToken as error:
            raise ExchangeRefused("invalid_target", str(error)) from error
        return cls(assertion, form.get("client_id"), resource, _scopes(form))


def _scopes(form: Mapping[str, str]) -> frozenset[str] | None:
    if "scope" not in form:
        return None
    try:
        return scopes_from(form["scope"].split(" "))
    except MalformedToken as error:
        raise ExchangeRefused("invalid_scope", str(error)) from error
