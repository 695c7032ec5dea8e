"""The registry's own errors, below `peerseal.errors.PeersealError`::

PeersealError
├── KeyRefused
│   └── KeyTaken               409: key_of_another_service, key_revoked, key_retired, too_many_keys
├── BadRequest                 400: malformed_body, invalid_parameter, body_too_large (413), …
├── NotFound                   404: service_not_found, key_not_found, …
├── JoinRefused                401: join_refused, for each reason; the log names it
├── OidcRefused                401: oidc_refused, likewise
├── OperatorRefused            401: operator_refused
├── RoleRefused                403: role_insufficient
├── PreconditionRequired       428: precondition_required; If-Match is missing
├── PreconditionFailed         412: precondition_failed; it was changed meanwhile
├── Lagging                    503: the requested entry is not in this database (yet)
├── TooManyApplicants          429: too_many_applicants
├── LedgerContradicted         503: ledger_contradicted; the database differs from its own ledger
│   └── LedgerForked           the same code; its ledger is not the one that this host has seen
├── LedgerUnconfirmed          503: ledger_unconfirmed; no other node or copy has confirmed the ledger yet
├── StorageUnavailable         503: storage_unavailable
│   ├── StorageReadOnly        503: storage_read_only; the server is a standby, or read-only
│   └── StorageNotDurable      503: storage_not_durable; the server could lose what it acknowledges
└── SchemaRefused              schema_refused; the database's schema is not this version's (commands only)
"""

from peerseal.errors import CodedError, Forbidden, KeyRefused, PeersealError, TokenError


class KeyTaken(KeyRefused, status=409):
    """A sound key that cannot be registered for this service, or no longer. Answered with 409."""


class BadRequest(CodedError, status=400):
    """A request that cannot be understood. Answered with 400."""


class NotFound(CodedError, status=404):
    """There is nothing with that name. Answered with 404."""


class JoinRefused(TokenError, code="join_refused", challenge="Bearer"):
    """The join token does not admit this key. The answer is the same for every reason, so a stranger learns nothing."""


class OidcRefused(TokenError, code="oidc_refused", challenge="Bearer"):
    """The platform's token does not admit this key. The answer is the same for every reason; the detail quotes neither
    the token nor its subject."""


class OperatorRefused(TokenError, code="operator_refused"):
    """The operator token is unknown, expired or revoked."""


class RoleRefused(Forbidden, code="role_insufficient"):
    """The operator's role does not allow this."""


class PreconditionRequired(PeersealError, code="precondition_required", status=428):
    """A request that replaces something must name the version in If-Match (RFC 6585 section 3)."""


class PreconditionFailed(PeersealError, code="precondition_failed", status=412):
    """The version that was to be replaced is no longer current."""


class Unavailable(PeersealError, status=503):
    """The request cannot be answered now. ``retry_after`` is in seconds."""

    retry_after: int = 1


class Lagging(Unavailable, code="behind"):
    """The requested entry is not in this database (yet)."""


class TooManyApplicants(Unavailable, code="too_many_applicants", status=429):
    """The number of applicants has reached its limit. Answered with 429."""

    retry_after = 60


class LedgerContradicted(Unavailable, code="ledger_contradicted"):
    """A row of the database differs from the entries: it was altered. Nothing is signed."""

    retry_after = 60


class LedgerForked(LedgerContradicted):
    """The database has another ledger than the one that this host has signed, or that its witnesses have seen."""


class LedgerUnconfirmed(Unavailable, code="ledger_unconfirmed"):
    """This host remembers no ledger, and none of REGISTRY_CHECKPOINT_URLS has answered."""

    retry_after = 5


class StorageUnavailable(Unavailable, code="storage_unavailable"):
    """The database does not answer, or refuses the connection."""

    retry_after = 5


class StorageReadOnly(StorageUnavailable, code="storage_read_only"):
    """The database server accepts no writes: it is a standby, or read-only."""


class StorageNotDurable(StorageUnavailable, code="storage_not_durable"):
    """The database server could lose acknowledged writes. The detail names the setting and the remedy."""

    retry_after = 30


class SchemaRefused(PeersealError, code="schema_refused"):
    """This version cannot work with the database's schema, or refuses to change it. The detail names the command that
    helps."""
