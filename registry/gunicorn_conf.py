"""How gunicorn serves a registry: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``.

The names below are gunicorn's settings; `registry.server` takes them from here too.
"""

import os
import resource
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from registry.drain import DRAIN
from registry.gate import Gate
from registry.hung_up import let_go_at_once
from registry.settings import Limits, Settings, drain_seconds
from registry.slow_clients import Deadline

SERVED_AT_ONCE = 8
"""Calls that a worker serves at once; most wait for the database. Others stand before the gate."""
SLOW_AT_ONCE = 64
"""Threads beside those and the ones that wait for a change: for what comes in, or goes out, slowly."""

worker_class = "gthread"
threads = Limits().waiting_calls + SERVED_AT_ONCE + SLOW_AT_ONCE  # at most: one is made when no other is idle
worker_connections = threads + 512  # of one worker; that many may be idle, more wait in the kernel's queue
backlog = 512
keepalive = 5  # seconds; a proxy in front uses a connection again, and an idle one holds no thread
timeout = 30  # seconds without a sign of life from a worker as a whole
graceful_timeout = 20  # calls that wait for a change are answered at once
limit_request_line = 4094  # bytes; the longest target that means anything, a ledger proof's, has some 500
limit_request_fields = 50
limit_request_field_size = 8190  # bytes; a request token has 6 KiB at most
forwarder_headers = ""  # no header of a proxy may shift the routing away from the request line
control_socket_disable = True  # nobody asked for a socket that steers the server
proc_name = "peerseal-registry"

SOCKET_TIMEOUT = 10
"""Seconds for which a thread waits for the next bytes of a request, or for room to send an answer."""
REQUEST_DEADLINE = 45
"""Seconds for which a thread is busy with one request, however slowly it comes in: 64 KiB at most, and 4 MiB back. The
20 s for which it may wait for a change are among them."""

_OTHER_DESCRIPTORS = 256


def when_ready(server: Any) -> None:
    """In the master, before it forks its workers: a SIGTERM drains the node first."""
    DRAIN.before_stop_of(server, drain_seconds(os.environ))


def pre_request(_worker: Any, request: Any) -> None:
    """While the node drains no connection is kept: the client sends its next request to another node."""
    if DRAIN.began:
        request.force_close()


def post_worker_init(worker: Any) -> None:
    """Has the kernel end the wait for a client that fell silent. gunicorn's threads would wait for ever, and as many
    half-sent requests as there are threads would stop a worker for good. Accepted sockets inherit this on Linux."""
    wait = struct.pack("@ll", SOCKET_TIMEOUT, 0)  # a struct timeval
    for listener in worker.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
    worker.handle = Deadline(REQUEST_DEADLINE).over(worker.handle)
    served = _registry(worker)
    _watch_readiness(served, first=worker.age == 1)
    waiting = served.changes.waiting
    waiting.at_most(max(0, worker.cfg.threads - SERVED_AT_ONCE - SLOW_AT_ONCE))  # --threads may have said otherwise
    worker.notify = _ending(waiting, worker)
    worker.wsgi = Gate(SERVED_AT_ONCE).before(worker.wsgi)
    if not worker.cfg.is_ssl:
        worker.on_client_socket_readable = let_go_at_once(worker)
    worker.worker_connections = min(worker.worker_connections, _connections_allowed(worker.worker_connections))


def _registry(worker: Any) -> Any:
    """The registry that the worker serves."""
    from registry.web.wire import EXTENSION

    return worker.wsgi.extensions[EXTENSION]


def _watch_readiness(served: Any, first: bool) -> None:
    """A node that drains is not ready. What is missing at the start, such as a migration, the first worker logs."""
    served.checks.for_reading("serving", DRAIN.trouble)
    if first:
        threading.Thread(target=served.readiness, name="readiness", daemon=True).start()


def _ending(waiting: Any, worker: Any) -> Callable[[], None]:
    """gunicorn's own ``notify()``, which its loop calls at least once a second, and first of all when the worker is
    told to stop: whoever waits for a change then is answered, or the worker would wait for them."""
    notify = worker.notify

    def notified() -> None:
        notify()
        if not worker.alive:
            waiting.end()

    return notified


def _connections_allowed(wanted: int) -> int:
    """How many connections the process has descriptors for, with as many allowed as that takes: up to two each, and
    some for files and the database. gunicorn's worker ends where it has none left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _OTHER_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (soft - _OTHER_DESCRIPTORS) // 2


def worker_exit(_server: Any, _worker: Any) -> None:
    """Counts what the worker had not counted yet."""
    from registry.web.counting import answered

    answered.count()


def on_exit(_server: Any) -> None:
    """The master removes what its workers shared."""
    from registry.web.shared_counts import remove_counts

    remove_counts(Settings.from_environ(os.environ).home)
