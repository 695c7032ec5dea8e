"""gunicorn's log lines in the format of the registry's own."""

from typing import ClassVar

from peerseal.gunicorn import Logger as ServiceLogger
from peerseal.runtime.settings import SettingsReader


class Logger(ServiceLogger):
    """See `peerseal.gunicorn.Logger`."""

    SETTING: ClassVar[str] = "REGISTRY_LOG_FORMAT"

    def service(self, settings: SettingsReader) -> str | None:
        """See `peerseal.gunicorn.Logger`."""
        return "registry"
