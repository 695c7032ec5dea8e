"""gunicorn's worker for the registry: one event loop holds the connections, a few threads run the application.

A slow client, an idle connection and a call that waits for a change occupy memory, but no thread. A thread gets a
request when all of it has arrived, and the loop sends the answer. gunicorn starts the worker, parses requests and
formats answers.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from queue import SimpleQueue
from typing import Any

from gunicorn import sock  # type: ignore[import-untyped]
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.http import wsgi  # type: ignore[import-untyped]
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from gunicorn.workers import base  # type: ignore[import-untyped]

from peerseal.runtime.descriptors import connections_allowed
from registry.serving import gunicorn_conf
from registry.serving.connection import LINGER, Connection
from registry.serving.incoming import Incoming
from registry.web.delayed_answer import DelayedBody
from registry.web.metrics import CONNECTIONS, CONNECTIONS_LIMIT, QUEUED, RUNNING, THREADS
from registry.web.wire import EXTENSION

UNSENT_ANSWERS = 4
"""Answers to calls that waited that are made before the loop has sent the first of them. Thousands may be due at once,
and new requests would queue after all of them."""
FOR_READS = 2
"""Threads that serve no writing calls: while writes wait for a database, memory answers reads."""
START_TIMEOUT = 5
"""Seconds for which each new thread waits for the others, so that all are really started."""
ALIVE_PATH = "/healthz"
"""The loop itself answers this path: it needs no thread and no database."""
DEFAULT_ONLY = ("protocol", "http_protocols", "http2_cleartext", "proxy_protocol")
"""gunicorn's settings for which the worker supports the default only: HTTP/1.1, from clients and from proxies."""

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class AnswerBuffer:
    """Collects the bytes of an answer in place of the socket that gunicorn writes to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def sendall(self, piece: bytes) -> None:
        """Keeps the piece until the loop sends it."""
        self.pieces.append(bytes(piece))

    def send(self, _piece: bytes) -> None:
        """Drops gunicorn's "100 Continue", which `registry.serving.incoming` has already sent."""

    def gettimeout(self) -> float:
        """0, as for a socket that never blocks."""
        return 0.0


class Exchange:
    """A request, and its answer as gunicorn formats it."""

    def __init__(self, request: Any, cfg: Any, client: Any, server: Any) -> None:
        self.began = datetime.now()
        self.request = request
        self.client = client
        self.answer = AnswerBuffer()
        self.response, self.environ = wsgi.create(request, self.answer, client, server, cfg)
        self.environ["wsgi.multithread"] = True
        self.failed = False


class Worker(base.Worker):  # type: ignore[misc]
    """The class that `registry.gunicorn_conf` names. ``--threads`` is the number of calls that are served at once,
    ``--worker-connections`` the number of open connections, without those whose call waits for a change."""

    alive: bool

    @classmethod
    def check_config(cls, cfg: Any, _log: Any) -> None:
        """gunicorn calls this at its start, and shows the RuntimeError that it raises for settings that the worker does
        not support."""
        known = Config()
        for name in filter(known.settings.__contains__, DEFAULT_ONLY):
            if (value := getattr(cfg, name)) != (served := getattr(known, name)):
                raise RuntimeError(f"{name}={value!r}: the registry's worker serves with {served!r} only")
        for name in ("threads", "worker_connections"):
            if getattr(cfg, name) < 1:
                raise RuntimeError(f"{name}={getattr(cfg, name)}: expected 1 at least")
        if cfg.is_ssl:
            try:
                sock.ssl_context(cfg)
            except OSError as error:
                files = f"certfile={cfg.certfile}, keyfile={cfg.keyfile}, ca_certs={cfg.ca_certs}"
                raise RuntimeError(f"{files}: no TLS with these: {error}") from error

    def init_process(self) -> None:
        """See gunicorn's Worker. It starts the threads, so that the start fails where a limit does not allow them."""
        self._threads = ThreadPoolExecutor(self.cfg.threads, "call")
        all_run = threading.Barrier(self.cfg.threads)
        for _ in range(self.cfg.threads):
            self._threads.submit(all_run.wait, START_TIMEOUT)
        super().init_process()

    def run(self) -> None:
        """See gunicorn's Worker."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._prepare()
        self._update_accepting()
        while self.alive and self.ppid == os.getppid():
            await self._heartbeat()
        self.alive = False
        self._update_accepting()
        await self._end()

    def _prepare(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._turns = threading.Semaphore(UNSENT_ANSWERS)
        self._writing = asyncio.Semaphore(max(1, self.cfg.threads - FOR_READS))
        threading.Thread(target=self._answer_due, name="answers", daemon=True).start()
        self._tls = sock.ssl_context(self.cfg) if self.cfg.is_ssl else None
        self._connections: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Timeout] = set()
        self._signalled = asyncio.Event()
        self._accepting = self._paused = False
        self._loop.add_reader(self.PIPE[0], self._signal)
        self._waiting_calls = self.wsgi.extensions[EXTENSION].changes.waiting
        self._waiting_connections = self._calls = self._submitted = 0
        room = connections_allowed(self.cfg.worker_connections + gunicorn_conf.WAITING_CALLS)
        self._max_connections = min(self.cfg.worker_connections, room // 2)
        self._waiting_calls.server_holds(room - self._max_connections)
        self._report(room)

    def _report(self, room: int) -> None:
        """Has the metrics show the calls and the connections."""
        threads = self.cfg.threads
        THREADS.set(threads)
        RUNNING.set_function(lambda: min(self._submitted, threads))
        QUEUED.set_function(lambda: self._calls - min(self._submitted, threads))
        CONNECTIONS.set_function(lambda: len(self._connections))
        CONNECTIONS_LIMIT.set(room)

    def _signal(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.PIPE[0], 4096)
        self._signalled.set()

    async def _heartbeat(self) -> None:
        """Tells the master that this process runs, once a second."""
        self.notify()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._signalled.wait()
        self._signalled.clear()

    async def _end(self) -> None:
        """Answers the waiting calls, and lets the other connections finish."""
        self._waiting_calls.end()
        for between in self._idle:
            if not between.expired():
                between.reschedule(self._loop.time() + LINGER)
        ends = self._loop.time() + self.cfg.graceful_timeout
        while self._connections and self._loop.time() < ends:
            self.notify()
            await asyncio.wait(self._connections, timeout=1)
        for task in self._connections:
            task.cancel()

    # connections

    def _accept(self, listener: Any) -> None:
        """Accepts one connection per turn of the loop, so that other connections proceed."""
        try:
            accepted, client = listener.sock.accept()
        except OSError as error:  # another worker accepted it, or the client closed it
            self.log.debug("accept: %s", error)
            if error.errno in _NO_DESCRIPTOR:
                self._pause_accepting()
            return
        accepted.setblocking(False)
        task = asyncio.create_task(self._connected(accepted, client))
        self._connections.add(task)
        task.add_done_callback(self._ended)
        self._update_accepting()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._update_accepting()

    def _pause_accepting(self) -> None:
        """Accepts nothing for a second: without a free descriptor the loop would try the same connection for ever."""
        self._paused = True
        self._loop.call_later(1, self._resume_accepting)
        self._update_accepting()

    def _resume_accepting(self) -> None:
        self._paused = False
        self._update_accepting()

    def _update_accepting(self) -> None:
        """Accepts connections while there is room. Others wait in the kernel's queue, or for another worker."""
        counted = len(self._connections) - self._waiting_connections
        room = self.alive and not self._paused and counted < self._max_connections
        if room == self._accepting:
            return
        self._accepting = room
        for listener in self.sockets:
            if room:
                self._loop.add_reader(listener.sock, self._accept, listener)
            else:
                self._loop.remove_reader(listener.sock)

    async def _connected(self, accepted: Any, client: Any) -> None:
        address = client if isinstance(client, (tuple, str)) else ""  # a Unix socket's name may be any bytes
        try:
            connection = await Connection.accepted(accepted, address, self._tls)
        except OSError as error:  # the TLS handshake failed
            self.log.debug("handshake: %s", error)
            return
        try:
            await self._serve_requests(connection)
        except OSError as error:  # among them TimeoutError, and gunicorn's NoMoreData
            self.log.debug("connection cut off: %r", error)
        except Exception:
            self.log.exception("Error handling connection")
        finally:
            connection.abort()

    async def _serve_requests(self, connection: Connection) -> None:
        """Serves the requests of a connection one after the other."""
        incoming = Incoming(connection.reader, connection.writer, self.cfg, connection.client)
        kept, timeout = True, gunicorn_conf.SOCKET_TIMEOUT
        while kept:
            if not await self._request_begins(incoming, timeout):
                return
            answer, kept = await self._next_answer(incoming, connection)
            timeout = self.cfg.keepalive
            await connection.send(answer)
        await connection.linger()

    async def _request_begins(self, incoming: Incoming, timeout: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout if self.alive else LINGER) as deadline:
                self._idle.add(deadline)
                try:
                    return await incoming.begin()
                finally:
                    self._idle.discard(deadline)
        return False

    async def _next_answer(self, incoming: Incoming, connection: Connection) -> tuple[list[bytes], bool]:
        """The answer to the next request, and whether another request may follow it."""
        client, server = connection.client, connection.server
        try:
            request = await incoming.read()
            self.cfg.pre_request(self, request)
            exchange = Exchange(request, self.cfg, client, server)
        except ParseException as error:
            refusal = AnswerBuffer()
            self.handle_error(None, refusal, client, error)
            return refusal.pieces, False
        self._count()
        if incoming.ends or not self.alive or not self.cfg.keepalive:
            exchange.response.force_close()
        await self._serve_one(exchange, connection)
        if not exchange.failed:  # else gunicorn has logged it
            self.log.access(exchange.response, request, exchange.environ, datetime.now() - exchange.began)
        self.cfg.post_request(self, request, exchange.environ, exchange.response)
        return exchange.answer.pieces, not exchange.response.should_close()

    def _count(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._signalled.set()

    # the application

    async def _serve_one(self, exchange: Exchange, connection: Connection) -> None:
        if exchange.environ["PATH_INFO"] == ALIVE_PATH:
            self._call(exchange)
            return
        delayed = await self._call_in_thread(exchange)
        if delayed is not None:
            self._waiting_connections += 1
            self._update_accepting()
            try:
                connection.on_end(delayed.call.give_up)  # the client closed the connection
                await self._wait(delayed, exchange)
            finally:
                connection.on_end(None)
                self._waiting_connections -= 1
                delayed.close()

    async def _call_in_thread(self, exchange: Exchange) -> DelayedBody | None:
        """Runs the application in a thread."""
        self._calls += 1
        try:
            if exchange.request.method in ("GET", "HEAD"):
                return await self._in_thread(exchange)
            async with self._writing:
                return await self._in_thread(exchange)
        finally:
            self._calls -= 1

    async def _in_thread(self, exchange: Exchange) -> DelayedBody | None:
        self._submitted += 1
        try:
            return await self._loop.run_in_executor(self._threads, self._call, exchange)
        finally:
            self._submitted -= 1

    async def _wait(self, delayed: DelayedBody, exchange: Exchange) -> None:
        """Has the call answered after a change, or when its time is up. It occupies no thread until then."""
        answered: asyncio.Future[None] = self._loop.create_future()

        def answer() -> None:
            self._run_application(exchange, lambda: iter(delayed))
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(made)

        def made() -> None:
            self._turns.release()
            if not answered.done():
                answered.set_result(None)

        delayed.call.when_told(lambda: self._due.put(answer))
        end = self._loop.call_later(delayed.seconds, delayed.call.give_up)
        await answered
        end.cancel()

    def _answer_due(self) -> None:
        """Runs in a thread of its own: the thread that reports changes must not wait until all calls are answered."""
        while True:
            answer = self._due.get()
            self._turns.acquire()
            answer()

    def _call(self, exchange: Exchange) -> DelayedBody | None:
        """Runs the application. The answer is in the exchange, or a delayed one is returned."""
        return self._run_application(exchange, lambda: self.wsgi(exchange.environ, exchange.response.start_response))

    def _run_application(self, exchange: Exchange, make: Callable[[], Any]) -> DelayedBody | None:
        try:
            body = make()
            if isinstance(body, DelayedBody):
                return body
            try:
                for piece in body:
                    exchange.response.write(piece)
                exchange.response.close()
            finally:
                if hasattr(body, "close"):
                    body.close()
        except Exception as error:
            exchange.failed = True
            exchange.answer.pieces.clear()
            exchange.response.force_close()
            self.handle_error(exchange.request, exchange.answer, exchange.client, error)
        return None
