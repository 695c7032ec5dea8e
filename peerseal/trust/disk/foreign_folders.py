"""Cache folders for foreign registries, which the processes of one host share: ``foreign/<own>/<root>``.

There is one for each root, in this user's own part of a cache folder that all users may share. ``own`` names the own
registry, so that services of two registries can share a cache folder: each removes only what its own federation
document no longer names.
"""

import logging
import os
from collections.abc import Set
from pathlib import Path

from peerseal.errors import ConfigurationError
from peerseal.runtime.files import cache_folder

log = logging.getLogger("peerseal.trust")


class ForeignFolders:
    """The folders of the foreign registries that one own registry names. Without a cache folder there are none."""

    def __init__(self, cache_dir: str | os.PathLike[str] | None, own: str) -> None:
        self._folder = None if cache_dir is None else cache_folder(cache_dir).inner("foreign").inner(own)

    def of(self, root: str) -> Path | None:
        """The folder for the registry with that root key. None where there can be none: then there are no copies, as
        for the own registry."""
        try:
            return None if self._folder is None else self._folder.path / root
        except (OSError, ConfigurationError) as error:
            log.warning("nothing of the foreign registry is kept on disk: %s", error)
            return None

    def keep_only(self, roots: Set[str]) -> None:
        """Remove the folders of all other roots. Another process that still uses one makes it again: it loses copies
        that it can fetch, and removes the folder in turn. What cannot be removed now stays until the next time."""
        folder = self._folder
        if folder is None:
            return
        try:
            names = set(folder.names())
        except (OSError, ConfigurationError) as error:
            log.warning("the folders of foreign registries cannot be read: %s", error)
            return
        for name in names - roots:
            try:
                folder.remove_whole(name)
            except (OSError, ConfigurationError) as error:
                log.warning("the folder of a foreign registry that is no longer believed stays: %s", error)
