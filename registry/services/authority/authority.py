"""The signing authority of a registry: the root-signed document in force, and the keys of this node that it names."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.errors import ConfigurationError, DocumentRefused
from peerseal.protocol import jose
from peerseal.protocol.documents.frame import Document, sign_document
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import Checkpoint, ledger_jwk, sign_checkpoint
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.names import make_kid, registry_id
from peerseal.runtime.tracing import span
from peerseal.verify.context import current_trace
from registry.domain.errors import StorageUnavailable, Unavailable
from registry.services.authority.fork_guard import ForkGuard
from registry.services.setup.keyfiles import read_key_pair, read_ledger_key
from registry.settings import Settings
from registry.storage.queries import documents, ledger
from registry.storage.unit import Store

log = logging.getLogger(__name__)

RENEW_BEFORE = 90 * 24 * 3600
"""Seconds before the registry keys document expires in which ``init`` renews it, signed by the root."""
WARN_EVERY = 24 * 3600
"""Seconds between two warnings of one process that it was not renewed."""


class NotInitialised(Unavailable):
    """The database has no registry keys document, or one that does not name this node's keys."""

    code = "not_initialised"
    retry_after = 5


@dataclass(frozen=True, slots=True)
class Authority:
    """The registry keys document (as a value and as signed), and this node's keys: one signs documents, the other
    checkpoints of the ledger."""

    keys: RegistryKeys
    jws: str = field(repr=False)
    signing_key: KeyPair = field(repr=False)
    ledger_key: Ed25519PrivateKey = field(repr=False)

    @property
    def domain(self) -> str:
        """The trust domain."""
        return self.keys.subject

    @property
    def id(self) -> str:
        """The registry's own service id."""
        return registry_id(self.domain)

    @property
    def pin(self) -> str:
        """The root key's thumbprint, which clients pin."""
        return self.keys.root.thumbprint

    def sign(self, document: Document) -> str:
        """The document as a compact JWS."""
        with signing(document.TYP):
            return sign_document(document, self.signing_key)

    def sign_token(self, typ: str, payload: bytes) -> str:
        """A token of that type as a compact JWS."""
        key = self.signing_key
        header = jose.Header(key.public.alg, make_kid(self.id, key.public.thumbprint), typ)
        with signing(typ):
            return jose.compact(jose.encode_header(header), payload, key.sign)

    def checkpoint(self, edge: Frontier) -> str:
        """The signed head of the ledger with that right edge."""
        with signing("checkpoint"):
            return sign_checkpoint(Checkpoint(self.domain, edge.size, edge.root), self.ledger_key)


def signing(kind: str) -> AbstractContextManager[object]:
    """The span of one signature of the registry, in a request that is traced."""
    return nullcontext() if current_trace() is None else span("registry.sign", ask=lambda: {"registry.document": kind})


class AuthoritySource:
    """Loads the authority when it is first needed, and looks for a newer document at intervals. ``store`` is guarded by
    ``guard``: nothing is signed while the guard knows of a fork."""

    def __init__(
        self, settings: Settings, store: Store, guard: ForkGuard, clock: Callable[[], float] = time.time
    ) -> None:
        """Reads the keys, so a missing one is reported at the start. Raises ConfigurationError."""
        self._settings = settings
        self._store = store
        self._clock = clock
        self._guard = guard
        self._read_keys()
        self._known: Authority | None = None
        self._files: object = None
        self._followers: list[Callable[[], None]] = []
        self._cached = settings.limits.registry_keys_cached
        self._looked_at = self._checked_at = self._warned_at = 0.0
        guard.when_rebased(self._tell)

    def when_changed(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called when another document or another history comes into force: clients may refuse what was
        signed before."""
        self._followers.append(tell)

    def _tell(self) -> None:
        for tell in self._followers:
            tell()

    def require_sound(self) -> None:
        """Raises LedgerForked where a fork is known. Does not read the database."""
        self._guard.require_sound()

    def newest(self) -> Authority:
        """The authority, read from the database now. Raises as `current` does."""
        self._looked_at = self._checked_at = 0.0
        return self.current()

    def current(self) -> Authority:
        """The authority in force. With the database down, the last known one.

        Raises NotInitialised, StorageUnavailable, LedgerForked for another ledger than the one that was seen,
        LedgerUnconfirmed, or ConfigurationError for another domain than the configured one.
        """
        now = self._clock()
        if self._known is not None and self._guard.sound and now < self._checked_at + self._cached:
            return self._known
        try:
            with self._store.look() as connection:
                ledger.frontier(connection)  # which the guard checks
                jws = documents.registry_keys(connection)
        except StorageUnavailable:
            if self._known is None:
                raise
            jws = self._known.jws
        self._guard.require_sound()
        found = self._taken_over(jws, now)
        self._guard.remember(found.checkpoint)
        self._checked_at = now
        return found

    def in_force(self) -> Authority:
        """The authority in force, for reading only: the guard is not involved.

        Raises NotInitialised, StorageUnavailable or ConfigurationError.
        """
        known, now = self._known, self._clock()
        if known is not None and now < self._looked_at + self._cached:
            return known
        try:
            with self._store.look() as connection:
                jws = documents.registry_keys(connection)
        except StorageUnavailable:
            if known is None:
                raise
            jws = known.jws
        return self._taken_over(jws, now)

    def _taken_over(self, jws: str | None, now: float) -> Authority:
        known = self._known
        files = self._state_of_files()
        if known is None or known.jws != jws or files != self._files:
            known = self._load(jws, now)
            self._known, self._files = known, files
            self._tell()
        self._known, self._looked_at = known, now
        self._warn_near_the_end(known, now)
        return known

    def _warn_near_the_end(self, known: Authority, now: float) -> None:
        if now > known.keys.expires_at - RENEW_BEFORE and now > self._warned_at + WARN_EVERY:
            self._warned_at = now
            days = (known.keys.expires_at - now) / 86400
            log.warning("the root-signed document expires in %.0f days: run init where the root key is", days)

    def _load(self, jws: str | None, now: float) -> Authority:
        if jws is None:
            raise NotInitialised("the database has no registry keys document: run peerseal-registry init")
        try:
            keys = read_registry_keys(jws, pin=None, now=now)  # from our own database; clients check it by their pin
        except DocumentRefused as error:
            raise NotInitialised(f"the registry keys document is invalid: {error}") from error
        signing_key, ledger_key = self._read_keys()
        if signing_key.public not in keys.signing_keys:
            raise NotInitialised(f"the root-signed document does not name the key in {self._settings.signing_key_file}")
        if ledger_jwk(ledger_key.public_key()) not in keys.ledger_keys:
            raise NotInitialised(f"the root-signed document does not name the key in {self._settings.ledger_key_file}")
        if self._settings.trust_domain not in (None, keys.subject):
            raise ConfigurationError(
                f"the database is of {keys.subject}, and REGISTRY_TRUST_DOMAIN={self._settings.trust_domain}"
            )
        return Authority(keys, jws, signing_key, ledger_key)

    def _state_of_files(self) -> object:
        """A value that changes when a key file is replaced. Raises ConfigurationError."""
        try:
            found = [path.stat() for path in (self._settings.signing_key_file, self._settings.ledger_key_file)]
        except OSError as error:
            raise ConfigurationError(f"a key file is missing: {error.filename}") from error
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in found]

    def _read_keys(self) -> tuple[KeyPair, Ed25519PrivateKey]:
        settings = self._settings
        signing_key = read_key_pair(settings.signing_key_file, "signing key", settings.key_passphrase)
        return signing_key, read_ledger_key(settings.ledger_key_file, settings.key_passphrase)
