"""What a node takes: connections to PostgreSQL under load, and memory that its workers share."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import requests
from sqlalchemy import make_url

from registry.limits import Limits
from tests.registry.serving.test_push_server import peers
from tests.registry.web.test_metrics import samples_of
from tests.support.load import at_a_time, get
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

CALLERS = 12
"""More than a worker serves at once."""
MOST = Limits().database_connections


class Load:
    """Threads that call until `end`, each kind of call in turn, over a connection each."""

    def __init__(self, url: str, operator: str) -> None:
        self.statuses: Counter[int] = Counter()
        self._url = url
        self._operator = {"Authorization": f"Bearer {operator}"}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        with requests.Session() as session:
            calls: tuple[Callable[[], requests.Response], ...] = (
                lambda: session.get(f"{self._url}/v1/domain.jwt", timeout=30),
                lambda: session.get(f"{self._url}/v1/audit", headers=self._operator, timeout=30),
                lambda: session.post(
                    f"{self._url}/v1/join-tokens",
                    json={"service": f"service-{number}", "ttl": 600, "uses": 1},
                    headers=self._operator,
                    timeout=30,
                ),
            )
            for call in itertools.cycle(calls):
                if self._ended.is_set():
                    return
                self.statuses[call().status_code] += 1


class Watched:
    """The numbers of connections that the server of a database has seen from registries."""

    def __init__(self, url: str) -> None:
        parts = make_url(url)
        self.counts: Counter[int] = Counter()
        self._own = psycopg.connect(
            host=str(parts.query["host"]), user="postgres", dbname=parts.database, autocommit=True
        )

    def look(self) -> int:
        count = self._own.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'peerseal-registry'"
        ).fetchall()[0][0]
        self.counts[count] += 1
        return int(count)

    def close(self) -> None:
        self._own.close()


@pytest.mark.slow
def test_a_worker_under_load_has_four_connections_at_most(tmp_path: Path, postgres_url: str) -> None:
    with Stack(tmp_path, database_url=postgres_url) as stack:
        server = stack.start_registry(workers=1)
        operator = stack.operate_json("operator-token", "create")["token"]
        watched = Watched(postgres_url)
        with peers(server, 3, wait=20):
            load = Load(server.url, operator)
            try:
                until(lambda: watched.look() >= MOST and sum(load.statuses.values()) > 600)
            finally:
                load.end()
                watched.close()
        assert watched.counts.most_common(1)[0][0] == MOST, watched.counts
        assert max(watched.counts) <= MOST + 1, watched.counts  # for the moment of a second look (fork guard)
        assert set(load.statuses) == {200, 201}, load.statuses
        found = samples_of(requests.get(f"{server.url}/metrics", timeout=10).text)
        connections = [count for (name, _), count in found.items() if name == "registry_database_connections"]
        assert 0 < sum(connections) <= MOST


def memory(pid: str) -> int:
    """The KiB of a process, of what it shares with n others one n-th."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("\nPss:")[2].split()[0])


@pytest.mark.thorough
def test_workers_share_the_memory_of_the_loaded_application(tmp_path: Path) -> None:
    shared = memory_of_workers(tmp_path / "on", preload="on")
    assert shared < 0.85 * memory_of_workers(tmp_path / "off", preload="off")


def memory_of_workers(folder: Path, preload: str) -> int:
    """The KiB of two workers that have served some calls."""
    with Stack(folder) as stack:
        stack.registry_settings["REGISTRY_PRELOAD"] = preload
        server = stack.start_registry(workers=2)
        assert at_a_time(4, 40, lambda: get(f"{server.url}/v1/changes")[0]) == {200: 40}
        assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1, "no thread is lost in a fork"
        workers = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        return sum(map(memory, workers))
