"""How gunicorn serves a registry: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``.

The names in lower case are gunicorn's settings; `registry.limits.ServerLimits` has their units and reasons.
``peerseal-registry serve`` reads them from here as well.
"""

import os
import threading
from typing import Any

from registry.limits import server_limits
from registry.serving.drain import DRAIN
from registry.settings import Settings, drain_seconds, metrics_port, preloads

_limits = server_limits(os.environ)
_drain_seconds = drain_seconds(os.environ)
_metrics_port = metrics_port(os.environ)

WAITING_CALLS = 10_000
"""Calls that may wait for a change in one worker, 12 KiB each, if it has enough file descriptors."""
SOCKET_TIMEOUT = _limits.socket_timeout
REQUEST_DEADLINE = _limits.request_deadline

worker_class = "registry.serving.worker.Worker"
logger_class = "registry.serving.logger.Logger"  # as ever, or JSON: REGISTRY_LOG_FORMAT
preload_app = preloads(os.environ)
threads = _limits.threads
worker_connections = _limits.worker_connections
backlog = _limits.backlog
keepalive = _limits.keepalive
timeout = _limits.timeout
graceful_timeout = _limits.graceful_timeout
limit_request_line = _limits.request_line
limit_request_fields = _limits.request_headers
limit_request_field_size = _limits.request_header
forwarder_headers = ""  # no header of a proxy may shift the routing away from the request line
control_socket_disable = True  # the registry needs no socket that controls the server
access_log_format = '%(h)s - - %(t)s "%(r)s" %(s)s %(b)s'  # without the user: it may hold a line break
proc_name = "peerseal-registry"


def on_starting(server: Any) -> None:
    """Warns of another worker class, which ``--worker-class`` and GUNICORN_CMD_ARGS can choose."""
    if server.cfg.worker_class_str != worker_class:
        server.log.warning(
            "worker class %s, not %s: calls for changes are answered at once, and slow clients hold threads",
            server.cfg.worker_class_str,
            worker_class,
        )


def when_ready(server: Any) -> None:
    """Has SIGTERM drain the node before it stops, and warns of metrics that are answered at no port. The master calls
    this before it forks its workers."""
    DRAIN.delay_stop_of(server, _drain_seconds)
    ports = {name[1] for listener in server.LISTENERS if isinstance(name := listener.getsockname(), tuple)}
    if _metrics_port is not None and _metrics_port not in ports:
        server.log.warning(
            "REGISTRY_METRICS_ONLY_AT=%d: gunicorn does not listen at that port, so /metrics is answered nowhere: add"
            " --bind :%d",
            _metrics_port,
            _metrics_port,
        )


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
