"""What client-service is told by its environment, beside Peerseal's own settings (``PEERSEAL_SERVICE``, …):

- ``RESOURCE_SERVICE_URL``: where resource-service is (``http://resource-service``);
- ``CLIENT_OPERATOR_SECRET``: what ``POST /refresh-my-credentials`` asks for in the header ``Operator-Secret``. Without
  it nobody can use that route;
- ``CLIENT_DEMO_PASSWORD``: the password of all demo users. Without it nobody can log in;
- ``CLIENT_ISSUER_URL``: the name under which it issues users' tokens, as the domain's settings have it;
- ``CLIENT_USER_KEY_FILE``: the private key of that issuer, made where it is missing;
- ``CLIENT_DATABASE_URL``: orders, and events that are not sent yet;
- ``BROKER_URL``: ``kafka://host:port,…`` or ``amqp(s)://…``; ``BROKER_CONFIG_FILE``: settings of the broker's library
  (TLS, SASL) as a JSON object. Without a URL, events wait in the database for one;
- ``EVENTS_AUDIENCE``: whom events are for (``jobs.example.com``).

Secrets may stand in a file, named by the same variable with ``_FILE``. State that no variable names a place for lies
beside Peerseal's key folder, or in ``./client-data`` where there is none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from peerseal.errors import ConfigurationError

RESOURCE_URL = "http://resource-service"
ISSUER_URL = "https://client-service.demo.internal"
AUDIENCE = "jobs.example.com"


@dataclass(frozen=True, slots=True)
class Settings:
    """See above. ``state`` is the folder for what lies nowhere else."""

    state: Path
    user_key_file: Path
    database_url: str = field(repr=False)
    resource_url: str = RESOURCE_URL
    operator_secret: str | None = field(default=None, repr=False)
    demo_password: str | None = field(default=None, repr=False)
    issuer_url: str = ISSUER_URL
    broker_url: str | None = field(default=None, repr=False)
    broker_settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    events_audience: str = AUDIENCE

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Raises ConfigurationError for a file that cannot be read."""
        key_dir = environ.get("PEERSEAL_KEY_DIR")
        state = (Path(key_dir).parent if key_dir else Path("client-data")).absolute()
        return cls(
            state=state,
            user_key_file=Path(environ.get("CLIENT_USER_KEY_FILE") or state / "user-tokens.pem"),
            database_url=environ.get("CLIENT_DATABASE_URL") or f"sqlite:///{state / 'orders.sqlite3'}",
            resource_url=environ.get("RESOURCE_SERVICE_URL") or RESOURCE_URL,
            operator_secret=_secret(environ, "CLIENT_OPERATOR_SECRET"),
            demo_password=_secret(environ, "CLIENT_DEMO_PASSWORD"),
            issuer_url=environ.get("CLIENT_ISSUER_URL") or ISSUER_URL,
            broker_url=environ.get("BROKER_URL") or None,
            broker_settings=_json_object(environ.get("BROKER_CONFIG_FILE")),
            events_audience=environ.get("EVENTS_AUDIENCE") or AUDIENCE,
        )


def _secret(environ: Mapping[str, str], name: str) -> str | None:
    """The secret, from the variable's file or the variable; None where neither is set, or it is empty."""
    if path := environ.get(f"{name}_FILE"):
        return _read(path).strip() or None
    return environ.get(name) or None


def _json_object(path: str | None) -> dict[str, Any]:
    try:
        value = json.loads(_read(path)) if path else {}
    except ValueError as error:
        raise ConfigurationError(f"{path} is no JSON") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} holds no object")
    return value


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
