"""The registry's metrics. No label value comes from a caller: endpoints, codes and grounds of admission are the
registry's own, so the number of series is bounded and none can hold a secret.

A request is noted when it is answered, and counted together with others soon after, because a warm answer takes only
some 60 µs. `registry.web.worker_metrics` adds up the metrics of several workers. A failure to count changes no answer.
"""

import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from peerseal.runtime.process_metrics import process_metrics
from registry.storage.engine import ConnectionCounts
from registry.web.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

COUNT_AFTER = 0.5
"""Seconds after which noted requests are counted."""
BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
"""Seconds."""
PROCESS = CollectorRegistry()
"""The metrics of this process."""
WORKERS = WorkerMetrics(PROCESS)
"""The metrics of all workers of this server."""

ENDPOINT = "registry.endpoint"
"""The key of the endpoint in the WSGI environment of a request that is answered."""
_BEGAN = "peerseal.began"  # in a WSGI environment: when its request came in
_WAYS = {"join_token": "join_token", "kid": "voucher", "oidc": "platform", "dev": "first_come"}


class RequestSeconds(Collector):
    """A histogram of the seconds until an answer was made, by endpoint. It takes many observations at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}  # by bucket; the last one has no upper bound
        self._sums: dict[str, float] = {}

    def observe_all(self, endpoint: str, seconds: list[float]) -> None:
        """Adds observations."""
        values = sorted(seconds)
        ends = [0, *(bisect_right(values, bound) for bound in BUCKETS), len(values)]
        with self._lock:
            before = self._counts.get(endpoint, [0] * (len(BUCKETS) + 1))
            self._counts[endpoint] = [
                count + last - first for count, (first, last) in zip(before, pairwise(ends), strict=True)
            ]
            self._sums[endpoint] = self._sums.get(endpoint, 0.0) + sum(values)

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        found = HistogramMetricFamily(
            "registry_request_seconds", "Seconds until the answer was made.", labels=["endpoint"]
        )
        bounds = [*map(str, BUCKETS), "+Inf"]
        with self._lock:
            for endpoint, counts in self._counts.items():
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                found.add_metric([endpoint], buckets, self._sums[endpoint])
        yield found


class CachedBytes(Collector):
    """The bytes that the caches of this process hold."""

    def __init__(self) -> None:
        self._held: Callable[[], Mapping[str, int]] = dict

    def read_from(self, held: Callable[[], Mapping[str, int]]) -> None:
        """Collects these numbers, by cache, from now on."""
        self._held = held

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        found = GaugeMetricFamily("registry_cache_bytes", "Bytes that the caches hold.", labels=["cache"])
        for cache, held in self._held().items():
            found.add_metric([cache], held)
        yield found


class DatabaseConnections(Collector):
    """The connections of this process to its database."""

    def __init__(self) -> None:
        self._counts: Callable[[], ConnectionCounts] | None = None

    def read_from(self, counts: Callable[[], ConnectionCounts]) -> None:
        """Collects these counts from now on."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        if self._counts is None:
            return
        counts = self._counts()
        connections = GaugeMetricFamily(
            "registry_database_connections", "Connections to the database: the pool's, and own ones.", labels=["state"]
        )
        for state in ("idle", "used", "own"):
            connections.add_metric([state], getattr(counts, state))
        timeouts = CounterMetricFamily(
            "registry_database_timeouts", "Waits for the database that ended without an answer.", labels=["wait"]
        )
        for wait in ("connect", "answer", "pool", "lock", "statement"):
            timeouts.add_metric([wait], counts.timeouts.get(wait, 0))
        yield from (connections, timeouts)
        yield GaugeMetricFamily(
            "registry_database_connections_limit", "Connections that the pool may have.", counts.most
        )


class ThisProcess(Collector):
    """What this process uses, and that it runs: the sum over all workers is their number."""

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield GaugeMetricFamily("registry_workers", "Worker processes.", 1)
        for metric in process_metrics("registry"):
            family = Metric(metric.name.removesuffix("_total"), metric.help, metric.kind)
            for labels, number in metric.samples:
                family.add_sample(metric.name, dict(labels), number)
            yield family


REQUESTS = Counter("registry_requests", "Requests answered.", ["endpoint", "status"], registry=PROCESS)
SECONDS = RequestSeconds()
REFUSALS = Counter("registry_refusals", "Requests refused, by the code of the answer.", ["code"], registry=PROCESS)
ADMISSIONS = Counter("registry_admissions", "Keys admitted over HTTP, by the way in.", ["way"], registry=PROCESS)
WAITING = Gauge("registry_waiting_calls", "Calls that wait for a change now.", registry=PROCESS)
WAITING_LIMIT = Gauge("registry_waiting_calls_limit", "Calls that may wait for a change.", registry=PROCESS)
RUNNING = Gauge("registry_running_calls", "Calls that run in a thread.", registry=PROCESS)
QUEUED = Gauge("registry_queued_calls", "Calls that are queued for a thread.", registry=PROCESS)
THREADS = Gauge("registry_call_threads", "Threads that run calls.", registry=PROCESS)
CONNECTIONS = Gauge("registry_connections", "Open connections of clients.", registry=PROCESS)
CONNECTIONS_LIMIT = Gauge("registry_connections_limit", "Connections of clients that may be open.", registry=PROCESS)
DATABASE = DatabaseConnections()
CACHES = CachedBytes()
PROCESS.register(SECONDS)
PROCESS.register(DATABASE)
PROCESS.register(ThisProcess())
PROCESS.register(CACHES)


class CountingErrors:
    """Logs the first error of the code that counts, and lets no error of it reach a request."""

    def __init__(self) -> None:
        self._logged = False

    @contextmanager
    def contained(self) -> Iterator[None]:
        """For a block that counts, and does nothing else."""
        try:
            yield
        except Exception:
            if not self._logged:
                self._logged = True
                log.exception("something could not be counted, and further failures of that kind are not logged")


class AnsweredRequests:
    """Requests that were answered and are not counted yet. Noting a request takes no lock: threads only append, and
    the thread that counts removes from the front."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """In a forked child, too: its parent counts what it noted, and its parent's timer does not run here."""
        self._noted: dict[tuple[str | None, int], list[float]] = {}
        self._counting = threading.Lock()
        self._due = False

    def note(self, endpoint: str | None, status: int, seconds: float) -> None:
        """Notes a request that was answered with that status."""
        try:
            self._noted[endpoint, status].append(seconds)
        except KeyError:
            self._noted.setdefault((endpoint, status), []).append(seconds)
        if not self._due:
            self._due = True
            timer = threading.Timer(COUNT_AFTER, self.count)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # the process may have no more threads; the next request tries again
                self._due = False

    def count(self) -> None:
        """Counts the noted requests, and publishes the metrics for the other workers."""
        self._due = False
        with errors.contained(), self._counting:
            for (endpoint, status), noted in list(self._noted.items()):
                seconds = noted[:]
                del noted[: len(seconds)]
                if seconds:
                    REQUESTS.labels(endpoint or "none", f"{status // 100}xx").inc(len(seconds))
                    SECONDS.observe_all(endpoint or "none", seconds)
            WORKERS.publish()


errors = CountingErrors()
answered = AnsweredRequests()


def timed(application: "WSGIApplication") -> "WSGIApplication":
    """The application, which records in the WSGI environment when each request came in."""

    def begun(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        environ.setdefault(_BEGAN, time.perf_counter())  # a call whose wait ended without a list runs twice
        return application(environ, start_response)

    return begun


def note(environ: "WSGIEnvironment", endpoint: str | None, status: int) -> None:
    """Notes that the request with this environment, for that endpoint, is answered."""
    environ[ENDPOINT] = endpoint
    with errors.contained():
        answered.note(endpoint, status, time.perf_counter() - environ[_BEGAN])


def count_admission(admitted_by: Mapping[str, str]) -> None:
    """Counts an admitted key by its ground, as `registry.services.keys.admit` names it."""
    with errors.contained():
        ADMISSIONS.labels(next((_WAYS[ground] for ground in admitted_by if ground in _WAYS), "approved")).inc()


def count_refusal(code: str) -> None:
    """Counts a refusal."""
    with errors.contained():
        REFUSALS.labels(code).inc()


def refusals_by_code() -> dict[str, int]:
    """The refusals of all workers of this server since it started, by the code of the answer."""
    return {
        sample.labels["code"]: int(sample.value)
        for metric in WORKERS.collect()
        if metric.name == "registry_refusals"
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
