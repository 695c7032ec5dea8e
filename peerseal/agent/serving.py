"""The agent's application under uvicorn: one process, one event loop."""

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

from peerseal.agent.application import Agent, LocalCallerRefused
from peerseal.agent.listening import user_id
from peerseal.protocol.problem_document import problem_of
from peerseal.runtime.extras import missing

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ModuleNotFoundError as error:
    raise missing(error, "agent") from error

log = logging.getLogger("peerseal.agent")

MOST_CONNECTIONS = 1000
"""Further ones are answered with 503."""
DRAIN = 20
"""Seconds for the calls that are being answered when the agent is told to stop."""
KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept: longer than nginx does (60), so that the agent does not close a
connection on which nginx sends the next question."""


UNTIL_REFUSED = 5
"""Seconds for which a user that may not ask can hold a connection without a question."""


def serve(agent: Agent, listener: socket.socket, users: frozenset[int] | None) -> None:
    """Answers until SIGTERM or SIGINT. Then it accepts no more connections, and returns when the calls that it has are
    answered. With ``users``, ``listener`` is a Unix socket, and only these users may connect."""
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, _handled_by_uvicorn)
    config = uvicorn.Config(
        agent,
        http=HttpToolsProtocol if users is None else connections_of(users),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=DRAIN,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _handled_by_uvicorn(_signal: int, _frame: FrameType | None) -> None:
    """uvicorn raises the signal again when it has drained. The agent's own clean-up comes after that."""


def connections_of(users: frozenset[int]) -> type[asyncio.Protocol]:
    """The protocol of a Unix socket's connections: HTTP for these users, and one answer for all others, whatever they
    send."""

    class Connection(asyncio.Protocol):
        """A connection of which the user is not known yet, or may not ask."""

        def __init__(self, **uvicorns: Any) -> None:
            self._http = HttpToolsProtocol(**uvicorns)
            self._transport: Any = None

        def connection_made(self, transport: Any) -> None:
            """See asyncio.Protocol."""
            uid = user_id(transport.get_extra_info("socket"))
            if uid in users:
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

    return Connection


def _refusal() -> bytes:
    answer = problem_of(LocalCallerRefused())
    headers = answer.headers | {"Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} Forbidden", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + answer.body


_REFUSAL = _refusal()
