"""The environment variables of the case service, in addition to Peerseal's own settings (``PEERSEAL_SERVICE``, …):

- ``CASE_DATABASE_URL``: the database of the cases. The default is a file in the folder that contains Peerseal's key
  folder, or in ``./case-data`` if no key folder is set. ``CASE_DATABASE_URL_FILE`` may name a file with the URL.
"""

from collections.abc import Mapping
from pathlib import Path

from peerseal.errors import ConfigurationError
from peerseal.runtime.settings import SettingsReader


def database_url(environ: Mapping[str, str]) -> str:
    """The URL of the cases' database. Creates the folder of the default file. Raises ConfigurationError."""
    read = SettingsReader(environ)
    if url := read.secret("CASE_DATABASE_URL"):
        return url
    key_dir = read.path("PEERSEAL_KEY_DIR")
    state = (key_dir.parent if key_dir else Path("case-data")).absolute()
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{state}: {error.strerror}; set PEERSEAL_KEY_DIR or CASE_DATABASE_URL") from error
    return f"sqlite:///{state / 'cases.sqlite3'}"
