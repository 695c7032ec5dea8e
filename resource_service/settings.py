"""The environment variables of resource-service and its consumer, in addition to Peerseal's own settings.

resource-service:

- ``RESOURCE_DATABASE_URL``: its invoices. The default is a file in the folder that contains Peerseal's key folder, or
  in ``./resource-data`` if no key folder is set;
- ``CASE_SERVICE_URL``: the URL of case-service (``http://case-service``).

The consumer:

- ``INVOICING_DATABASE_URL``: the handled events. The default is such a file, or one in ``./invoicing-data``;
- ``BROKER_URL``: ``kafka://host:port,…`` or ``amqp(s)://…``; ``BROKER_CONFIG_FILE``: settings of the broker's library
  (TLS, SASL) as a JSON object;
- ``BROKER_LOGIN``: the broker's name among the ``access_tokens`` of the domain document (``kafka``), where the
  consumer logs in with its own key;
- ``RESOURCE_SERVICE_URL``: the URL of resource-service (``http://resource-service``);
- ``EVENTS_AUDIENCE``: the audience that events must have (``jobs.example.com``);
- ``EVENTS_PUBLISHERS``: the publishers of orders that are believed, separated by commas (``client-service``). An event
  of the token exchange needs two names: ``registry``, and the service that exchanged;
- ``EVENTS_MAX_AGE``: the greatest age of an event, in seconds or such as ``12h`` (``7d``; 365 days at most). An older
  event is refused as ``expired``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from peerseal.errors import ConfigurationError
from peerseal.runtime.settings import SettingsReader, read_text

EVENTS_MAX_AGE = timedelta(days=7)
"""The default lifetime of an event token."""
LONGEST_MAX_AGE = timedelta(days=365)
EVENTS_PUBLISHERS = ("client-service",)


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """The values of these variables."""

    database_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    broker_settings: Mapping[str, Any] = field(repr=False)
    resource_url: str
    events_audience: str
    events_max_age: timedelta = EVENTS_MAX_AGE
    events_publishers: tuple[str, ...] = EVENTS_PUBLISHERS
    broker_login: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """From the environment. Raises ConfigurationError for a missing or invalid value, or an unreadable file."""
        read = SettingsReader(environ)
        default, longest = EVENTS_MAX_AGE.total_seconds(), LONGEST_MAX_AGE.total_seconds()
        broker_url = read.secret("BROKER_URL")
        if broker_url is None:
            raise ConfigurationError("BROKER_URL is not set: give kafka://host:port or amqp://host")
        return cls(
            database_url=_database_url(read, "INVOICING_DATABASE_URL", "invoicing-data", "inbox.sqlite3"),
            broker_url=broker_url,
            broker_settings=_json_object(read.path("BROKER_CONFIG_FILE")),
            resource_url=read.text("RESOURCE_SERVICE_URL") or "http://resource-service",
            events_audience=read.text("EVENTS_AUDIENCE") or "jobs.example.com",
            events_max_age=timedelta(seconds=read.seconds("EVENTS_MAX_AGE", default, at_least=1, at_most=longest)),
            events_publishers=_names(read.text("EVENTS_PUBLISHERS")) or EVENTS_PUBLISHERS,
            broker_login=read.text("BROKER_LOGIN"),
        )


def database_url(environ: Mapping[str, str]) -> str:
    """The URL of the invoices' database. Creates the folder of the default file."""
    return _database_url(SettingsReader(environ), "RESOURCE_DATABASE_URL", "resource-data", "invoices.sqlite3")


def case_service_url(environ: Mapping[str, str]) -> str:
    """The URL of case-service."""
    return SettingsReader(environ).text("CASE_SERVICE_URL") or "http://case-service"


def _database_url(read: SettingsReader, name: str, folder: str, file: str) -> str:
    if url := read.secret(name):
        return url
    key_dir = read.path("PEERSEAL_KEY_DIR")
    state = (key_dir.parent if key_dir else Path(folder)).absolute()
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{state}: {error.strerror}; set PEERSEAL_KEY_DIR or {name}") from error
    return f"sqlite:///{state / file}"


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _json_object(file: Path | None) -> dict[str, Any]:
    try:
        value = json.loads(read_text(file, "BROKER_CONFIG_FILE") or "") if file else {}
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"BROKER_CONFIG_FILE={file}: not JSON") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"BROKER_CONFIG_FILE={file}: not a JSON object")
    return value
