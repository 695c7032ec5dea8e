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
├── Lagging                    503: behind; the requested entry is not in this database (yet)
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


class KeyTaken(KeyRefused):
    """A sound key that cannot be registered for this service, or no longer. Answered with 409."""

    status = 409


class BadRequest(CodedError):
    """A request that cannot be understood. Answered with 400."""

    status = 400


class NotFound(CodedError):
    """There is nothing with that name. Answered with 404."""

    status = 404


class JoinRefused(TokenError):
    """The join token does not admit this key. The answer is the same for every reason, so a stranger learns nothing."""

    code = "join_refused"
    challenge = "Bearer"


class OidcRefused(TokenError):
    """The platform's token does not admit this key. The answer is the same for every reason; the detail quotes neither
    the token nor its subject."""

    code = "oidc_refused"
    challenge = "Bearer"


class OperatorRefused(TokenError):
    """The operator token is unknown, expired or revoked."""

    code = "operator_refused"


class RoleRefused(Forbidden):
    """The operator's role does not allow this."""

    code = "role_insufficient"


class PreconditionRequired(PeersealError):
    """A request that replaces something must name the version in If-Match (RFC 6585 section 3)."""

    code = "precondition_required"
    status = 428


class PreconditionFailed(PeersealError):
    """The version that was to be replaced is no longer current."""

    code = "precondition_failed"
    status = 412


class Unavailable(PeersealError):
    """The request cannot be answered now. ``retry_after`` is in seconds."""

    status = 503
    retry_after: int = 1


class Lagging(Unavailable):
    """The requested entry is not in this database (yet)."""

    code = "behind"


class TooManyApplicants(Unavailable):
    """The number of applicants has reached its limit. Answered with 429."""

    code = "too_many_applicants"
    status = 429
    retry_after = 60


class LedgerContradicted(Unavailable):
    """A row of the database differs from the entries: it was altered. Nothing is signed."""

    code = "ledger_contradicted"
    retry_after = 60


class LedgerForked(LedgerContradicted):
    """The database has another ledger than the one that this host has signed, or that its witnesses have seen."""


class LedgerUnconfirmed(Unavailable):
    """This host remembers no ledger, and none of REGISTRY_CHECKPOINT_URLS has answered."""

    code = "ledger_unconfirmed"
    retry_after = 5


class StorageUnavailable(Unavailable):
    """The database does not answer, or refuses the connection."""

    code = "storage_unavailable"
    retry_after = 5


class StorageReadOnly(StorageUnavailable):
    """The database server accepts no writes: it is a standby, or read-only."""

    code = "storage_read_only"


class StorageNotDurable(StorageUnavailable):
    """The database server could lose acknowledged writes. The detail names the setting and the remedy."""

    code = "storage_not_durable"
    retry_after = 30


class SchemaRefused(PeersealError):
    """This version cannot work with the database's schema, or refuses to change it. The detail names the command that
    helps."""

    code = "schema_refused"
