"""How gunicorn serves a registry: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``.

The names in lower case are gunicorn's settings. ``peerseal-registry serve`` reads them from here as well.
"""

import os
import threading
from typing import Any

from registry.serving.drain import DRAIN
from registry.settings import Settings, drain_seconds

SERVED_AT_ONCE = 8
"""Calls that a worker serves at once; most of them wait for the database. Further calls, fully received, wait for a
thread."""
WAITING_CALLS = 10_000
"""Calls that may wait for a change in one worker, 12 KiB each, if it has enough file descriptors."""

worker_class = "registry.serving.worker.Worker"
logger_class = "registry.serving.logger.Logger"  # as ever, or JSON: REGISTRY_LOG_FORMAT
threads = SERVED_AT_ONCE
worker_connections = 1000  # of one worker, without calls that wait for a change; more wait in the kernel's queue
backlog = 512
keepalive = 5  # seconds; a proxy in front reuses connections
timeout = 30  # seconds without a sign of life from a worker as a whole
graceful_timeout = 20  # calls that wait for a change are answered at once
limit_request_line = 4094  # bytes; the longest valid target, a ledger proof's, has some 500
limit_request_fields = 50
limit_request_field_size = 8190  # bytes; a request token has 6 KiB at most
forwarder_headers = ""  # no header of a proxy may shift the routing away from the request line
control_socket_disable = True  # the registry needs no socket that controls the server
access_log_format = '%(h)s - - %(t)s "%(r)s" %(s)s %(b)s'  # without the user: it may hold a line break
proc_name = "peerseal-registry"

SOCKET_TIMEOUT = 10
"""Seconds to wait for the first or next bytes of a request."""
REQUEST_DEADLINE = 45
"""Seconds from the first byte of a request until all of it has arrived: 64 KiB of head and of body. The same for its
answer, 4 MiB at most, until the client has read it."""


def on_starting(server: Any) -> None:
    """Warns of another worker class, which ``--worker-class`` and GUNICORN_CMD_ARGS can choose."""
    if server.cfg.worker_class_str != worker_class:
        server.log.warning(
            "worker class %s, not %s: calls for changes are answered at once, and slow clients hold threads",
            server.cfg.worker_class_str,
            worker_class,
        )


def when_ready(server: Any) -> None:
    """Has SIGTERM drain the node before it stops. The master calls this before it forks its workers."""
    DRAIN.delay_stop_of(server, drain_seconds(os.environ))


def pre_request(_worker: Any, request: Any) -> None:
    """Closes each connection after its answer while the node drains: the client then uses another node."""
    if DRAIN.began:
        request.force_close()


def post_worker_init(worker: Any) -> None:
    """Starts the worker's watch of the ledger, and adds draining to its readiness. The first worker also logs what is
    missing at the start, such as a migration."""
    from registry.web.wire import EXTENSION

    served = worker.wsgi.extensions[EXTENSION]
    served.watch.start()
    served.checks.for_reading("serving", DRAIN.trouble)
    if worker.age == 1:
        threading.Thread(target=served.readiness, name="readiness", daemon=True).start()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Counts the worker's last requests."""
    from registry.web.metrics import answered

    answered.count()


def on_exit(_server: Any) -> None:
    """Removes the metrics that the workers shared."""
    from registry.web.worker_metrics import remove_metrics

    remove_metrics(Settings.from_environ(os.environ).home)
