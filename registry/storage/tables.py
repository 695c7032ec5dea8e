"""The tables. Times are integer seconds since the epoch: SQLite gives time zones back wrong.

`entries` is the truth about everything public; `services`, `keys` and the public columns of `join_tokens` and
`operator_tokens` are what its entries amount to (`registry.domain.rebuild`), kept for quick answers. Secrets are in
no entry: MAC keys are sealed, operator secrets hashed.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, LargeBinary, MetaData, Named, String, Table, Text
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
    """The append-only list of changes. ``body`` holds the canonical bytes of `peerseal.protocol.ledger.Entry`; the
    other columns repeat parts of it for queries."""

    seq: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    time: Named[int] = Column(BigInteger)
    type: Named[str] = Column(String(40))
    service: Named[str | None] = Column(String(SERVICE))
    kid: Named[str | None] = Column(Text)
    body: Named[bytes] = Column(LargeBinary)


class HeadColumns(Columns):
    """One row: the number of entries. Raising it is what puts writers in a row."""

    id: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    size: Named[int] = Column(BigInteger)


class ServiceColumns(Columns):
    """Services that ever had a key; ``seq`` is the entry that last changed one."""

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
    """Join tokens. ``sealed_key`` is the MAC key, encrypted with the sealing key; the secret itself is nowhere."""

    id: Named[str] = Column(String(TOKEN_ID), primary_key=True)
    service: Named[str] = Column(String(SERVICE))
    sealed_key: Named[bytes] = Column(LargeBinary)
    created_at: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger)
    uses: Named[int] = Column(BigInteger)
    used: Named[int] = Column(BigInteger)
    withdrawn: Named[bool]


class OperatorTokenColumns(Columns):
    """Operator tokens. ``secret_hash`` is the SHA-256 of a secret of 256 random bits, which needs no salt."""

    id: Named[str] = Column(String(TOKEN_ID), primary_key=True)
    secret_hash: Named[bytes] = Column(LargeBinary)
    role: Named[str] = Column(String(20))
    created_at: Named[int] = Column(BigInteger)
    expires_at: Named[int] = Column(BigInteger)
    revoked: Named[bool]


class UsedTokenColumns(Columns):
    """Request tokens accepted by this registry, on any of its nodes, until they can be accepted no more."""

    token: Named[bytes] = Column(LargeBinary(32), primary_key=True)
    until: Named[int] = Column(BigInteger, index=True)


class RegistryDocumentColumns(Columns):
    """The documents that the root signed; the highest version is in force."""

    version: Named[int] = Column(BigInteger, primary_key=True, autoincrement=False)
    jws: Named[str] = Column(Text)


entries = Table("entries", metadata, EntryColumns)
ledger_head = Table("ledger_head", metadata, HeadColumns, CheckConstraint("id = 1", name="one_row"))
services = Table("services", metadata, ServiceColumns)
keys = Table("keys", metadata, KeyColumns)
join_tokens = Table("join_tokens", metadata, JoinTokenColumns, CheckConstraint("used <= uses", name="not_overspent"))
operator_tokens = Table("operator_tokens", metadata, OperatorTokenColumns)
used_tokens = Table("used_tokens", metadata, UsedTokenColumns)
registry_documents = Table("registry_documents", metadata, RegistryDocumentColumns)

Index(None, keys.c.service, keys.c.expires_at)
Index(None, keys.c.service, keys.c.admitted_seq)
Index(None, join_tokens.c.service)
