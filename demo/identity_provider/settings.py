"""The environment variables of the identity provider:

- ``IDP_URL``: its URL for browsers and services (``http://127.0.0.1:8003``);
- ``IDP_ISSUER``: the issuer's name in its tokens and in the domain document;
- ``IDP_PASSWORD``: the password of all demo users. Without it, every login is refused;
- ``IDP_INTROSPECTION_SECRET``: with it, client-service may look tokens up. Without it, no service may;
- ``IDP_KEY_FILE``: the private key that signs tokens, created if it is missing. Without it, each start makes a new key.

A secret may be in a file that the same variable with ``_FILE`` names.
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
    """The values of these variables."""

    url: str = URL
    issuer: str = ISSUER
    password: str | None = field(default=None, repr=False)
    introspection_secret: str | None = field(default=None, repr=False)
    key_file: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """From the environment. Raises ConfigurationError for an invalid value or an unreadable file."""
        read = SettingsReader(environ)
        return cls(
            url=(read.text("IDP_URL") or URL).rstrip("/"),
            issuer=read.text("IDP_ISSUER") or ISSUER,
            password=read.secret("IDP_PASSWORD", may_be_empty=True) or None,
            introspection_secret=read.secret("IDP_INTROSPECTION_SECRET", may_be_empty=True) or None,
            key_file=read.path("IDP_KEY_FILE"),
        )
