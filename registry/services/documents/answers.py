"""Answers kept as bytes, so that a warm one costs no more than a constant."""

import hashlib
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from peerseal.protocol.encoding import b64url

K = TypeVar("K")

JWT = "application/jwt"
JWK_SET = "application/jwk-set+json"
NOTE = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer: its bytes, their strong ETag, and as of when and of which entries it speaks. Anyone may have it, or,
    where ``readers`` are given, the services with these ids."""

    body: bytes = field(repr=False)
    content_type: str
    etag: str
    seq: int
    head: int
    issued_at: int
    expires_at: int
    readers: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        body: bytes,
        content_type: str,
        seq: int,
        head: int,
        issued_at: int,
        expires_at: int,
        readers: frozenset[str] | None = None,
    ) -> "Rendered":
        """With the ETag that the bytes have: the same from every worker and node that made the same bytes."""
        etag = f'"{b64url(hashlib.sha256(body).digest()[:16])}"'
        return cls(body, content_type, etag, seq, head, issued_at, expires_at, readers)


class RenderedCache(Generic[K]):
    """A bounded dict of answers: first in, first out. Answers are made anew within a minute, which puts what is in use
    back in. Reading takes no lock, and two threads at worst make the same answer twice."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[K, Rendered] = {}
        self._changing = Lock()  # a dict that changes cannot be asked for its first name

    def get(self, name: K) -> Rendered | None:
        """What is kept under that name."""
        return self._kept.get(name)

    def put(self, name: K, rendered: Rendered) -> Rendered:
        """Keeps and returns it."""
        with self._changing:
            self._kept.pop(name, None)
            self._kept[name] = rendered
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
        return rendered

    def clear(self) -> None:
        """Forgets them all."""
        with self._changing:
            self._kept = {}

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)
