"""The environment variables of the identity provider:

- ``IDP_URL``: where browsers and services reach it (``http://127.0.0.1:8003``);
- ``IDP_ISSUER``: the name in its tokens, as the domain's settings have it; a service reaches it by the settings' URLs;
- ``IDP_PASSWORD``: the password of all demo users. Without it, every login is refused;
- ``IDP_INTROSPECTION_SECRET``: with it, client-service may look tokens up. Without it, no service may;
- ``IDP_KEY_FILE``: the private key that signs tokens, made where it is missing. Without it, each start has a new key.

A secret may stand in a file that the same variable with ``_FILE`` names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from peerseal.runtime.settings import SettingsReader

URL = "http://127.0.0.1:8003"
ISSUER = "https://login.demo.internal"


@dataclass(frozen=True, slots=True)
class Settings:
    """See above."""

    url: str = URL
    issuer: str = ISSUER
    password: str | None = field(default=None, repr=False)
    introspection_secret: str | None = field(default=None, repr=False)
    key_file: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Raises ConfigurationError for a value or a file that cannot be read."""
        read = SettingsReader(environ)
        return cls(
            url=(read.text("IDP_URL") or URL).rstrip("/"),
            issuer=read.text("IDP_ISSUER") or ISSUER,
            password=read.secret("IDP_PASSWORD", may_be_empty=True) or None,
            introspection_secret=read.secret("IDP_INTROSPECTION_SECRET", may_be_empty=True) or None,
            key_file=read.path("IDP_KEY_FILE"),
        )
