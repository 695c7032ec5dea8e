"""Events over any broker: a publisher that signs, and a consumer that verifies before the application sees a message.

A transport is two small things, an `Outlet` and an `Inlet`; `peerseal.kafka` and `peerseal.rabbitmq` have them, and
`open_outlet` and `open_inlet` find them by URL, so that an application changes its broker by configuration only.

What the consumer does with a message, one at a time, in the order of its partition::

    verified ──── handled ──────────────── done
       │             ├── MessageRefused ── dead letter, then done
       │             └── any other error ─ tried again after a pause, for ever
       ├── refused (401, 403) ──────────── dead letter, then done
       └── cannot be verified now (503) ── tried again after a pause, for ever

A dead letter that cannot be built, or that the broker does not take, becomes one that says only what was refused, why
and where. One that the broker does not take either is tried a few times, and then only logged: no message of a
publisher's stops those behind it.

Nothing is done before its work, or its dead letter, is stored. So a broker may deliver again what was handled, and the
application counts an event once by `Event.key`: `peerseal.inbox`.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self
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
from peerseal.runtime.metrics import Metric, counted
from peerseal.runtime.options import check_is, check_number, check_texts
from peerseal.runtime.terminal import printable
from peerseal.verify.audit_log import AuditLog, OnVerified
from peerseal.verify.context import REQUEST_ID, carrying, serving
from peerseal.verify.event import Event, EventVerifier

log = logging.getLogger("peerseal.messaging")

DEAD_LETTERS = ".dlq"
"""What the topic of a message that was refused ends in."""
CODE_HEADER, ORIGIN_HEADER, SIZE_HEADER = "peerseal-code", "peerseal-origin", "peerseal-size"
OURS = (CODE_HEADER, ORIGIN_HEADER, SIZE_HEADER)
"""Headers of a dead letter that the consumer writes: the code, where the message was, and the bytes of its payload
where that was too large to be kept."""

_LONGEST_SAID = 500  # bytes

Headers = tuple[tuple[str, bytes], ...]
Handle = Callable[[Event], object]
"""What the application does with a proven event: once it returns, its work is stored. Raises MessageRefused for one
that it will never take."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came. ``origin`` says where from, such as ``OrderCreated/3@1234``; ``receipt`` is the
    transport's own."""

    topic: str
    payload: bytes = field(repr=False)
    headers: Headers = field(repr=False)
    key: bytes | None
    origin: str
    receipt: Any = field(default=None, repr=False, compare=False)


class Outlet(Protocol):
    """Where messages go out. Safe to use from threads."""

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        """Hand a message over, which may leave later. Raises BrokerUnavailable where there is no room for it."""

    def flush(self, timeout: float) -> None:
        """Return once the broker has confirmed all that this thread has sent. Raises BrokerUnavailable for what was
        not, or not within ``timeout`` seconds, MessageNotTaken for what the broker answered that it does not take, and
        MessageTooLarge for what it never will."""

    def close(self) -> None:
        """Give the connection up."""


class Inlet(Protocol):
    """Where messages come in, for one member of one group of consumers. Used by one thread."""

    def receive(self, timeout: float) -> Message | None:
        """The next message; None where none came within ``timeout`` seconds. Raises BrokerUnavailable only for what no
        waiting mends."""

    def done(self, message: Message) -> None:
        """Its work is stored: it need not come again. It may, where the broker learns of it too late."""

    def hold(self, message: Message, seconds: float) -> bool:
        """Wait, a member of the group all the while. False where the message is no longer ours to work on: whoever
        owns it now will get it."""

    def close(self) -> None:
        """Leave the group, with what was done told."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a consumer has done so far: events handled, messages refused by code, attempts that were repeated by the
    code or the error's name."""

    handled: int
    refused: Mapping[str, int]
    retried: Mapping[str, int]


class EventPublisher:
    """Signs events in the name of ``identity`` and sends them. As a context manager it flushes and closes."""

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
        """Sign an event and hand it to the broker's library; see `Identity.sign_event` for the rest. Raises
        UnsignableRequest, TrustUnavailable or BrokerUnavailable."""
        headers = self._identity.sign_event(
            payload, topic=topic, audience=audience, scope=scope, event_id=event_id, **options
        )
        self._outlet.send(topic, payload, [(name, value.encode("ascii")) for name, value in headers.items()], key)

    def flush(self, timeout: float = FLUSH) -> None:
        """See Outlet."""
        self._outlet.flush(timeout)

    def close(self) -> None:
        """See Outlet."""
        self._outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self.close()


_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""Errors of reading a message, which InvalidName is among; an outage is none of them."""


class EventConsumer:
    """Takes messages from ``inlet``, verifies each, and gives the application what is proven.

    While the application works on an event, `peerseal.current_transaction` is the event's, as far as ``identity`` may
    mint. ``pauses`` are the seconds before another attempt at the same message, the last one again and again. ``audit``
    turns the audit of accepted events on or off, the identity's by default, and ``on_verified`` is called with the
    `peerseal.Accepted` of each: once for each delivery, however many attempts it takes (docs/how-to/audit.md).
    """

    PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
    DEAD_LETTER_TIMEOUT = 40.0
    """Seconds to wait for the broker to confirm a dead letter."""
    DEAD_LETTER_ATTEMPTS = 5
    """Attempts at the dead letter of one message that the broker answers, and does not take."""

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
            raise ConfigurationError("a consumer needs a pause between two attempts")
        for pause in pauses:
            check_number("a pause", pause, at_most=threading.TIMEOUT_MAX)
        check_is("verifier", verifier, EventVerifier, "a peerseal.EventVerifier")
        self._identity = identity
        self._verifier = verifier.without_audit()
        self._audit = AuditLog(
            identity.audit if audit is None else audit, on_verified=on_verified, clock=identity.clock
        )
        self._audited = False  # the message at hand
        self._inlet = inlet
        self._dead_letters = dead_letters
        self._pauses = pauses
        self._stopping = threading.Event()
        self._handled = 0
        self._not_taken = 0  # attempts at the dead letter of the message at hand
        self._refused: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()
        identity.add_metrics(self.collect)

    @property
    def counts(self) -> Counts:
        """As of now."""
        return Counts(self._handled, dict(self._refused), dict(self._retried))

    def collect(self) -> list[Metric]:
        """The same as metrics, and what was accepted."""
        counts = self.counts
        handled = Metric(
            "peerseal_events_handled_total", "counter", "Events that were handled.", (({}, counts.handled),)
        )
        refused = counted("peerseal_events_refused_total", "Messages refused, by code.", "code", counts.refused)
        retried = counted("peerseal_events_retried_total", "Attempts to be repeated.", "code", counts.retried)
        return [handled, refused, retried, *self._audit.collect()]

    def run(self, handle: Handle, *, wait: float = 1.0) -> None:
        """Work until `stop`, then leave the group. Raises BrokerUnavailable for what no waiting mends."""
        try:
            while not self._stopping.is_set():
                self.run_once(handle, wait)
        finally:
            self.close()

    def run_once(self, handle: Handle, wait: float = 1.0) -> Message | None:
        """Work on the next message, if one comes within ``wait`` seconds, until it is done or no longer ours."""
        message = self._inlet.receive(wait)
        if message is None:
            return None
        self._not_taken, self._audited = 0, False
        with serving(_request_id_in(message)):
            return self._worked(message, handle)

    def _worked(self, message: Message, handle: Handle) -> Message:
        """The message, once it is done or no longer ours."""
        for attempt in range(2**63):
            try:
                self._work(message, handle)
            except Exception as error:
                self._note_failure(message, error)
                pause = self._pauses[min(attempt, len(self._pauses) - 1)]
                if self._stopping.is_set() or not self._inlet.hold(message, pause):
                    return message
            else:
                self._inlet.done(message)
                return message
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Let `run` return once the attempt under way has ended. For signal handlers and other threads."""
        self._stopping.set()

    def close(self) -> None:
        """Leave the group and give the connections up."""
        self._inlet.close()
        self._dead_letters.close()

    def _work(self, message: Message, handle: Handle) -> None:
        """Verify and handle a message, or put it aside. Raises what makes another attempt necessary."""
        try:
            event = self._verifier.verify(message.payload, message.headers, topic=message.topic)
        except (TokenError, Forbidden) as refusal:
            self._put_aside(message, refusal)
            return
        except _UNREADABLE as error:  # of what a publisher wrote, which another attempt would not read either
            self._put_aside(message, MessageRefused("event_unreadable", type(error).__name__))
            return
        try:
            with carrying(self._identity.transaction_for_event(event)):
                self._note_accepted(event)
                handle(event)
        except MessageRefused as refusal:
            self._put_aside(message, refusal)
        else:
            self._handled += 1

    def _note_accepted(self, event: Event) -> None:
        """For the audit, once for the message at hand."""
        if not self._audited:
            self._audited = True
            self._audit.event(event)

    def _put_aside(self, message: Message, refusal: PeersealError) -> None:
        """Onto the dead letters' topic, as it came, with the code and where it was. Where that cannot be built, or is
        not taken, only these and the size of its payload: the message itself is where it was. Raises
        BrokerUnavailable."""
        code, origin = _said(refusal.code), _said(message.origin)
        try:
            if not self._sent_as_it_came(message, code, origin):
                size = (SIZE_HEADER, b"%d" % _size(message))
                self._send_dead_letter(message.topic, b"", [(CODE_HEADER, code), (ORIGIN_HEADER, origin), size], None)
        except MessageNotTaken as error:
            self._not_taken += 1
            if self._not_taken < self.DEAD_LETTER_ATTEMPTS:
                raise
            log.error(
                "no dead letter of message %s (%s, %d bytes) is taken, and it is passed over: %s",
                *(printable(str(message.origin)), refusal.code, _size(message), error),
            )
        self._refused[refusal.code] += 1
        log.warning("refused: %s; message %s; %r", refusal.code, printable(str(message.origin)), str(refusal)[:200])

    def _sent_as_it_came(self, message: Message, code: bytes, origin: bytes) -> bool:
        """Raises BrokerUnavailable where the broker does not answer: then it may take the whole message later."""
        try:
            kept = [(name, value) for name, value in message.headers if name.lower() not in OURS]
            headers = [*kept, (CODE_HEADER, code), (ORIGIN_HEADER, origin)]
            self._send_dead_letter(message.topic, message.payload, headers, message.key)
        except BrokerUnavailable as error:
            if not isinstance(error, MessageNotTaken):
                raise
            log.warning(
                "the dead letter of message %s is not taken as it came: %s", printable(str(message.origin)), error
            )
            return False
        except Exception as error:
            log.warning(
                "no dead letter can be made of message %s as it came: %r", printable(str(message.origin)), error
            )
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
        log.warning("message %s is tried again: %s: %s", printable(str(message.origin)), name, error, exc_info=trace)


def _request_id_in(message: Message) -> str | None:
    """The request id that the message brings, if it brings one that can be read."""
    try:
        return dict(message.headers)[REQUEST_ID].decode("ascii")
    except _UNREADABLE:
        return None


def _size(message: Message) -> int:
    return len(plain_bytes(message.payload) or b"")


def _said(value: object) -> bytes:
    """For a header: whatever an application gave its refusal for a code, it is short and can be sent."""
    return str(value).encode("utf-8", "backslashreplace")[:_LONGEST_SAID]


def open_outlet(url: str, *, settings: Mapping[str, Any] | None = None) -> Outlet:
    """Messages to the broker at ``kafka://host:port,…`` or ``amqp(s)://…``. ``settings`` are the library's own. Raises
    ConfigurationError."""
    check_is("settings", settings or {}, Mapping, "the names of settings, each with its value")
    outlet: Outlet = _transport(url).open_outlet(url, settings or {})
    return outlet


def open_inlet(url: str, group: str, topics: Sequence[str], *, settings: Mapping[str, Any] | None = None) -> Inlet:
    """Messages on those topics, for a member of the group. Raises ConfigurationError."""
    check_texts("topics", topics)
    check_texts("group", [group])
    check_is("settings", settings or {}, Mapping, "the names of settings, each with its value")
    inlet: Inlet = _transport(url).open_inlet(url, group, topics, settings or {})
    return inlet


def login_settings(identity: Identity, url: str, name: str | None) -> dict[str, Any]:
    """The ``settings`` with which a service logs in by its own key at the broker of that URL, which the domain's
    settings call ``name`` (see `peerseal.kafka.oauthbearer`); none without a name. Raises ConfigurationError for a
    broker that takes no such login."""
    if name is None:
        return {}
    transport = _transport(url)
    if not hasattr(transport, "oauthbearer"):
        raise ConfigurationError(f"only a broker at kafka://… takes a login by a service's key, and {name!r} is none")
    login: dict[str, Any] = transport.oauthbearer(identity, name)
    return login


_TRANSPORTS = {"kafka": "peerseal.kafka", "amqp": "peerseal.rabbitmq", "amqps": "peerseal.rabbitmq"}


def _transport(url: str) -> Any:
    """The module for a URL, loaded where it is used: each needs its broker's library."""
    check_is("a broker's url", url, str, "a text")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        raise ConfigurationError("the broker's URL cannot be read") from None  # it may hold a password
    if scheme not in _TRANSPORTS:
        raise ConfigurationError(f"no broker is known for {scheme}://; there are {', '.join(_TRANSPORTS)}")
    return import_module(_TRANSPORTS[scheme])
