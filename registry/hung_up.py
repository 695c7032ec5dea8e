"""Kept connections that their clients close: most calls of newcomers end that way."""

import socket
from collections.abc import Callable
from typing import Any


def let_go_at_once(worker: Any) -> Callable[[Any, Any], None]:
    """gunicorn's own ``on_client_socket_readable(connection, client)``, but for connections of which the end is all
    that can be read. gunicorn gives those to a thread like any call, which takes a sixth of all that a registration
    over a connection of its own costs.

    A connection under TLS cannot be looked into: leave those to gunicorn.
    """
    readable = worker.on_client_socket_readable

    def readable_or_ended(connection: Any, client: Any) -> None:
        if not ended(client):
            readable(connection, client)
            return
        worker.poller.unregister(client)
        worker.keepalived_conns.remove(connection)
        worker.nr_conns -= 1
        connection.close()

    return readable_or_ended


def ended(client: socket.socket) -> bool:
    """Whether nothing more will come from there."""
    try:
        return not client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:  # reset, or timed out: it would end the worker's loop
        return True
