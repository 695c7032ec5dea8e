"""Kept connections that their clients close: most calls of newcomers end that way."""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def let_go_at_once(worker: Any) -> Callable[[Any, Any], None]:
    """gunicorn's own ``on_client_socket_readable(connection, client)``, but for connections of which the end is all
    that can be read. gunicorn gives those to a thread like any call, which takes a sixth of all that a registration
    over a connection of its own costs.

    A connection under TLS cannot be looked into: leave those to gunicorn.
    """
    readable = worker.on_client_socket_readable

    def readable_or_ended(connection: Any, client: Any) -> None:
        if not _ended(client):
            readable(connection, client)
            return
        worker.poller.unregister(client)
        worker.keepalived_conns.remove(connection)
        worker.nr_conns -= 1
        connection.close()

    return readable_or_ended


def _ended(client: socket.socket) -> bool:
    with suppress(BlockingIOError):
        try:
            return not client.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True
    return False
