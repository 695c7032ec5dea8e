"""A memory registry at a real socket, and forked processes: for tests of several processes at once."""

import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from peerseal.runtime.forks import BackgroundWork
from peerseal.testing import MemoryRegistry
from peerseal.transport.fetch import Answer
from tests.support.answering import answering


@contextmanager
def served(registry: MemoryRegistry) -> Iterator[str]:
    """The registry's URL, on loopback. A registry that is down cuts the connection."""
    at_work = BackgroundWork()
    signing = ThreadPoolExecutor(1)  # a thread that has used OpenSSL takes a lock of it when it ends, maybe at a fork

    def signed(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        with at_work:  # its signatures are made in this process, which the tests fork
            return registry.call(method, path, body=body, headers=headers)

    def called(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        return signing.submit(signed, method, path, body, headers).result()

    server = ThreadingHTTPServer(("127.0.0.1", 0), answering(called))
    ending = threading.Event()

    def serve() -> None:  # it wakes for connections alone: a thread that wakes by the clock may do so at a fork
        while not ending.is_set():
            server.handle_request()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ending.set()
        socket.create_connection(server.server_address[:2]).close()
        serving.join()
        server.server_close()
        signing.shutdown()


class Child:
    """A forked process that does ``job`` and ends without any clean-up, as ``os._exit`` does."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self._answer, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(job, writer)
        os.close(writer)

    def result(self) -> Any:
        """What the job gave; waits for the end of the process. An error in it is an AssertionError here."""
        with os.fdopen(self._answer, "rb") as answer:
            outcome = answer.read()
        os.waitpid(self.pid, 0)
        assert outcome, "the process was killed"
        done, value = pickle.loads(outcome)
        assert done, value
        return value

    def kill(self) -> None:
        """``kill -9``, and the end awaited."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._answer)

    @staticmethod
    def _work(job: Callable[[], Any], writer: int) -> None:
        try:
            outcome = pickle.dumps((True, job()))
        except BaseException as error:
            outcome = pickle.dumps((False, repr(error)))
        os.write(writer, outcome)
        os._exit(0)


def in_children(count: int, job: Callable[[int], Any]) -> list[Any]:
    """What ``job(0)``, ``job(1)`` and so on give in that many forked processes at once."""
    children = [Child(lambda number=number: job(number)) for number in range(count)]
    return [child.result() for child in children]
