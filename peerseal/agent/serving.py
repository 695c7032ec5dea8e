"""The agent's application under uvicorn: one process, one event loop."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from peerseal.agent.application import Agent, LocalCallerRefused
from peerseal.agent.listening import user_id
from peerseal.agent.newcomers import Newcomers
from peerseal.protocol.problem_document import problem_of
from peerseal.runtime.descriptors import connections_allowed
from peerseal.runtime.extras import missing

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ModuleNotFoundError as error:
    raise missing(error, "agent") from error

log = logging.getLogger("peerseal.agent")

DRAIN = 20
"""Seconds for the calls that are being answered when the agent is told to stop."""
KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept: longer than nginx does (60), so that the agent does not close a
connection on which nginx sends the next question."""
UNTIL_REFUSED = 5
"""Seconds for which a user that may not ask can hold a connection without a question."""


class Limits(NamedTuple):
    """What the connections of one agent may take."""

    connections: int = 2000
    """Further ones are answered with 503. A quarter of them may be `Newcomers`; more come in within a moment."""
    transfer: float = 20
    """Seconds for a program to send a whole request, from its connection or the request's first byte, and to take the
    answer. A local program needs milliseconds."""


DEFAULT_LIMITS = Limits()


def serve(
    agent: Agent, listener: socket.socket, users: frozenset[int] | None, *, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Answers until SIGTERM or SIGINT. Then it accepts no more connections, and returns when the calls that it has are
    answered. With ``users``, ``listener`` is a Unix socket, and only these users may connect."""
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, _handled_by_uvicorn)
    connections = connections_allowed(limits.connections)
    newcomers = Newcomers(connections // 4)
    config = uvicorn.Config(
        agent,
        http=connections_of(users, limits.transfer, newcomers),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=DRAIN,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _handled_by_uvicorn(_signal: int, _frame: FrameType | None) -> None:
    """uvicorn raises the signal again when it has drained. The agent's own clean-up comes after that."""


class Deadline:
    """Calls ``missed`` once, unless it is stopped within these seconds. Only in an event loop."""

    def __init__(self, seconds: float, missed: Callable[[], None]) -> None:
        self._seconds = seconds
        self._missed = missed
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """A deadline that runs already is not moved."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._missed)

    def stop(self) -> None:
        """Does nothing where it does not run."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TimedHttp(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, which has no time limit for a request that has begun, or for an answer that the
    client does not read. This closes the connection when one of them takes longer than ``transfer`` seconds. The
    connection is one of the ``newcomers`` until it has an answer, and is kept."""

    def __init__(self, *, transfer: float, newcomers: Newcomers, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._newcomers = newcomers
        self._request = Deadline(transfer, self._cut)
        self._answer = Deadline(transfer, self._cut)

    def _cut(self) -> None:
        log.warning("closed a connection: its client did not send a request, or read the answer, in time")
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused until the client has read everything
        self._request.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._request.stop()
        self._answer.stop()
        self._newcomers.discard(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Empty lines before a request end uvicorn's limit for idle connections, too."""
        self._request.start()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """See httptools. A request may begin in the data in which the one before ends."""
        super().on_message_begin()
        self._request.start()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._request.stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See HttpToolsProtocol. A connection that is about to close stays a newcomer."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._newcomers.discard(self.transport)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._answer.start()
        super().pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._answer.stop()
        super().resume_writing()


def connections_of(users: frozenset[int] | None, transfer: float, newcomers: Newcomers) -> type[asyncio.Protocol]:
    """The protocol of a socket's connections: HTTP, within these seconds, and for a Unix socket's other users one
    answer, whatever they send. Each begins as one of the ``newcomers``."""

    class Connection(asyncio.Protocol):
        """A connection whose user is not known yet, or may not ask."""

        def __init__(self, **uvicorns: Any) -> None:
            self._http = TimedHttp(transfer=transfer, newcomers=newcomers, **uvicorns)
            self._transport: Any = None

        def connection_made(self, transport: Any) -> None:
            """See asyncio.Protocol."""
            newcomers.add(transport)
            if users is None or (uid := user_id(transport.get_extra_info("socket"))) in users:
                transport.set_protocol(self._http)
                self._http.connection_made(transport)
                return
            log.warning("refused a connection of uid %d: allowed are %s", uid, ", ".join(map(str, sorted(users))))
            self._transport = transport
            asyncio.get_running_loop().call_later(UNTIL_REFUSED, transport.abort)

        def data_received(self, _: bytes) -> None:
            """See asyncio.Protocol. An answer before the question would look like a broken connection to curl."""
            self._transport.write(_REFUSAL)
            self._transport.close()

        def connection_lost(self, _: Exception | None) -> None:
            """See asyncio.Protocol."""
            newcomers.discard(self._transport)

    return Connection


def _refusal() -> bytes:
    answer = problem_of(LocalCallerRefused())
    headers = answer.headers | {"Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} Forbidden", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + answer.body


_REFUSAL = _refusal()
