"""Events over any broker: a publisher that signs, and a consumer that verifies each message before the application.

A transport has an `Outlet` and an `Inlet`; `peerseal.kafka` and `peerseal.rabbitmq` are two. `open_outlet` and
`open_inlet` choose the transport by URL, so that an application changes its broker by configuration.

The consumer works on one message at a time, in the order of its partition::

    verified ──── handled ──────────────── done
       │             ├── MessageRefused ── dead letter, then done
       │             └── any other error ─ tried again after a pause, without end
       ├── refused (401, 403) ──────────── dead letter, then done
       └── cannot be verified now (503) ── tried again after a pause, without end

A dead letter is the message as it came, with the error code and its origin. If the broker does not take it, the dead
letter holds only the code, the origin and the size. If the broker does not take that one either, the consumer tries it
a few times and then logs it: a bad message does not stop the messages after it.

A message is done only after its work, or its dead letter, is stored. So a broker may deliver a message again after it
was handled; an application counts an event once by `Event.key` (`peerseal.inbox`).
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain, repeat
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from peerseal.errors import (
    BrokerUnavailable,
    CodedError,
    ConfigurationError,
    Forbidden,
    MessageNotTaken,
    MessageRefused,
    PeersealError,
    TokenError,
)
from peerseal.identity.identity import Identity
from peerseal.protocol.plain import plain_bytes
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.log_lines import fields
from peerseal.runtime.metrics import Metric, counted
from peerseal.runtime.options import check_is, check_number, check_texts
from peerseal.runtime.terminal import printable
from peerseal.runtime.tracing import of_messages, span
from peerseal.verify.audit_log import AuditLog, OnVerified
from peerseal.verify.context import REQUEST_ID, carrying, serving
from peerseal.verify.event import Event, EventVerifier

log = logging.getLogger("peerseal.messaging")

DEAD_LETTERS = ".dlq"
"""Suffix of the topic for refused messages."""
CODE_HEADER, ORIGIN_HEADER, SIZE_HEADER = "peerseal-code", "peerseal-origin", "peerseal-size"
DEAD_LETTER_HEADERS = (CODE_HEADER, ORIGIN_HEADER, SIZE_HEADER)
"""Headers that the consumer writes: the error code, the origin of the message, and the size of a payload in bytes if
the payload was too large to be kept."""

SEND: Final = "peerseal.send"
"""The name of the span of sending."""

_LONGEST_VALUE = 500  # bytes

Headers = tuple[tuple[str, bytes], ...]
Handle = Callable[[Event], object]
"""The application's work for one proven event. When it returns, the work is stored. It raises MessageRefused for an
event that it will never accept."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came. ``origin`` is its place at the broker, such as ``OrderCreated/3@1234``; ``receipt`` is data
    of the transport."""

    topic: str
    payload: bytes = field(repr=False)
    headers: Headers = field(repr=False)
    key: bytes | None
    origin: str
    receipt: Any = field(default=None, repr=False, compare=False)


class Outlet(Protocol):
    """Sends messages. Safe to use from threads."""

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        """Queue a message. Raises BrokerUnavailable if the queue stays full."""

    def flush(self, timeout: float) -> None:
        """Wait until the broker has confirmed all messages of this thread. Raises BrokerUnavailable after ``timeout``
        seconds, MessageNotTaken if the broker refuses a message, and MessageTooLarge if it always will."""

    def close(self) -> None:
        """Close the connection. Messages that are not confirmed are dropped."""


class Inlet(Protocol):
    """Receives messages as one member of a group of consumers. Used by one thread."""

    def receive(self, timeout: float) -> Message | None:
        """The next message; None if none came within ``timeout`` seconds. Raises BrokerUnavailable only if waiting does
        not help."""

    def done(self, message: Message) -> None:
        """Acknowledge a message whose work is stored. It may come again if the broker does not learn of it in time."""

    def hold(self, message: Message, seconds: float) -> bool:
        """Wait, and stay a member of the group. False if another member owns the message now, and receives it."""

    def close(self) -> None:
        """Acknowledge all messages that are done, and leave the group."""


def system_of(end: Outlet | Inlet) -> str | None:
    """The ``messaging_system`` of an outlet or inlet, as OpenTelemetry's conventions name it; None for one without."""
    system: str | None = getattr(end, "messaging_system", None)
    return system


@dataclass(frozen=True, slots=True)
class Counts:
    """Events that were handled, refused messages by code, and attempts that were repeated by code or error name."""

    handled: int
    refused: Mapping[str, int]
    retried: Mapping[str, int]


class EventPublisher:
    """Signs events with the key of ``identity`` and sends them. As a context manager it flushes and closes."""

    FLUSH = 30.0
    """Seconds to wait for the broker at the end."""

    def __init__(self, identity: Identity, outlet: Outlet) -> None:
        self._identity = identity
        self._outlet = outlet

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        audience: str,
        scope: str,
        event_id: str,
        key: bytes | None = None,
        **options: Any,
    ) -> None:
        """Sign an event and queue it; ``options`` are those of `Identity.sign_event`. Raises UnsignableRequest,
        TrustUnavailable or BrokerUnavailable."""
        headers = self._identity.sign_event(
            payload, topic=topic, audience=audience, scope=scope, event_id=event_id, **options
        )
        with span(SEND, "client", lambda: of_messages("send", topic, system_of(self._outlet))):
            self._outlet.send(topic, payload, [(name, value.encode("ascii")) for name, value in headers.items()], key)

    def flush(self, timeout: float = FLUSH) -> None:
        """See Outlet."""
        self._outlet.flush(timeout)

    def close(self) -> None:
        """See Outlet."""
        self._outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()


_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""Errors of reading a message; InvalidName is one of them, an outage is none."""


class EventConsumer:
    """Takes messages from ``inlet``, verifies them, and passes proven events to the application.

    While the application handles an event, `peerseal.current_transaction` is the event's, if ``identity`` is a minter.
    ``pauses`` are the seconds before each further attempt at the same message; the last pause is repeated. ``audit``
    turns the audit of accepted events on or off (default: as ``identity``). ``on_verified`` is called with the
    `peerseal.Accepted` of each delivery, once for all its attempts (docs/how-to/audit.md).
    """

    PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
    DEAD_LETTER_TIMEOUT = 40.0
    """Seconds for the broker to confirm a dead letter."""
    DEAD_LETTER_ATTEMPTS = 5
    """Attempts at a dead letter that the broker refuses."""

    def __init__(
        self,
        identity: Identity,
        verifier: EventVerifier,
        inlet: Inlet,
        dead_letters: Outlet,
        *,
        pauses: Sequence[float] = PAUSES,
        audit: bool | None = None,
        on_verified: OnVerified | None = None,
    ) -> None:
        check_is("pauses", pauses, Sequence, "a list of seconds")
        if not pauses:
            raise ConfigurationError("pauses is empty: expected one pause or more, in seconds")
        for pause in pauses:
            check_number("a pause", pause, at_most=threading.TIMEOUT_MAX)
        check_is("verifier", verifier, EventVerifier, "a peerseal.EventVerifier")
        self._identity = identity
        self._verifier = verifier.without_audit()
        self._audit = AuditLog(
            identity.audit if audit is None else audit, on_verified=on_verified, clock=identity.clock
        )
        self._audited = False  # the current message
        self._inlet = inlet
        self._dead_letters = dead_letters
        self._pauses = pauses
        self._stopping = threading.Event()
        self._handled = 0
        self._not_taken = 0  # refused attempts at the dead letter of the current message
        self._refused: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()
        identity.add_metrics(self.collect)

    @property
    def counts(self) -> Counts:
        """As of now."""
        return Counts(self._handled, dict(self._refused), dict(self._retried))

    def collect(self) -> list[Metric]:
        """The counts, and those of the audit, as metrics."""
        counts = self.counts
        handled = Metric(
            "peerseal_events_handled_total", "counter", "Events that were handled.", (({}, counts.handled),)
        )
        refused = counted("peerseal_events_refused_total", "Messages refused, by code.", "code", counts.refused)
        retried = counted("peerseal_events_retried_total", "Attempts to be repeated.", "code", counts.retried)
        return [handled, refused, retried, *self._audit.collect()]

    def run(self, handle: Handle, *, wait: float = 1.0) -> None:
        """Work until `stop`, then leave the group. Raises BrokerUnavailable if waiting does not help."""
        try:
            while not self._stopping.is_set():
                self.run_once(handle, wait)
        finally:
            self.close()

    def run_once(self, handle: Handle, wait: float = 1.0) -> Message | None:
        """Work on the next message that comes within ``wait`` seconds, until it is done or another member owns it."""
        message = self._inlet.receive(wait)
        if message is None:
            return None
        self._not_taken, self._audited = 0, False
        given = _header_of(message, REQUEST_ID), _header_of(message, TRACEPARENT)
        with (
            serving(*given),
            span("peerseal.consume", "consumer", lambda: of_messages("process", message.topic, system_of(self._inlet))),
        ):
            self._work_until_done(message, handle)
        return message

    def _work_until_done(self, message: Message, handle: Handle) -> None:
        for pause in chain(self._pauses, repeat(self._pauses[-1])):
            try:
                self._work(message, handle)
            except Exception as error:
                self._note_failure(message, error)
                if self._stopping.is_set() or not self._inlet.hold(message, pause):
                    return
            else:
                self._inlet.done(message)
                return

    def stop(self) -> None:
        """Let `run` return after the current attempt. For signal handlers and other threads."""
        self._stopping.set()

    def close(self) -> None:
        """Leave the group and close the connections."""
        self._inlet.close()
        self._dead_letters.close()

    def _work(self, message: Message, handle: Handle) -> None:
        """Verify and handle a message, or send its dead letter. An error means that another attempt is necessary."""
        try:
            event = self._verifier.verify(message.payload, message.headers, topic=message.topic)
        except (TokenError, Forbidden) as refusal:
            return self._put_aside(message, refusal)
        except _UNREADABLE as error:  # another attempt would fail as well
            return self._put_aside(message, MessageRefused("event_unreadable", type(error).__name__))
        try:
            with carrying(self._identity.transaction_for_event(event)):
                if not self._audited:
                    self._audited = True
                    self._audit.event(event)
                handle(event)
        except MessageRefused as refusal:
            self._put_aside(message, refusal)
        else:
            self._handled += 1

    def _put_aside(self, message: Message, refusal: PeersealError) -> None:
        """Send the dead letter. Raises BrokerUnavailable, or MessageNotTaken before the last attempt."""
        marks = [(CODE_HEADER, _short(refusal.code)), (ORIGIN_HEADER, _short(message.origin))]
        size = len(plain_bytes(message.payload) or b"")
        try:
            if not self._sent_as_it_came(message, marks):
                self._send_dead_letter(message.topic, b"", [*marks, (SIZE_HEADER, b"%d" % size)], None)
        except MessageNotTaken as error:
            self._not_taken += 1
            if self._not_taken < self.DEAD_LETTER_ATTEMPTS:
                raise
            log.error(
                "no dead letter of message %s (%s, %d bytes) is accepted, and the message is skipped: %s",
                *(printable(str(message.origin)), refusal.code, size, error),
            )
        self._refused[refusal.code] += 1
        log.warning(
            "refused: %s; message %s; %r",
            *(refusal.code, printable(str(message.origin)), str(refusal)[:200]),
            extra=fields(code=refusal.code, message_origin=message.origin),
        )

    def _sent_as_it_came(self, message: Message, marks: Sequence[tuple[str, bytes]]) -> bool:
        """Send the whole message, with ``marks`` as headers. False if the broker refuses it, or the library cannot send
        it. Raises BrokerUnavailable if the broker does not answer: it may take the whole message later."""
        try:
            kept = [(name, value) for name, value in message.headers if name.lower() not in DEAD_LETTER_HEADERS]
            self._send_dead_letter(message.topic, message.payload, [*kept, *marks], message.key)
        except Exception as error:
            if isinstance(error, BrokerUnavailable) and not isinstance(error, MessageNotTaken):
                raise
            log.warning("no dead letter of message %s as it came: %r", printable(str(message.origin)), error)
            return False
        return True

    def _send_dead_letter(
        self, topic: str, payload: bytes, headers: Sequence[tuple[str, bytes]], key: bytes | None
    ) -> None:
        self._dead_letters.send(topic + DEAD_LETTERS, payload, headers, key)
        self._dead_letters.flush(self.DEAD_LETTER_TIMEOUT)

    def _note_failure(self, message: Message, error: Exception) -> None:
        name = error.code if isinstance(error, PeersealError) else type(error).__name__
        self._retried[name] += 1
        trace = None if isinstance(error, PeersealError) and not isinstance(error, CodedError) else error
        log.warning(
            "message %s is tried again: %s: %s",
            *(printable(str(message.origin)), name, error),
            exc_info=trace,
            extra=fields(code=name, message_origin=message.origin),
        )


def _header_of(message: Message, name: str) -> str | None:
    """A header of the message, if it has one that can be read."""
    try:
        return dict(message.headers)[name].decode("ascii")
    except _UNREADABLE:
        return None


def _short(value: object) -> bytes:
    """The value of a header. An application may use any object as the code of a refusal."""
    return str(value).encode("utf-8", "backslashreplace")[:_LONGEST_VALUE]


def open_outlet(url: str, *, settings: Mapping[str, Any] | None = None) -> Outlet:
    """An outlet to the broker at ``kafka://host:port,…`` or ``amqp(s)://…``. ``settings`` are those of the broker's
    library. Raises ConfigurationError."""
    outlet: Outlet = _transport(url).open_outlet(url, _checked(settings))
    return outlet


def open_inlet(url: str, group: str, topics: Sequence[str], *, settings: Mapping[str, Any] | None = None) -> Inlet:
    """An inlet for messages on ``topics``, as a member of ``group``. Raises ConfigurationError."""
    check_texts("topics", topics)
    check_texts("group", [group])
    inlet: Inlet = _transport(url).open_inlet(url, group, topics, _checked(settings))
    return inlet


def _checked(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    check_is("settings", settings or {}, Mapping, "the names of settings, each with its value")
    return settings or {}


def login_settings(identity: Identity, url: str, name: str | None) -> dict[str, Any]:
    """The ``settings`` with which a service logs in at a broker by its own key (see `peerseal.kafka.oauthbearer`).
    ``name`` is the broker's name in the domain's settings; without it there are no settings. Raises ConfigurationError
    for a broker that does not support this login."""
    if name is None:
        return {}
    transport = _transport(url)
    if not hasattr(transport, "oauthbearer"):
        raise ConfigurationError(f"{name!r}: only a broker at kafka://… supports a login by a service's key")
    login: dict[str, Any] = transport.oauthbearer(identity, name)
    return login


_TRANSPORTS = {"kafka": "peerseal.kafka", "amqp": "peerseal.rabbitmq", "amqps": "peerseal.rabbitmq"}


def _transport(url: str) -> Any:
    """The module for a URL, loaded on first use: each one needs the library of its broker."""
    check_is("a broker's url", url, str, "a text")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        raise ConfigurationError("the broker's URL cannot be read") from None  # it may contain a password
    if scheme not in _TRANSPORTS:
        raise ConfigurationError(f"{scheme}:// is no known broker; expected one of {', '.join(_TRANSPORTS)}")
    return import_module(_TRANSPORTS[scheme])
