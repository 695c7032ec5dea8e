"""How far the ledger has reached, as this host remembers it beside its keys.

A database that came back from a backup is whole, and too short: a registry that went on from it would show its clients
a second history. So nothing is signed over a ledger that is shorter than one that this host has seen.
"""

import logging
from pathlib import Path
from typing import Final

from peerseal.errors import ConfigurationError
from peerseal.protocol.numbers import natural
from peerseal.runtime.files import Access, Folder
from registry.domain.errors import LedgerContradicted

log = logging.getLogger(__name__)

FILE: Final = "ledger-size"


class HighWater:
    """Remembers in the folder ``home``, for all processes of the host. It is looked at now and then, not with each
    entry: the last few before a loss may not be in it."""

    def __init__(self, home: Path) -> None:
        self._home = Folder(home, "REGISTRY_HOME", access=Access.COMMON, mode=None)
        self._file = home / FILE
        self._told = False

    def check(self, size: int, known: int) -> None:
        """Passes for a ledger of that size, where the one of before was ``known``. Raises LedgerContradicted."""
        if size < known:
            raise LedgerContradicted(
                f"the ledger has {size} entries, and had {known}: was the database restored from a backup? Run "
                f"peerseal-registry restore. To give that ledger up, and all clients that know it, remove {self._file}"
            )

    def reach(self, size: int, known: int) -> None:
        """As `check`, and remembers the size."""
        self.check(size, known)
        if size > known:
            self._write(size)

    def known(self) -> int:
        """How far the ledger reached before. Ask for this first and look at the ledger then: other nodes let both grow.
        Raises ConfigurationError for a file that holds no number."""
        try:
            known = natural(self._home.read(FILE, 64).decode("ascii").strip())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self._file} does not say how far the ledger reached: {error}") from error
        if known is None:
            raise ConfigurationError(
                f"{self._file} does not say how far the ledger reached: it holds no natural number"
            )
        return known

    def _write(self, size: int) -> None:
        """Whole or not at all, also where the power goes: an empty file would lock the host out. A host that cannot
        write there goes without."""
        try:
            self._home.write(FILE, f"{size}\n".encode("ascii"))
        except (OSError, ConfigurationError) as error:
            if not self._told:
                self._told = True
                log.warning("how far the ledger reaches cannot be remembered: %s", error)
