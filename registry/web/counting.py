"""What the registry counts. No label comes from a caller: endpoints, codes and ways in are ours, so the number of
series is bounded, and none can hold a secret.

A request is noted down when it is answered, and counted with others soon after: a warm answer takes some 60 µs. Where
several workers serve, they add up in `registry.web.shared_counts`. No failure in here changes an answer.
"""

import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from flask import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from registry.storage.engine import ConnectionCounts
from registry.web.shared_counts import SharedCounts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

COUNT_AFTER = 0.5
"""Seconds after which requests that were noted down are counted."""
BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
"""Seconds."""
COUNTED = CollectorRegistry()
SHARED = SharedCounts(COUNTED)

_BEGAN = "peerseal.began"  # in a WSGI environment: when its request came in
_WAYS = {"join_token": "join_token", "kid": "voucher", "oidc": "platform", "dev": "first_come"}


class TogetherHistogram(Histogram):
    """A histogram that takes many observations at once; prometheus_client's own takes one."""

    def observe_all(self, values: list[float]) -> None:
        """What as many calls of ``observe`` do."""
        values = sorted(values)
        places = [0, *(bisect_right(values, bound) for bound in BUCKETS), len(values)]
        self._sum.inc(sum(values))
        for bucket, (first, last) in zip(self._buckets, pairwise(places), strict=True):
            if last > first:
                bucket.inc(last - first)


REQUESTS = Counter("registry_requests", "Requests answered.", ["endpoint", "status"], registry=COUNTED)
SECONDS = TogetherHistogram(
    "registry_request_seconds", "Seconds until the answer was made.", ["endpoint"], registry=COUNTED, buckets=BUCKETS
)
REFUSALS = Counter("registry_refusals", "Requests refused, by the code of the answer.", ["code"], registry=COUNTED)
ADMISSIONS = Counter("registry_admissions", "Keys admitted over HTTP, by the way in.", ["way"], registry=COUNTED)


WAITING = Gauge("registry_waiting_calls", "Calls that wait for a change now.", registry=COUNTED)


class DatabaseConnections(Collector):
    """The connections of this process to its database."""

    def __init__(self) -> None:
        self._counts: Callable[[], ConnectionCounts] | None = None

    def count(self, counts: Callable[[], ConnectionCounts]) -> None:
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
        for wait in ("connect", "answer", "pool"):
            timeouts.add_metric([wait], counts.timeouts.get(wait, 0))
        yield from (connections, timeouts)


DATABASE = DatabaseConnections()
COUNTED.register(DATABASE)


class Trouble:
    """What goes wrong while something is counted is logged, the first time, and goes no further."""

    def __init__(self) -> None:
        self._told = False

    @contextmanager
    def contained(self) -> Iterator[None]:
        """For a block that counts, and does nothing else."""
        try:
            yield
        except Exception:
            if not self._told:
                self._told = True
                log.exception("something could not be counted, and further failures of that kind are not logged")


class Answered:
    """Requests that were answered and are not counted yet. Noting one down takes no lock: threads only append, and who
    counts takes from the front."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str | None, int], list[float]] = {}
        self._counting = threading.Lock()
        self._due = False

    def note(self, endpoint: str | None, status: int, seconds: float) -> None:
        """Notes down a request that was answered with that status."""
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
            except RuntimeError:  # no thread is to be had now
                self._due = False

    def count(self) -> None:
        """Counts what was noted down, and tells the other workers."""
        self._due = False
        with trouble.contained(), self._counting:
            for (endpoint, status), noted in list(self._noted.items()):
                seconds = noted[:]
                del noted[: len(seconds)]
                if seconds:
                    REQUESTS.labels(endpoint or "none", f"{status // 100}xx").inc(len(seconds))
                    SECONDS.labels(endpoint or "none").observe_all(seconds)
            SHARED.publish()

    def forget(self) -> None:
        """In a forked child: what was noted down is its parent's to count, and the parent's timer does not run here."""
        self.__init__()  # type: ignore[misc]


trouble = Trouble()
answered = Answered()
os.register_at_fork(after_in_child=answered.forget)


def timed(application: "WSGIApplication") -> "WSGIApplication":
    """The application, with the moment at which each request came in written down."""

    def begun(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        environ.setdefault(_BEGAN, time.perf_counter())  # a call that waited comes again
        return application(environ, start_response)

    return begun


def note(environ: "WSGIEnvironment", status: int) -> None:
    """Notes down that the request with this environment is answered."""
    with trouble.contained():
        request: Request = environ["werkzeug.request"]
        answered.note(request.endpoint, status, time.perf_counter() - environ[_BEGAN])


def admitted(admitted_by: Mapping[str, str]) -> None:
    """Counts a key by what it was admitted on, as `registry.services.keys.admit` names it."""
    with trouble.contained():
        ADMISSIONS.labels(next((_WAYS[ground] for ground in admitted_by if ground in _WAYS), "approved")).inc()


def refused(code: str) -> None:
    """Counts a refusal."""
    with trouble.contained():
        REFUSALS.labels(code).inc()
