"""The environment variables of client-service, in addition to Peerseal's own settings (``PEERSEAL_SERVICE``, …):

- ``RESOURCE_SERVICE_URL``: the URL of resource-service (``http://resource-service``);
- ``CLIENT_REQUIRE_SIGNED_RESPONSE``: with ``on``, an answer of resource-service counts only if resource-service has
  signed it for this very request; any other is 502 ``answer_refused``;
- ``CLIENT_OPERATOR_SECRET``: ``POST /refresh-my-credentials`` requires it in the header ``Operator-Secret``. Without
  it, that route refuses every request;
- ``CLIENT_LOGIN_URL``: the identity provider, such as ``https://login.example.com``. ``POST /authenticate`` forwards
  name and password to it. Without this URL the route answers 404, and users get their tokens elsewhere;
- ``CLIENT_LOGIN_CA_FILE``: the certificates (PEM) that verify it, in place of the public authorities;
- ``CLIENT_DATABASE_URL``: the database of orders and of events that wait;
- ``BROKER_URL``: ``kafka://host:port,…`` or ``amqp(s)://…``; ``BROKER_CONFIG_FILE``: settings of the broker's library
  (TLS, SASL) as a JSON object; ``BROKER_LOGIN``: the broker's name among the ``access_tokens`` of the domain document
  (``kafka``), where this service logs in with its own key. Without a URL, events stay in the database;
- ``EVENTS_AUDIENCE``: the audience of events (``jobs.example.com``).

A secret may be in a file that the same variable with ``_FILE`` names. Files without a variable are in the folder that
contains Peerseal's key folder, or in ``./client-data`` if no key folder is set.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from peerseal.errors import ConfigurationError
from peerseal.runtime.settings import SettingsReader, read_text

RESOURCE_URL = "http://resource-service"
AUDIENCE = "jobs.example.com"


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of these variables. ``state`` is the folder of files without a variable."""

    state: Path
    database_url: str = field(repr=False)
    resource_url: str = RESOURCE_URL
    require_signed_response: bool = False
    operator_secret: str | None = field(default=None, repr=False)
    login_url: str | None = None
    login_ca_file: Path | None = None
    broker_url: str | None = field(default=None, repr=False)
    broker_settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    broker_login: str | None = None
    events_audience: str = AUDIENCE

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """From the environment. Raises ConfigurationError for an unreadable file or an invalid URL."""
        read = SettingsReader(environ)
        key_dir = read.path("PEERSEAL_KEY_DIR")
        state = (key_dir.parent if key_dir else Path("client-data")).absolute()
        return cls(
            state=state,
            database_url=read.secret("CLIENT_DATABASE_URL") or f"sqlite:///{state / 'orders.sqlite3'}",
            resource_url=read.text("RESOURCE_SERVICE_URL") or RESOURCE_URL,
            require_signed_response=read.flag("CLIENT_REQUIRE_SIGNED_RESPONSE", False),
            operator_secret=read.secret("CLIENT_OPERATOR_SECRET", may_be_empty=True),
            login_url=_http_url(read.text("CLIENT_LOGIN_URL")),
            login_ca_file=_readable(read.path("CLIENT_LOGIN_CA_FILE"), "CLIENT_LOGIN_CA_FILE"),
            broker_url=read.secret("BROKER_URL"),
            broker_settings=_json_object(read.path("BROKER_CONFIG_FILE")),
            broker_login=read.text("BROKER_LOGIN"),
            events_audience=read.text("EVENTS_AUDIENCE") or AUDIENCE,
        )


def _http_url(url: str | None) -> str | None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"CLIENT_LOGIN_URL={url!r}: expected a URL that begins with https:// or http://")
    return url


def _readable(file: Path | None, name: str) -> Path | None:
    if file is not None:
        read_text(file, name)
    return file


def _json_object(file: Path | None) -> dict[str, Any]:
    try:
        value = json.loads(read_text(file, "BROKER_CONFIG_FILE") or "") if file else {}
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"BROKER_CONFIG_FILE={file}: not JSON") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"BROKER_CONFIG_FILE={file}: not a JSON object")
    return value
