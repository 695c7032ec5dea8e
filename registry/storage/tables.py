"""The tables. Times are integer seconds since the epoch: SQLite gives time zones back wrong.

`entries` is the truth about everything public, and `tiles` and the frontier in `ledger_head` are its RFC 6962 tree;
`services`, `keys`, `policies`, `domain_settings` and the public columns of `join_tokens` and `operator_tokens` are the
state that the entries lead to (`registry.domain.rebuild`), stored for fast answers. `applicants`, which are not
admitted, and `audit`, which holds the acts of operators, are in no entry. Secrets are in no entry either: MAC keys are
sealed, operator secrets are hashed.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Named,
    String,
    Table,
    Text,
    bindparam,
)
from sqlalchemy import TypedColumns as Columns

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

SERVICE = 100
THUMBPRINT = 43
TOKEN_ID = 32


class EntryColumns(Columns):
    """The append-only list of changes. ``body`` holds the canonical bytes of `peerseal.protocol.ledger.entries.Entry`,
    ``leaf`` their RFC 6962 leaf hash, ``evidence`` the bytes that the entry commits to by digest; the other columns
    repeat parts of the body for queries."""

    seq: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    time: Named[int] = Column(BigInteger)
    type: Named[str] = Column(String(40))
    service: Named[str | None] = Column(String(SERVICE))
    kid: Named[str | None] = Column(Text)
    body: Named[bytes] = Column(LargeBinary)
    leaf: Named[bytes] = Column(LargeBinary(32))
    evidence: Named[bytes | None] = Column(LargeBinary)


class HeadColumns(Columns):
    """One row: the number of entries, and the hashes of the complete subtrees that they make, largest first. Locking
    it is what makes writers wait for each other."""

    id: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    size: Named[int] = Column(BigInteger)
    frontier: Named[bytes] = Column(LargeBinary)


class TileColumns(Columns):
    """The complete tiles of the tree (C2SP tlog-tiles): 256 hashes of one level, and the one hash above them."""

    level: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    number: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    hashes: Named[bytes] = Column(LargeBinary)
    root: Named[bytes] = Column(LargeBinary(32))


class ServiceColumns(Columns):
    """Services that ever had a key or a policy; ``seq`` is the entry that last changed one. The row ``registry`` stands
    for the registry's own documents: its keys and the domain's settings."""

    name: Named[str] = Column(String(SERVICE), primary_key=True)
    seq: Named[int] = Column(BigInteger, index=True)


class KeyColumns(Columns):
    """Keys, past and present. A thumbprint is of one service for ever."""

    thumbprint: Named[str] = Column(String(THUMBPRINT), primary_key=True)
    service: Named[str] = Column(String(SERVICE))
    spki: Named[bytes] = Column(LargeBinary)
    admitted_seq: Named[int] = Column(BigInteger)
    admitted_by: Named[str] = Column(Text)
    vouched_by: Named[str | None] = Column(String(THUMBPRINT), index=True)
    active_from: Named[int] = Column(BigInteger)
    active_until: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger)
    revoked_at: Named[int | None] = Column(BigInteger)
    revoked_seq: Named[int | None] = Column(BigInteger)


class JoinTokenColumns(Columns):
    """Join tokens. ``sealed_key`` is the MAC key, encrypted with the sealing key, or empty where it was lost with a
    database; the secret itself is nowhere."""

    id: Named[str] = Column(String(TOKEN_ID), primary_key=True)
    service: Named[str] = Column(String(SERVICE))
    sealed_key: Named[bytes] = Column(LargeBinary)
    created_at: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger)
    uses: Named[int] = Column(BigInteger)
    used: Named[int] = Column(BigInteger)
    withdrawn: Named[bool]


class OperatorTokenColumns(Columns):
    """Operator tokens. ``secret_hash`` is the SHA-256 of a secret of 256 random bits, which needs no salt.
    ``person`` is the hash of issuer and subject where the operator is a person whom the issuer named, ``name`` the
    name that the issuer gave."""

    id: Named[str] = Column(String(TOKEN_ID), primary_key=True)
    secret_hash: Named[bytes] = Column(LargeBinary)
    role: Named[str] = Column(String(20))
    created_at: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger)
    revoked: Named[bool]
    person: Named[bytes | None] = Column(LargeBinary(32), index=True)
    name: Named[str | None] = Column(Text)


class ConsoleSessionColumns(Columns):
    """Sessions of operators in the console. ``id`` is the SHA-256 of a secret of 256 random bits."""

    id: Named[bytes] = Column(LargeBinary(32), primary_key=True)
    operator: Named[str] = Column(String(TOKEN_ID), index=True)
    created_at: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger)


class PolicyColumns(Columns):
    """Who may call each service. ``body`` is the canonical JSON of the policy, ``seq`` the entry that set it. Of a
    restricted one that was lost with a database the body is empty (`registry.services.recovery.restore`)."""

    service: Named[str] = Column(String(SERVICE), primary_key=True)
    seq: Named[int] = Column(BigInteger)
    body: Named[str] = Column(Text)


class DomainColumns(Columns):
    """One row at most: the domain's settings in canonical JSON, and the entry that set them."""

    id: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    seq: Named[int] = Column(BigInteger)
    body: Named[str] = Column(Text)


class ApplicantColumns(Columns):
    """Keys that wait for an operator, until ``expires_at``. ``proof`` is their proof of possession."""

    thumbprint: Named[str] = Column(String(THUMBPRINT), primary_key=True)
    service: Named[str] = Column(String(SERVICE), index=True)
    proof: Named[str] = Column(Text)
    created_at: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger, index=True)


class AuditColumns(Columns):
    """The acts of operators: ``by`` as entries name it, ``act``, ``subject``, and the entry that it made, if any."""

    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    time: Named[int] = Column(BigInteger)
    by: Named[str] = Column(Text)
    act: Named[str] = Column(String(40))
    subject: Named[str] = Column(Text)
    seq: Named[int | None] = Column(BigInteger)


class UsedTokenColumns(Columns):
    """Request tokens that a node of this registry has accepted, until they expire."""

    token: Named[bytes] = Column(LargeBinary(32), primary_key=True)
    until: Named[int] = Column(BigInteger, index=True)


class RegistryDocumentColumns(Columns):
    """The documents that the root signed; the highest version is in force."""

    version: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    jws: Named[str] = Column(Text)


class SchemaRevisionColumns(Columns):
    """The applied revisions of the schema from 0004 on. Nodes of ``oldest_node_revision`` and newer ones can work with
    ``revision``."""

    revision: Named[str] = Column(String(20), primary_key=True)
    oldest_node_revision: Named[str] = Column(String(20))


entries = Table("entries", metadata, EntryColumns)
ledger_head = Table("ledger_head", metadata, HeadColumns, CheckConstraint("id = 1", name="one_row"))
tiles = Table("tiles", metadata, TileColumns)
services = Table("services", metadata, ServiceColumns)
keys = Table("keys", metadata, KeyColumns)
join_tokens = Table("join_tokens", metadata, JoinTokenColumns, CheckConstraint("used <= uses", name="not_overspent"))
operator_tokens = Table("operator_tokens", metadata, OperatorTokenColumns)
policies = Table("policies", metadata, PolicyColumns)
domain_settings = Table("domain_settings", metadata, DomainColumns, CheckConstraint("id = 1", name="one_row"))
applicants = Table("applicants", metadata, ApplicantColumns)
audit = Table("audit", metadata, AuditColumns)
console_sessions = Table("console_sessions", metadata, ConsoleSessionColumns)
used_tokens = Table("used_tokens", metadata, UsedTokenColumns)
registry_documents = Table("registry_documents", metadata, RegistryDocumentColumns)
schema_revisions = Table("schema_revisions", metadata, SchemaRevisionColumns)


def _of_type(*types: str) -> ColumnElement[bool]:
    """Entries of these types. The types stand in the statement itself: with parameters SQLite, and a cached
    plan of PostgreSQL, would not use the index with the same condition."""
    return entries.c.type.in_(bindparam(None, types, expanding=True, literal_execute=True))


ENDINGS = _of_type("key_retired", "key_revoked")
"""The entries that end keys. Before a key is called active, those about it are read, by its kid."""

SETTINGS = _of_type("policy_set", "domain_set")
"""The entries that set policies and the domain's settings, read before one is signed."""

HISTORIES = _of_type("history_declared")
"""The entries with the root's statements about lost entries: very few, and read when a client or a node sees another
ledger than it remembers."""

FEDERATIONS = _of_type("federation_set")
"""The entries that say which foreign trust domains are believed; the newest is in force. No table repeats them."""

Index("ix_entries_federations", entries.c.seq, sqlite_where=FEDERATIONS, postgresql_where=FEDERATIONS)
Index("ix_entries_histories", entries.c.seq, sqlite_where=HISTORIES, postgresql_where=HISTORIES)
Index("ix_entries_endings", entries.c.service, sqlite_where=ENDINGS, postgresql_where=ENDINGS)
Index("ix_entries_numbered_endings", entries.c.service, entries.c.seq, sqlite_where=ENDINGS, postgresql_where=ENDINGS)
Index("ix_entries_ended_kids", entries.c.kid, sqlite_where=ENDINGS, postgresql_where=ENDINGS)
Index("ix_entries_settings", entries.c.service, sqlite_where=SETTINGS, postgresql_where=SETTINGS)
Index(None, keys.c.service, keys.c.expires_at)
Index(None, keys.c.service, keys.c.admitted_seq)
Index(None, join_tokens.c.service)
