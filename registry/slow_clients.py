"""The end of the wait for clients that send a byte now and then, or read one."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LOOK_EVERY = 1
"""Seconds between two looks for connections that take too long."""


class Deadline:
    """Cuts off connections whose request is not read, handled and answered within some seconds.

    gunicorn's threads read and write in blocking calls, and a timeout of the socket begins anew with every byte.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: dict[Any, float] = {}  # by connection

    def over(self, handle: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """gunicorn's own ``handle(connection)``, watched from now on."""

        def watched(connection: Any) -> Any:
            self._began[connection] = time.monotonic()
            try:
                return handle(connection)
            finally:
                del self._began[connection]

        threading.Thread(target=self._watch, name="slow-clients", daemon=True).start()
        return watched

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            late = time.monotonic() - self._seconds
            for connection, began in list(self._began.items()):
                if began < late:
                    with suppress(OSError):  # it may end by itself at this moment
                        connection.sock.shutdown(socket.SHUT_RDWR)  # its thread reads the end of the stream
