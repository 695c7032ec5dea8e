"""The metrics of a mirror, in a file: for Prometheus' node exporter (its textfile collector), or in the mirror's folder
for Prometheus itself."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from peerseal.audit.public_mirror import MirrorUpdate
from peerseal.audit.waiting_peers import WaitingPeers
from peerseal.errors import ConfigurationError
from peerseal.runtime.files import Access, Folder, is_of_disk

log = logging.getLogger("peerseal.mirror")

_METRICS: Final = (
    ("peerseal_mirror_entries", "gauge", "Entries of the ledger in the mirror"),
    ("peerseal_mirror_services", "gauge", "Services in the mirror"),
    ("peerseal_mirror_documents_written_total", "counter", "Documents that were written"),
    ("peerseal_mirror_documents_failed_total", "counter", "Documents that could not be had, once for each attempt"),
    ("peerseal_mirror_updates_failed_total", "counter", "Updates that failed as a whole"),
    ("peerseal_mirror_updated_seconds", "gauge", "When the last update succeeded, in seconds since the epoch"),
    ("peerseal_mirror_waiting_calls", "gauge", "Questions for changes that waited when the mirror was last updated"),
    ("peerseal_mirror_waiting_calls_limit", "gauge", "Questions that may wait"),
)


class MirrorMetrics:
    """Counts, and writes the counts to ``file`` after each update; without a file it writes nothing. The questions of
    ``peers`` are among them."""

    def __init__(
        self, file: Path | None, peers: WaitingPeers | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._peers = peers
        self._clock = clock
        self._values = [0.0] * (len(_METRICS) - 2)

    def updated(self, update: MirrorUpdate) -> None:
        """Note an update. Raises ConfigurationError where the file cannot be written."""
        _, _, written, failed, failures, _ = self._values
        counts = written + update.written, failed + update.failed, failures
        self._values = [update.entries, update.services, *counts, self._clock()]
        self._write()

    def failed(self) -> None:
        """Note an update that failed. Raises ConfigurationError as `updated` does."""
        self._values[4] += 1
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        lines = list[str]()
        waiting = (0, 0) if self._peers is None else (len(self._peers), self._peers.most)
        for (name, kind, meaning), value in zip(_METRICS, (*self._values, *waiting), strict=True):
            lines += [f"# HELP {name} {meaning}.", f"# TYPE {name} {kind}", f"{name} {value:.15g}"]
        folder = Folder(self._file.absolute().parent, access=Access.COMMON, mode=None, tightens=False)
        try:
            folder.write(self._file.name, "\n".join([*lines, ""]).encode("ascii"), mode=0o644, durable=False)
        except OSError as error:
            if not is_of_disk(error):
                raise ConfigurationError(f"{self._file}: {error.strerror}") from error
            log.warning("%s is not written: %s", self._file, error.strerror)  # the mirror itself may go on
