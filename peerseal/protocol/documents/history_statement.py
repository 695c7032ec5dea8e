"""The history statement: the root declares that a ledger lost entries for good and continues from another head.

A database fail-over may lose entries that clients have seen. Where no copy has them, the ledger that continues
contradicts what those clients remember, and they refuse it. One statement, signed by the root key and no other, says
which entries were lost and where the ledger continues (docs/protocol.md). `excused_by` decides whether a client that
remembers a head may continue from the new one. A statement does not expire, so it has no `Frame`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from peerseal.errors import DocumentRefused, MalformedToken
from peerseal.protocol.documents.frame import UnverifiedDocument, sign_document
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.merkle import HASH_SIZE
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.tokens.claims import LEEWAY, claim, number_claim, time_claim

HISTORY_TYP: Final = "peerseal-history+jwt"
MAX_HISTORY_STATEMENT: Final = 4 * 1024
"""Characters of one statement: names of 350 characters, three heads and a signature."""
MAX_STATEMENTS: Final = 64
"""Statements of one registry that a client reads, oldest first."""
MAX_HISTORY_BYTES: Final = MAX_STATEMENTS * (MAX_HISTORY_STATEMENT + 4) + 1024
"""Bytes of an answer that holds them all."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a ledger: its size in entries and its RFC 6962 root hash."""

    size: int
    root: bytes

    def to_json(self) -> dict[str, Any]:
        """``{"size", "root"}``, the root in base64url."""
        return {"size": self.size, "root": b64url(self.root)}

    @classmethod
    def from_json(cls, members: Any) -> "Head":
        """Reads what `to_json` writes. Raises MalformedToken."""
        root = b64url_decode(claim(members, "root", str))
        if len(root) != HASH_SIZE:
            raise MalformedToken("a root hash has 32 bytes")
        return cls(number_claim(members, "size"), root)

    def __str__(self) -> str:
        """For messages."""
        return f"{self.size} entries, root hash {b64url(self.root)}"


@dataclass(frozen=True, slots=True)
class HistoryStatement:
    """The ledger of ``domain`` had the head ``lost``; the entries after ``common`` are lost, and the ledger continues
    from ``new``, which begins with ``common``. ``issued_at`` is in seconds since the epoch."""

    TYP: ClassVar[str] = HISTORY_TYP
    MAX_SIZE: ClassVar[int] = MAX_HISTORY_STATEMENT
    domain: str
    issued_at: int
    common: Head
    lost: Head
    new: Head

    @property
    def issuer(self) -> str:
        """The registry's service id (``iss``)."""
        return registry_id(self.domain)

    def claims(self) -> dict[str, Any]:
        """The payload."""
        heads = {name: getattr(self, name).to_json() for name in ("common", "lost", "new")}
        return {"iss": self.issuer, "sub": self.domain, "iat": self.issued_at, **heads}

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> "HistoryStatement":
        """From a payload. Raises MalformedToken or InvalidName."""
        domain = claim(claims, "sub", str)
        if claim(claims, "iss", str) != registry_id(domain):
            raise MalformedToken("the statement is of another registry: iss does not fit sub")
        heads = [Head.from_json(claim(claims, name, dict)) for name in ("common", "lost", "new")]
        common, lost, new = heads
        if not (0 < common.size < lost.size and common.size <= new.size):
            raise MalformedToken("the sizes show no loss: 0 < common < lost and common <= new must hold")
        if (new.size, new.root) == (lost.size, lost.root) or (new.size == common.size and new.root != common.root):
            raise MalformedToken("the heads show no loss: new equals lost, or contradicts common")
        return cls(domain, time_claim(claims, "iat"), common, lost, new)

    def excuses(self, head: Head, seen_at: float) -> bool:
        """Whether a client that saw that head at that time has seen lost entries: the head is after ``common`` and not
        after ``lost``, and was seen before this statement was issued. After that every head belongs to the new
        history, which this statement must not excuse."""
        between = self.common.size < head.size <= self.lost.size
        seen_before = seen_at <= self.issued_at + LEEWAY
        return between and seen_before and (head.size < self.lost.size or head == self.lost)


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a client that has seen lost entries continues: from the head ``new``.

    The ledger must begin with the entries of ``new``, and those with the entries of ``common``, which no statement
    declares lost. The client records ``seen_at`` (seconds since the epoch) as the earliest time at which it saw a later
    head. So only a statement that is issued later can excuse such a head.
    """

    common: Head
    new: Head
    seen_at: int


def excused_by(statements: Iterable[HistoryStatement], head: Head, seen_at: float) -> Continuation | None:
    """How a client that saw ``head`` at the time ``seen_at`` continues; None where no statement excuses that head.

    The statements apply one after another, oldest first: a later one may declare lost what an earlier one led to.
    """
    found: Continuation | None = None
    for statement in sorted(statements, key=lambda statement: statement.issued_at):
        if statement.excuses(head, seen_at):
            head, seen_at = statement.new, statement.issued_at
            common = (
                statement.common if found is None else min(found.common, statement.common, key=lambda one: one.size)
            )
            found = Continuation(common, statement.new, statement.issued_at + LEEWAY + 1)
    return found


def sign_history(statement: HistoryStatement, root: KeyPair) -> str:
    """The statement as a compact JWS, signed by the root key."""
    return sign_document(statement, root)


def read_history(jws: str, root: PublicKey, *, domain: str, now: float) -> HistoryStatement:
    """The statement that this root key signed for this domain. Raises DocumentRefused."""
    signers = {make_kid(registry_id(domain), root.thumbprint): root}
    statement = UnverifiedDocument.parse(HistoryStatement, jws).verify_signature(signers)
    if statement.domain != domain:
        raise DocumentRefused("document_wrong_subject", f"a {HISTORY_TYP} of {statement.domain}, not of {domain}")
    if statement.issued_at > now + LEEWAY:
        raise DocumentRefused("document_from_future", f"a {HISTORY_TYP}")
    return statement


def signed_histories(
    statements: Iterable[str],
    root: PublicKey,
    *,
    domain: str,
    now: float,
    refused: Callable[[DocumentRefused], object] = lambda _: None,
) -> dict[str, HistoryStatement]:
    """The statements that this root key signed for this domain, by their compact JWS. The others are skipped: a
    registry's host may be in the hands of an attacker, who can append false ones. ``refused`` gets the reason, for the
    log."""
    found: dict[str, HistoryStatement] = {}
    for jws in statements:
        try:
            found[jws] = read_history(jws, root, domain=domain, now=now)
        except DocumentRefused as error:
            refused(error)
    return found


def encode_statements(statements: Iterable[str]) -> bytes:
    """All statements as one answer."""
    return canonical_json({"statements": list(statements)})


def decode_statements(body: bytes) -> list[str]:
    """The statements in an answer, not verified. Raises MalformedToken."""
    statements = claim(strict_json_object(body), "statements", list)
    if len(statements) > MAX_STATEMENTS or any(type(jws) is not str for jws in statements):
        raise MalformedToken("not a list of history statements")
    return statements
