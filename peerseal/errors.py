"""Every error that Peerseal raises, in one tree::

    PeersealError
    ├── TokenError                  401: the caller is not proven
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
    ├── TrustUnavailable            503: the key cannot be had now
    ├── ContentTooLarge             413: the body is longer than is read to be checked
    ├── ContentUnreadable           400: the body broke off
    ├── InvalidName                 a trust domain, service name or kid that is not one (also a ValueError)
    ├── KeyRefused                  a public key that may not be registered; the code says why
    ├── DocumentRefused             a registry's answer that a client does not believe; the code says why
    ├── FetchError                  the registry could not be asked
    │   ├── AnswerTooLarge          answer_too_large
    │   └── AnswerTooSlow           answer_too_slow
    ├── EnrolmentPending            key_pending: our key waits for an operator of the registry
    ├── EnrolmentRefused            the registry refused our key; the code is the registry's
    ├── AccessTokenRefused          the registry issues us no such access token; the code is the registry's
    ├── UnsignableRequest           a request or an event that cannot be signed as it stands
    ├── CallNotMade                 503: a call to another service was not begun
    │   ├── CircuitOpen             circuit_open: its calls failed, one after another, a moment ago
    │   └── TooManyCalls            too_many_calls: as many calls to it run, or wait, as may
    ├── MessageRefused              the application will never take this message; the code is its own
    ├── BrokerUnavailable           broker_unavailable: messages cannot be sent or received now
    │   └── MessageNotTaken         message_not_taken: the broker answers, and does not take this one
    │       └── MessageTooLarge     message_too_large: it never will
    └── ConfigurationError          a setting is missing or contradicts another

``code`` is stable and part of the interface (docs/protocol.md). ``str(error)`` is the detail for the log of the side
that refuses; it may quote unverified input, with control characters escaped so that it stays one line of a log, and is
never sent to the other side.
"""

from typing import ClassVar


def printable(text: object) -> str:
    """The text with everything escaped that is no visible character or blank: control characters, line and paragraph
    separators, marks that turn the direction of writing, and half surrogate pairs."""
    return "".join(one if one.isprintable() else _escaped(one) for one in str(text))


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")


class PeersealError(Exception):
    """The root of the tree. ``code`` is the stable name, ``status`` the HTTP status it maps to.

    ``challenge`` is the value of WWW-Authenticate in that answer (RFC 6750 section 3), ``retry_after`` the seconds in
    its Retry-After; None where the answer has no such header.
    """

    code: str = "error"
    status: ClassVar[int] = 500
    challenge: ClassVar[str | None] = None
    retry_after: int | None = None

    def __str__(self) -> str:
        """The detail, as one line."""
        return printable(super().__str__())


class TokenError(PeersealError):
    """A token that proves nothing. Answered with 401."""

    status = 401
    challenge = 'Bearer error="invalid_token"'


class MissingToken(TokenError):
    """No token came with the request."""

    code = "missing_token"
    challenge = "Bearer"


class MalformedToken(TokenError):
    """The token breaks the strict syntax of docs/protocol.md: encoding, JSON, members or their types."""

    code = "malformed_token"


class WrongType(TokenError):
    """A token of another kind: its ``typ`` is not the one that this place accepts (RFC 8725 section 3.11)."""

    code = "wrong_type"


class UnknownKey(TokenError):
    """Nobody registered the key that the token names."""

    code = "unknown_key"


class RevokedKey(TokenError):
    """The key that the token names was revoked; nothing that it ever signed is good."""

    code = "revoked_key"


class BadSignature(TokenError):
    """The signature does not verify, or ``alg`` is not the one pinned to the key."""

    code = "bad_signature"


class WrongIssuer(TokenError):
    """``iss`` (or ``sub``) is not the owner of the key that signed."""

    code = "wrong_issuer"


class WrongAudience(TokenError):
    """The token is for somebody else."""

    code = "wrong_audience"


class Expired(TokenError):
    """The token's ``exp`` has passed, or its ``iat`` lies behind the end of the key's active window."""

    code = "expired"


class NotYetValid(TokenError):
    """The token's ``nbf`` or ``iat`` lies in the future, or before its key was active."""

    code = "not_yet_valid"


class LifetimeTooLong(TokenError):
    """``exp`` lies further behind ``iat`` than this kind of token may live."""

    code = "lifetime_too_long"


class WrongBinding(TokenError):
    """Method, target, body or a bound header is not the one that was signed."""

    code = "wrong_binding"


class Replayed(TokenError):
    """This very token was accepted before."""

    code = "replayed"


class BadTransactionToken(TokenError):
    """The transaction token is missing, not the one that was bound, or not good."""

    code = "bad_transaction_token"


class WrongEvent(TokenError):
    """The event token is for another event than its message speaks of."""

    code = "wrong_event"


class WrongTransaction(TokenError):
    """The event token is for another transaction than its message speaks of."""

    code = "wrong_transaction"


class WrongTopic(TokenError):
    """The event was published on another topic than the one where it was found."""

    code = "wrong_topic"


class WrongPayload(TokenError):
    """The payload is not the one that was signed."""

    code = "wrong_payload"


class Forbidden(PeersealError):
    """The caller may not do this. Answered with 403."""

    status = 403
    challenge = 'Bearer error="insufficient_scope"'


class CallerNotAllowed(Forbidden):
    """This service may not call here at all."""

    code = "caller_not_allowed"


class InsufficientScope(Forbidden):
    """This service may call here, but not with the scope that the route needs."""

    code = "insufficient_scope"


class TrustUnavailable(PeersealError):
    """The key cannot be had now: registry unreachable, offline limit passed, or fetch in cooldown.

    ``retry_after`` is in seconds.
    """

    code = "trust_unavailable"
    status = 503

    def __init__(self, detail: str, retry_after: int = 5) -> None:
        super().__init__(detail)
        self.retry_after: int = retry_after


class ContentTooLarge(PeersealError):
    """The body is longer than this service reads."""

    code = "content_too_large"
    status = 413


class ContentUnreadable(PeersealError):
    """The body broke off, or its chunks are no chunks."""

    code = "content_unreadable"
    status = 400


class InvalidName(PeersealError, ValueError):
    """A trust domain, service name, service id or kid that breaks the rules of docs/protocol.md."""

    code = "invalid_name"
    status = 400


class CodedError(PeersealError):
    """An error whose code depends on the case, given with the detail."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = printable(code)  # another side may have sent it


class KeyRefused(CodedError):
    """A public key that may not be registered. Codes: ``key_malformed``, ``key_private_members``,
    ``key_type_unsupported``, ``key_alg_mismatch``, ``key_size_unsupported``, ``key_exponent_unsupported``,
    ``key_even_modulus``, ``key_off_curve``, and those that the registry adds for weak and taken keys."""

    status = 400


class DocumentRefused(CodedError):
    """A signed document that a client does not believe. Codes: ``document_malformed``, ``document_wrong_type``,
    ``document_unknown_signer``, ``document_bad_signature``, ``document_wrong_issuer``, ``document_wrong_subject``,
    ``document_expired``, ``document_from_future``, ``document_rolled_back``, ``document_wrong_root``; and of what the
    ledger says: ``document_bad_checkpoint``, ``document_not_in_ledger``, ``document_inconsistent``,
    ``document_revived_key``; and ``document_stale`` where it is in force, but signed too long ago to say anything.

    ``by_mirror`` says that a mirror gave it while the registry's primary URL gave no answer, and may yet give another.
    """

    by_mirror = False

    @property
    def of_another_registry(self) -> bool:
        """Whether the root's document is not of the registry that was meant: no waiting mends that. A mirror alone does
        not say so."""
        return self.code in _OF_ANOTHER_REGISTRY and not self.by_mirror


_OF_ANOTHER_REGISTRY = ("document_wrong_root", "document_wrong_issuer", "document_wrong_subject")


class FetchError(PeersealError):
    """The registry could not be asked: no connection, no answer in time, too large, or not the answer agreed on.

    ``http_status`` is the status of the answer, or None where none came.
    """

    code = "fetch_failed"

    def __init__(self, detail: str, http_status: int | None = None) -> None:
        super().__init__(detail)
        self.http_status = http_status


class AnswerTooLarge(FetchError):
    """The answer is larger than any that is read: an endless one must not fill the memory."""

    code = "answer_too_large"


class AnswerTooSlow(FetchError):
    """The answer began and did not end in time, or a connection brought none."""

    code = "answer_too_slow"


class EnrolmentPending(PeersealError):
    """Our key is not registered yet: it waits until an operator of the registry approves it. Registering the same key
    again is how to learn of that."""

    code = "key_pending"


class EnrolmentRefused(CodedError):
    """The registry refused to admit our key; ``code`` is the one in its problem document."""


class AccessTokenRefused(CodedError):
    """The registry issues this service no access token for that resource server; ``code`` is the one in its answer:
    ``invalid_target`` (no grant), ``invalid_client`` (a key that ended), ``unsupported_grant_type`` or ``exchange_off``
    (no operator turned it on)."""


class UnsignableRequest(PeersealError):
    """A request that cannot be signed as it stands: a body that cannot be read twice, a foreign Authorization."""

    code = "unsignable_request"


class CallNotMade(PeersealError):
    """A call to another service was not begun, so that it holds up nothing else. ``retry_after`` is in seconds.

    A `peerseal.requests.PeerSession` raises it as a requests.ConnectionError as well.
    """

    code = "call_not_made"
    status = 503

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after: int = retry_after


class CircuitOpen(CallNotMade):
    """The last calls to that origin failed, or it asked for a pause: none is made for ``retry_after`` seconds."""

    code = "circuit_open"


class TooManyCalls(CallNotMade):
    """As many calls to that origin run as may at once, and no place became free in time."""

    code = "too_many_calls"


class MessageRefused(CodedError):
    """The application will never take this message, however often it comes: it is put aside with this code."""

    status = 400


class BrokerUnavailable(PeersealError):
    """The broker did not confirm what was sent, or cannot be reached and no waiting mends it."""

    code = "broker_unavailable"
    status = 503


class MessageNotTaken(BrokerUnavailable):
    """The broker answers, and does not take the message: no queue or topic is there for it, the queue is full, the
    sender may not send there, or something in the message is against the broker's rules."""

    code = "message_not_taken"


class MessageTooLarge(MessageNotTaken):
    """The message is larger than the broker takes, now or later."""

    code = "message_too_large"


class ConfigurationError(PeersealError):
    """A setting is missing or contradicts another."""

    code = "configuration"
