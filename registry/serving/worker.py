"""gunicorn's worker for the registry: one event loop holds the connections, a few threads run the application.

A client that sends or reads slowly, a kept connection, and a call that waits for a change hold memory, and no thread. A
thread gets a request once all of it is here, and the loop sends the answer. gunicorn starts the worker, parses requests
and writes answers.
"""

import asyncio
import errno
import os
import resource
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

from registry.serving import gunicorn_conf
from registry.serving.connection import LINGER, Connection
from registry.serving.incoming import Incoming
from registry.web.awaited import Awaited
from registry.web.wire import EXTENSION

AT_ONCE = 4
"""Answers to calls that waited that are made before the loop sent the first of them. Thousands may be due at once, and
what comes in meanwhile would stand behind all of them."""
FOR_READS = 2
"""Threads that serve no call which writes: while writes wait for a database, what is in memory is read."""
STARTED_WITHIN = 5
"""Seconds for which a thread waits until all have started, so that each call of the start needs a thread of its own."""
ALIVE_PATH = "/healthz"
"""What the loop answers by itself: it needs no thread, and no database."""
ONE_VALUE = ("protocol", "http_protocols", "http2_cleartext", "proxy_protocol")
"""gunicorn's settings of which a worker serves the default only: HTTP/1.1, from clients and from proxies."""

_OTHER_DESCRIPTORS = 256
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Answer:
    """The bytes of an answer, where gunicorn expects a socket to write to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def sendall(self, piece: bytes) -> None:
        """Keeps it for the loop to send."""
        self.pieces.append(bytes(piece))

    def send(self, _piece: bytes) -> None:
        """gunicorn's "100 Continue", which `registry.serving.incoming` has sent in time."""

    def gettimeout(self) -> float:
        """As of a socket that never blocks."""
        return 0.0


class Exchange:
    """A request, and what gunicorn makes of its answer."""

    def __init__(self, request: Any, cfg: Any, client: Any, server: Any) -> None:
        self.began = datetime.now()
        self.request = request
        self.client = client
        self.answer = Answer()
        self.response, self.environ = wsgi.create(request, self.answer, client, server, cfg)
        self.environ["wsgi.multithread"] = True
        self.failed = False


class Worker(base.Worker):  # type: ignore[misc]
    """The class that `registry.gunicorn_conf` names. ``--threads`` is how many calls are served at once,
    ``--worker-connections`` how many connections are open beside those whose call waits for a change."""

    alive: bool

    @classmethod
    def check_config(cls, cfg: Any, _log: Any) -> None:
        """Called by gunicorn at its start. Raises RuntimeError, which gunicorn shows, for settings that a worker cannot
        serve with."""
        known = Config()
        for name in filter(known.settings.__contains__, ONE_VALUE):
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
        """See gunicorn's Worker. The threads are started here: where a limit does not allow them, the start fails."""
        self._threads = ThreadPoolExecutor(self.cfg.threads, "call")
        all_run = threading.Barrier(self.cfg.threads)
        for _ in range(self.cfg.threads):
            self._threads.submit(all_run.wait, STARTED_WITHIN)
        super().init_process()

    def run(self) -> None:
        """See gunicorn's Worker."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._prepare()
        self._look_for_room()
        while self.alive and self.ppid == os.getppid():
            await self._beat()
        self.alive = False
        self._look_for_room()
        await self._end()

    def _prepare(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._turns = threading.Semaphore(AT_ONCE)
        self._writing = asyncio.Semaphore(max(1, self.cfg.threads - FOR_READS))
        threading.Thread(target=self._answer_due, name="answers", daemon=True).start()
        self._tls = sock.ssl_context(self.cfg) if self.cfg.is_ssl else None
        self._connections: set[asyncio.Task[None]] = set()
        self._between_requests: set[asyncio.Timeout] = set()
        self._signalled = asyncio.Event()
        self._accepts = self._rests = False
        self._loop.add_reader(self.PIPE[0], self._signal)
        self._waiting = self.wsgi.extensions[EXTENSION].changes.waiting
        self._held_apart = 0
        room = connections_allowed(self.cfg.worker_connections + gunicorn_conf.WAITING_CALLS)
        self._most = min(self.cfg.worker_connections, room // 2)
        self._waiting.server_holds(room - self._most)

    def _signal(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.PIPE[0], 4096)
        self._signalled.set()

    async def _beat(self) -> None:
        """Tell the master once a second that this process lives."""
        self.notify()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._signalled.wait()
        self._signalled.clear()

    async def _end(self) -> None:
        """Answer the calls that wait, and let the others end."""
        self._waiting.end()
        for between in self._between_requests:
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
        """Take one connection; others have their turn, however many come at once."""
        try:
            accepted, client = listener.sock.accept()
        except OSError as error:  # another worker was faster, or the client went away
            self.log.debug("accept: %s", error)
            if error.errno in _NO_DESCRIPTOR:
                self._rest()
            return
        accepted.setblocking(False)
        task = asyncio.create_task(self._connected(accepted, client))
        self._connections.add(task)
        task.add_done_callback(self._ended)
        self._look_for_room()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._look_for_room()

    def _rest(self) -> None:
        """Take no connection for a second: without a descriptor for it, it would be offered again and again."""
        self._rests = True
        self._loop.call_later(1, self._go_on)
        self._look_for_room()

    def _go_on(self) -> None:
        self._rests = False
        self._look_for_room()

    def _look_for_room(self) -> None:
        """Take connections while there is room. The next ones wait in the kernel's queue, or go to another worker."""
        room = self.alive and not self._rests and len(self._connections) - self._held_apart < self._most
        if room == self._accepts:
            return
        self._accepts = room
        for listener in self.sockets:
            if room:
                self._loop.add_reader(listener.sock, self._accept, listener)
            else:
                self._loop.remove_reader(listener.sock)

    async def _connected(self, accepted: Any, client: Any) -> None:
        named = client if isinstance(client, (tuple, str)) else ""  # a Unix socket's name may be any bytes
        try:
            connection = await Connection.accepted(accepted, named, self._tls)
        except OSError as error:  # no TLS
            self.log.debug("handshake: %s", error)
            return
        try:
            await self._exchanges(connection)
        except OSError as error:  # among them TimeoutError, and gunicorn's NoMoreData
            self.log.debug("connection cut off: %r", error)
        except Exception:
            self.log.exception("Error handling connection")
        finally:
            connection.abort()

    async def _exchanges(self, connection: Connection) -> None:
        """Serve one request after the other."""
        incoming = Incoming(connection.reader, connection.writer, self.cfg, connection.client)
        kept, within = True, gunicorn_conf.SOCKET_TIMEOUT
        while kept:
            if not await self._begins(incoming, within):
                return
            answer, kept = await self._answered(incoming, connection)
            within = self.cfg.keepalive
            await connection.send(answer)
        await connection.linger()

    async def _begins(self, incoming: Incoming, within: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within if self.alive else LINGER) as deadline:
                self._between_requests.add(deadline)
                try:
                    return await incoming.begin()
                finally:
                    self._between_requests.discard(deadline)
        return False

    async def _answered(self, incoming: Incoming, connection: Connection) -> tuple[list[bytes], bool]:
        """The answer to the next request, and whether another request may follow."""
        client, server = connection.client, connection.server
        try:
            request = await incoming.read()
            self.cfg.pre_request(self, request)
            exchange = Exchange(request, self.cfg, client, server)
        except ParseException as error:
            refusal = Answer()
            self.handle_error(None, refusal, client, error)
            return refusal.pieces, False
        self._count()
        if incoming.ends or not self.alive or not self.cfg.keepalive:
            exchange.response.force_close()
        await self._serve_one(exchange, connection)
        if not exchange.failed:  # else gunicorn has written it down
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
        awaited = await self._called(exchange)
        if awaited is not None:
            self._held_apart += 1
            self._look_for_room()
            try:
                connection.when_over(awaited.place.give_up)  # a client that went away frees its place
                await self._wait(awaited, exchange)
            finally:
                connection.when_over(None)
                self._held_apart -= 1
                awaited.close()

    async def _called(self, exchange: Exchange) -> Awaited | None:
        """Run the application by a thread."""
        if exchange.request.method in ("GET", "HEAD"):
            return await self._loop.run_in_executor(self._threads, self._call, exchange)
        async with self._writing:
            return await self._loop.run_in_executor(self._threads, self._call, exchange)

    async def _wait(self, awaited: Awaited, exchange: Exchange) -> None:
        """Have it answered once it was told of a change, or its time is up; by no thread until then."""
        answered: asyncio.Future[None] = self._loop.create_future()

        def answer() -> None:
            self._contained(exchange, lambda: iter(awaited))
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(made)

        def made() -> None:
            self._turns.release()
            if not answered.done():
                answered.set_result(None)

        awaited.place.when_told(lambda: self._due.put(answer))
        end = self._loop.call_later(awaited.seconds, awaited.place.give_up)
        await answered
        end.cancel()

    def _answer_due(self) -> None:
        """Run by a thread of its own: those that told would stand still for as long as it takes to answer all."""
        while True:
            answer = self._due.get()
            self._turns.acquire()
            answer()

    def _call(self, exchange: Exchange) -> Awaited | None:
        """Run the application: its answer is written, or comes later."""
        return self._contained(exchange, lambda: self.wsgi(exchange.environ, exchange.response.start_response))

    def _contained(self, exchange: Exchange, make: Callable[[], Any]) -> Awaited | None:
        try:
            body = make()
            if isinstance(body, Awaited):
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


def connections_allowed(wanted: int) -> int:
    """How many connections the process has descriptors for, with as many allowed as that takes, and some for files and
    the database: half of them where there are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, soft - min(_OTHER_DESCRIPTORS, soft // 2))
