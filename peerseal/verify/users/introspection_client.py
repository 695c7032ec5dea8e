"""A service's own credentials at an issuer of opaque tokens, with which it may ask about them.

They are local: the domain's signed settings, which everybody may read, say where an issuer answers, and no more.
"""

import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import quote

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.policies import check_url_in_settings
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.runtime.options import check_callable, check_flag, check_unicode
from peerseal.runtime.settings import SettingsReader


class AssertionSigner(Protocol):
    """Signs a client assertion (RFC 7523), as `peerseal.Identity.sign_assertion` does."""

    def __call__(self, *, audience: str, client_id: str) -> str:
        """A fresh assertion by ``client_id`` for the issuer ``audience``. Raises TrustUnavailable."""


class SignsAssertions(Protocol):
    """What is needed of an identity: a `peerseal.Identity`."""

    def sign_assertion(self, *, audience: str | None = None, client_id: str | None = None) -> str:
        """See `peerseal.Identity`."""


@dataclass(frozen=True, slots=True)
class IntrospectionClient:
    """This service as the client ``client_id`` of ``issuer``, whose name is spelled as in the domain's settings.

    It proves itself by ``secret`` (``client_secret_basic``), or by ``private_key_jwt``, such as
    ``identity.sign_assertion``: exactly one of them. A secret is sent to the URL in the settings; an assertion is good
    at that issuer only. ``unsafe_any_audience`` accepts tokens whose audience the issuer does not name, or that are for
    another service: then every token of the issuer is good here. Raises ConfigurationError.
    """

    issuer: str
    client_id: str
    secret: str | None = field(default=None, repr=False)
    private_key_jwt: AssertionSigner | None = field(default=None, repr=False)
    unsafe_any_audience: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        for name in ("issuer", "client_id"):
            check_unicode(f"IntrospectionClient.{name}", getattr(self, name))
        try:
            check_url_in_settings(self.issuer)
        except MalformedToken as error:  # no setting of a domain can name it
            raise ConfigurationError(f"IntrospectionClient.issuer: {error}") from error
        check_flag("IntrospectionClient.unsafe_any_audience", self.unsafe_any_audience)
        if (self.secret is None) == (self.private_key_jwt is None):
            raise ConfigurationError("IntrospectionClient: expected either secret or private_key_jwt")
        if self.private_key_jwt is not None:
            check_callable("IntrospectionClient.private_key_jwt", self.private_key_jwt)
        else:
            check_unicode("IntrospectionClient.secret", self.secret)

    @classmethod
    def from_env(cls, identity: SignsAssertions, environ: Mapping[str, str] | None = None) -> Self | None:
        """From ``PEERSEAL_INTROSPECTION_ISSUER``, ``PEERSEAL_INTROSPECTION_CLIENT_ID`` and
        ``PEERSEAL_INTROSPECTION_SECRET`` or ``…_FILE``; without a secret the key of ``identity`` signs
        (``private_key_jwt``). None where none of them is set. Raises ConfigurationError, which names the variable."""
        settings = SettingsReader(os.environ if environ is None else environ)
        secret = settings.secret("PEERSEAL_INTROSPECTION_SECRET")
        names = ("PEERSEAL_INTROSPECTION_ISSUER", "PEERSEAL_INTROSPECTION_CLIENT_ID")
        if secret is None and not any(map(settings.text, names)):
            return None
        issuer, client_id = map(settings.required, names)
        return cls(issuer, client_id, secret, None if secret else identity.sign_assertion)

    def authentication(self) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and form parameters that prove the client. Raises TrustUnavailable."""
        if self.private_key_jwt is not None:
            assertion = self.private_key_jwt(audience=self.issuer, client_id=self.client_id)
            return {}, {"client_assertion_type": CLIENT_ASSERTION_TYPE, "client_assertion": assertion}
        # form-encoded (RFC 6749 section 2.3.1), with %20 for a blank: some issuers do not read + as one
        client_id, secret = (quote(text or "", safe="") for text in (self.client_id, self.secret))
        encoded = b64encode(f"{client_id}:{secret}".encode("ascii")).decode("ascii")
        return {"authorization": f"Basic {encoded}"}, {}
