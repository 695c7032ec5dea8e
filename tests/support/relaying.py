"""A process with the relay of an outbox, until it is killed: ``python -m tests.support.relaying URL LETTERS [DIES]``.

``DIES`` is ``kafka://…``, the broker to send to in the place of the file; then the process kills itself, as by
``kill -9``, once the broker has confirmed the first batch, before anything is deleted.
"""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import MetaData, create_engine

from peerseal.messaging import Outlet, open_outlet
from peerseal.outbox import Outbox, OutboxLimits, outbox_table
from tests.support.letterbox import Letterbox


class DiesConfirmed:
    """An outlet whose process does not outlive a confirmation."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        """See Outlet."""
        self._outlet.send(topic, payload, headers, key)

    def flush(self, timeout: float) -> None:
        """See Outlet."""
        self._outlet.flush(timeout)
        os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """See Outlet."""
        self._outlet.close()


def main(database_url: str, letters: str, *dies: str) -> None:
    """Relay until the process is killed."""
    outbox = Outbox(create_engine(database_url), outbox_table(MetaData()), limits=OutboxLimits(batch=5, poll=0.01))
    if dies:
        outbox.start(lambda: DiesConfirmed(open_outlet(dies[0])))
    else:
        outbox.start(Letterbox(Path(letters)).connect)
    print("relaying", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
