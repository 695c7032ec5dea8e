"""Every error that Peerseal raises, in one tree::

    PeersealError
    ├── TokenError                  401: the token does not prove the caller
    │   ├── MissingToken            missing_token
    │   ├── MalformedToken          malformed_token
    │   ├── WrongType               wrong_type
    │   ├── UnknownKey              unknown_key
    │   ├── RevokedKey              revoked_key
    │   ├── BadSignature            bad_signature
    │   ├── WrongIssuer             wrong_issuer
    │   ├── WrongAudience           wrong_audience
    │   ├── Expired                 expired
    │   ├── NotYetValid             not_yet_valid
    │   ├── LifetimeTooLong         lifetime_too_long
    │   ├── WrongBinding            wrong_binding
    │   ├── Replayed                replayed
    │   ├── BadTransactionToken     bad_transaction_token
    │   ├── WrongEvent              wrong_event
    │   ├── WrongTransaction        wrong_transaction
    │   ├── WrongTopic              wrong_topic
    │   └── WrongPayload            wrong_payload
    ├── Forbidden                   403: the caller is proven (or known by name) and may not do this
    │   ├── CallerNotAllowed        caller_not_allowed
    │   └── InsufficientScope       insufficient_scope
    ├── TrustUnavailable            503: the key is not available now
    │   └── SplitViewFound          split_view: the ledger has two histories
    ├── ContentTooLarge             413: the body is longer than this service reads
    ├── ContentUnreadable           400: the body ended early
    ├── InvalidName                 a trust domain, service name or kid that is not one (also a ValueError)
    ├── KeyRefused                  a public key that may not be registered; the code says why
    ├── DocumentRefused             a signed document that a client does not believe; the code says why
    ├── FetchError                  fetch_failed: the registry did not answer
    │   ├── AnswerTooLarge          answer_too_large
    │   └── AnswerTooSlow           answer_too_slow
    ├── EnrolmentPending            key_pending: our key waits for an operator of the registry
    ├── EnrolmentRefused            the registry refused our key; the code is the registry's
    ├── AccessTokenRefused          the registry issues us no such access token; the code is the registry's
    ├── UnsignableRequest           a request or an event that cannot be signed as it stands
    ├── ResponseRefused             an answer that is not proven to be the callee's; the code says why
    ├── CallNotMade                 503: a call to another service was not started
    │   ├── CircuitOpen             circuit_open: the last calls to it failed
    │   └── TooManyCalls            too_many_calls: the limit of simultaneous calls is reached
    ├── MessageRefused              the application will never accept this message; the code is its own
    ├── BrokerUnavailable           broker_unavailable: messages cannot be sent or received now
    │   └── MessageNotTaken         message_not_taken: the broker refuses this message
    │       └── MessageTooLarge     message_too_large: it never accepts it
    └── ConfigurationError          a setting is missing or contradicts another

``code`` is stable and part of the interface (docs/protocol.md). ``str(error)`` is the detail for the log of the side
that refuses. It may quote unverified input, with control characters escaped so that it stays one line, and is never
sent to the other side.
"""

from typing import ClassVar, Self


def printable(text: object) -> str:
    """The text with every character escaped that is neither visible nor a blank: control characters, line and paragraph
    separators, marks that turn the direction of writing, and half surrogate pairs."""
    return "".join(one if one.isprintable() else _escaped(one) for one in str(text))


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")


class PeersealError(Exception):
    """The root of the tree. ``code`` is the stable name, ``status`` the HTTP status it maps to.

    ``challenge`` is the value of WWW-Authenticate in that answer (RFC 6750 section 3), ``retry_after`` the seconds in
    its Retry-After; None where the answer has no such header. ``step`` is the number of the step of verification that
    refuses (docs/protocol.md): of a class, the first one that raises it; None for errors that no step raises.
    """

    code: str = "error"
    status: ClassVar[int] = 500
    challenge: ClassVar[str | None] = None
    retry_after: int | None = None
    step: int | None = None

    def __init_subclass__(
        cls,
        *,
        code: str | None = None,
        status: int | None = None,
        challenge: str | None = None,
        step: int | None = None,
    ) -> None:
        """Sets what the class statement names; the rest comes from the base class."""
        super().__init_subclass__()
        cls.code, cls.status, cls.challenge = code or cls.code, status or cls.status, challenge or cls.challenge
        cls.step = step or cls.step

    def at_step(self, step: int) -> Self:
        """The error itself, raised by that step and not by the one of its class."""
        self.step = step
        return self

    def __str__(self) -> str:
        """The detail, as one line."""
        return printable(super().__str__())


class TokenError(PeersealError, status=401, challenge='Bearer error="invalid_token"'):
    """The token does not prove the caller. Answered with 401."""


class MissingToken(TokenError, code="missing_token", step=1, challenge="Bearer"):
    """No token came with the request."""


class MalformedToken(TokenError, code="malformed_token", step=1):
    """The token breaks the strict syntax of docs/protocol.md: encoding, JSON, members or their types."""


class WrongType(TokenError, code="wrong_type", step=2):
    """A token of another kind: its ``typ`` is not the one that this place accepts (RFC 8725 section 3.11)."""


class UnknownKey(TokenError, code="unknown_key", step=3):
    """The key that the token names is not registered."""


class RevokedKey(TokenError, code="revoked_key", step=3):
    """The key that the token names was revoked. Every token that it ever signed is refused."""


class BadSignature(TokenError, code="bad_signature", step=4):
    """The signature does not verify, or ``alg`` is not the one pinned to the key."""


class WrongIssuer(TokenError, code="wrong_issuer", step=5):
    """``iss`` (or ``sub``) is not the owner of the key that signed."""


class WrongAudience(TokenError, code="wrong_audience", step=6):
    """The token is for another audience."""


class Expired(TokenError, code="expired", step=7):
    """The token's ``exp`` has passed, or its ``iat`` is after the end of the key's active window."""


class NotYetValid(TokenError, code="not_yet_valid", step=7):
    """The token's ``nbf`` or ``iat`` is in the future, or before its key was active."""


class LifetimeTooLong(TokenError, code="lifetime_too_long", step=7):
    """The time from ``iat`` to ``exp`` is longer than this kind of token may live."""


class WrongBinding(TokenError, code="wrong_binding", step=8):
    """Method, target, body or a bound header is not the one that was signed."""


class Replayed(TokenError, code="replayed", step=11):
    """This token was accepted before."""


class BadTransactionToken(TokenError, code="bad_transaction_token", step=9):
    """The transaction token is missing, invalid, or not the one that the request token binds."""


class WrongEvent(TokenError, code="wrong_event", step=8):
    """The event token is for another event than the message names."""


class WrongTransaction(TokenError, code="wrong_transaction", step=8):
    """The event token is for another transaction than the message names."""


class WrongTopic(TokenError, code="wrong_topic", step=8):
    """The event was published on another topic than the one from which it was read."""


class WrongPayload(TokenError, code="wrong_payload", step=8):
    """The payload is not the one that was signed."""


class Forbidden(PeersealError, status=403, challenge='Bearer error="insufficient_scope"'):
    """The caller may not do this. Answered with 403."""


class CallerNotAllowed(Forbidden, code="caller_not_allowed", step=3):
    """This service may not call here at all."""


class InsufficientScope(Forbidden, code="insufficient_scope", step=10):
    """This service may call here, but not with the scope that the route needs."""


class TrustUnavailable(PeersealError, code="trust_unavailable", status=503, step=3):
    """The key is not available now: registry unreachable, offline limit passed, or fetch in cooldown.

    ``retry_after`` is in seconds.
    """

    def __init__(self, detail: str, retry_after: int = 5) -> None:
        super().__init__(detail)
        self.retry_after: int = retry_after


class SplitViewFound(TrustUnavailable, code="split_view"):
    """The registry's ledger has two histories: no key is believed until the root key explains them.

    Raised only where `TrustLimits.refuse_split_view` is set. A consumer of events tries the message again later.
    """


class ContentTooLarge(PeersealError, code="content_too_large", status=413):
    """The body is longer than this service reads."""


class ContentUnreadable(PeersealError, code="content_unreadable", status=400):
    """The body ended early, or its chunked encoding is invalid."""


class InvalidName(PeersealError, ValueError, code="invalid_name", status=400):
    """A trust domain, service name, service id or kid that breaks the rules of docs/protocol.md."""


class CodedError(PeersealError):
    """An error whose code depends on the case, given with the ``detail``."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = printable(code)  # another side may have sent it
        self.detail = detail


class KeyRefused(CodedError, status=400):
    """A public key that may not be registered. Codes: ``key_malformed``, ``key_private_members``,
    ``key_type_unsupported``, ``key_alg_mismatch``, ``key_size_unsupported``, ``key_exponent_unsupported``,
    ``key_even_modulus``, ``key_off_curve``, and those that the registry adds for weak and taken keys."""


class DocumentRefused(CodedError):
    """A signed document that a client does not believe. Codes: ``document_malformed``, ``document_wrong_type``,
    ``document_unknown_signer``, ``document_bad_signature``, ``document_wrong_issuer``, ``document_wrong_subject``,
    ``document_wrong_part``, ``document_expired``, ``document_from_future``, ``document_rolled_back``,
    ``document_wrong_root``; and of what the ledger says: ``document_bad_checkpoint``, ``document_not_in_ledger``,
    ``document_inconsistent``, ``document_revived_key``; ``document_unwitnessed`` where too few witnesses have cosigned
    the ledger; and ``document_stale`` where it is in force, but signed too long ago to say anything.

    ``by_mirror`` says that it came from a mirror while the registry's primary URL gave no answer.
    """

    by_mirror = False

    @property
    def of_another_registry(self) -> bool:
        """Whether the root's document belongs to another registry, for good. A mirror alone cannot say so."""
        return self.code in _OF_ANOTHER_REGISTRY and not self.by_mirror


_OF_ANOTHER_REGISTRY = ("document_wrong_root", "document_wrong_issuer", "document_wrong_subject")


class FetchError(PeersealError, code="fetch_failed"):
    """The registry did not answer: no connection, no answer in time, too large, or not the expected answer.

    ``http_status`` is the status of the answer, None without an answer. ``by_mirror`` says that a 404 came from mirrors
    alone, which may leave documents out.
    """

    by_mirror = False

    def __init__(self, detail: str, http_status: int | None = None) -> None:
        super().__init__(detail)
        self.http_status = http_status


class AnswerTooLarge(FetchError, code="answer_too_large"):
    """The answer is larger than the limit: an endless answer must not fill the memory."""


class AnswerTooSlow(FetchError, code="answer_too_slow"):
    """The answer did not end in time, or did not begin."""


class EnrolmentPending(PeersealError, code="key_pending"):
    """Our key waits until an operator of the registry approves it. Register the same key again to learn of that."""


class EnrolmentRefused(CodedError):
    """The registry refused to admit our key; ``code`` is the one in its problem document.

    ``request_id`` finds the line in the registry's log; None where the answer has none. ``clock_offset`` is in seconds,
    above 0 where this host's clock is ahead of the registry's; None where the answer has no time.
    """

    def __init__(
        self, code: str, detail: str = "", *, request_id: str | None = None, clock_offset: float | None = None
    ) -> None:
        super().__init__(code, detail)
        self.request_id = request_id
        self.clock_offset = clock_offset


class AccessTokenRefused(CodedError):
    """The registry issues this service no access token for that resource server; ``code`` is the one in its answer:
    ``invalid_target`` (no grant), ``invalid_client`` (a key that ended), ``unsupported_grant_type`` or ``exchange_off``
    (no operator turned it on)."""


class UnsignableRequest(PeersealError, code="unsignable_request"):
    """A request that cannot be signed as it stands: a body that cannot be read twice, a foreign Authorization."""


class ResponseRefused(CodedError):
    """An answer that is not proven to be the callee's answer to this request, so the application sees none of it.
    Codes: ``unsigned_response``, ``malformed_response``, ``wrong_response``, ``bad_signature``, ``unknown_key``,
    ``revoked_key``, ``expired``, ``wrong_binding``, ``trust_unavailable``.

    ``answered`` is the status of an answer without a token, as it arrived and not proven; None for any other refusal.
    The session of `requests` raises it as a requests.RequestException as well, the clients of httpx as an
    httpx.RequestError.
    """

    def __init__(self, code: str, detail: str = "", *, answered: int | None = None) -> None:
        super().__init__(code, detail)
        self.answered = answered


class CallNotMade(PeersealError, code="call_not_made", status=503):
    """A call to another service was not started, to keep its threads free. ``retry_after`` is in seconds.

    A `peerseal.requests.PeerSession` raises it as a requests.ConnectionError as well, a
    `peerseal.httpx.AsyncPeerSession` as a httpx.ConnectError.
    """

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after: int = retry_after


class CircuitOpen(CallNotMade, code="circuit_open"):
    """The last calls to that origin failed, or it asked for a pause. No call is made for ``retry_after`` seconds."""


class TooManyCalls(CallNotMade, code="too_many_calls"):
    """The limit of simultaneous calls to that origin is reached, and no place became free in time."""


class MessageRefused(CodedError, status=400):
    """The application will never accept this message. It becomes a dead letter with this code."""


class BrokerUnavailable(PeersealError, code="broker_unavailable", status=503):
    """The broker did not confirm a message, or cannot be reached."""


class MessageNotTaken(BrokerUnavailable, code="message_not_taken"):
    """The broker answers and refuses the message: the queue or topic is missing or full, the sender lacks the
    permission, or the message breaks a rule of the broker."""


class MessageTooLarge(MessageNotTaken, code="message_too_large"):
    """The message is larger than the broker ever accepts."""


class ConfigurationError(PeersealError, code="configuration"):
    """A setting is missing or contradicts another."""
