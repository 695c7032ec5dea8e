"""A memory registry at a real socket that keeps the question what changed, as the real one does, and counts."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from peerseal.protocol.names import REGISTRY
from peerseal.runtime.forks import BackgroundWork
from peerseal.testing import Answer, MemoryRegistry
from tests.support.answering import answering


class PatientRegistry(MemoryRegistry):
    """``asking`` is how many questions it keeps at the moment, ``most`` how many it kept at once at most, ``watched``
    the services that each question named. While it ``holds`` it counts, and answers nothing. Without ``filters`` it is
    of a release that tells each caller of each change."""

    def __init__(self, domain: str = "test.internal") -> None:
        self.asking = 0
        self.most = 0
        self.watched: list[frozenset[str]] = []
        self.filters = True
        self.holds = False
        self.at_work = BackgroundWork()
        self._asked = threading.Lock()
        super().__init__(domain)

    def serve(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The answer to a call, in the registry's own time. Raises FetchError where it is down."""
        if urlsplit(path).path == "/v1/changes":
            self._keep(path)
        elif self.holds:
            self._hold(method, path)
        with self.at_work:  # its signatures are made in this process, which the tests fork
            return self.call(method, path, body=body, headers=headers)

    def _hold(self, method: str, path: str) -> None:
        self.calls[f"{method} {urlsplit(path).path}"] += 1
        while self.holds:
            time.sleep(0.01)

    def _keep(self, path: str) -> None:
        query = parse_qs(urlsplit(path).query)
        since, end = int(query["since"][0]), time.monotonic() + int(query.get("wait", ["0"])[0])
        with self._asked:
            self.asking += 1
            self.most = max(self.most, self.asking)
        watched = set(filter(None, query.get("services", [""])[0].split(",")))
        self.watched.append(frozenset(watched))
        while (
            not self._concerned(since, watched if self.filters else set()) and time.monotonic() < end and not self.down
        ):
            time.sleep(0.01)
        with self._asked:
            self.asking -= 1

    def _concerned(self, since: int, watched: set[str]) -> bool:
        changed = {entry.service or REGISTRY for entry in self.ledger.entries[since:]}
        return bool(changed & (watched | {REGISTRY}) if watched else changed)


@contextmanager
def served(registry: PatientRegistry) -> Iterator[str]:
    """The registry's URL, on loopback. A registry that is down cuts the connection."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            pass  # a worker that was killed while it waited

    server = Server(("127.0.0.1", 0), answering(registry.serve))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
