"""How gunicorn serves a registry: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``.

The names below are gunicorn's settings; `registry.serving.server` takes them from here too.
"""

import os
import threading
from typing import Any

from registry.serving.drain import DRAIN
from registry.settings import Settings, drain_seconds

SERVED_AT_ONCE = 8
"""Calls that a worker serves at once; most wait for the database. The next ones are complete, and wait for a thread."""
WAITING_CALLS = 10_000
"""Calls that may wait for a change in one worker, where it has descriptors for them: 12 KiB each."""

worker_class = "registry.serving.worker.Worker"
threads = SERVED_AT_ONCE
worker_connections = 1000  # of one worker, beside those whose call waits for a change; more wait in the kernel's queue
backlog = 512
keepalive = 5  # seconds; a proxy in front uses a connection again
timeout = 30  # seconds without a sign of life from a worker as a whole
graceful_timeout = 20  # calls that wait for a change are answered at once
limit_request_line = 4094  # bytes; the longest target that means anything, a ledger proof's, has some 500
limit_request_fields = 50
limit_request_field_size = 8190  # bytes; a request token has 6 KiB at most
forwarder_headers = ""  # no header of a proxy may shift the routing away from the request line
control_socket_disable = True  # nobody asked for a socket that steers the server
access_log_format = '%(h)s - - %(t)s "%(r)s" %(s)s %(b)s'  # the user of gunicorn's own may hold the end of a line
proc_name = "peerseal-registry"

SOCKET_TIMEOUT = 10
"""Seconds for which the first or next bytes of a request are waited for."""
REQUEST_DEADLINE = 45
"""Seconds from the first byte of a request until all of it is here, 64 KiB of head and of body; and for its answer,
4 MiB at most, until the client has taken it."""


def on_starting(server: Any) -> None:
    """Says what another class of workers does, which ``--worker-class`` and GUNICORN_CMD_ARGS can choose."""
    if server.cfg.worker_class_str != worker_class:
        server.log.warning(
            "worker class %s, not %s: calls for changes are answered at once, and slow clients hold threads",
            server.cfg.worker_class_str,
            worker_class,
        )


def when_ready(server: Any) -> None:
    """In the master, before it forks its workers: a SIGTERM drains the node first."""
    DRAIN.before_stop_of(server, drain_seconds(os.environ))


def pre_request(_worker: Any, request: Any) -> None:
    """While the node drains no connection is kept: the client sends its next request to another node."""
    if DRAIN.began:
        request.force_close()


def post_worker_init(worker: Any) -> None:
    """Has the worker watch the ledger without waiting for a request. A node that drains is not ready. What is missing
    at the start, such as a migration, the first worker logs."""
    from registry.web.wire import EXTENSION

    served = worker.wsgi.extensions[EXTENSION]
    served.watch.start()
    served.checks.for_reading("serving", DRAIN.trouble)
    if worker.age == 1:
        threading.Thread(target=served.readiness, name="readiness", daemon=True).start()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Counts what the worker had not counted yet."""
    from registry.web.metrics import answered

    answered.count()


def on_exit(_server: Any) -> None:
    """The master removes what its workers shared."""
    from registry.web.worker_metrics import remove_metrics

    remove_metrics(Settings.from_environ(os.environ).home)
