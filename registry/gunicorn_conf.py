"""How gunicorn serves a registry: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``.

The names below are gunicorn's settings; `registry.server` takes them from here too.
"""

import socket
import struct
from typing import Any

worker_class = "gthread"
threads = 8  # most wait for the database, or for a slow client
graceful_timeout = 20
forwarder_headers = ""  # no header of a proxy may shift the routing away from the request line
control_socket_disable = True  # nobody asked for a socket that steers the server
proc_name = "peerseal-registry"

SOCKET_TIMEOUT = 10
"""Seconds for which a thread waits for the next bytes of a request, or for room to send an answer."""


def post_worker_init(worker: Any) -> None:
    """Has the kernel end the wait for a client that fell silent. gunicorn's threads would wait for ever, and as many
    half-sent requests as there are threads would stop a worker for good. Accepted sockets inherit this on Linux."""
    wait = struct.pack("@ll", SOCKET_TIMEOUT, 0)  # a struct timeval
    for listener in worker.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
