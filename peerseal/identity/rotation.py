"""Key rotation: the first key is registered, each key is replaced in time, and old keys are retired.

All workers of a host share one key folder: they sign with one key, and one of them at a time rotates it. A key passes
through these states::

    candidate ─── registered ─── signing ─────────── superseded ──────────── retired
    generated     after its      after the lead      while the next one      after the overlap;
    and saved     registration   of the schedule     signs                   the private key is deleted

Each step is saved before the next one begins, and the registry accepts a second registration of the same key. So a
process may be killed at any point, and the next one continues.

A candidate that the registry refuses for itself, such as one in a part of the key set that is full, is marked. The next
attempt deletes it and makes another: one key an attempt. A key that was made elsewhere is never replaced so.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from peerseal.errors import ConfigurationError, DocumentRefused, EnrolmentRefused, PeersealError, TrustUnavailable
from peerseal.identity.enrolment import (
    TRY_AGAIN,
    UNREACHABLE,
    Enrolment,
    PlatformToken,
    refusal_in,
)
from peerseal.identity.enrolment_errors import ANOTHER_KEY_HELPS
from peerseal.identity.key_folder import StoredKey
from peerseal.identity.signing_keys import SigningKeys
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id
from peerseal.runtime.backoff import backoff
from peerseal.runtime.forks import BackgroundWork, left_to_workers, notice_fork
from peerseal.runtime.limits import RotationSchedule
from peerseal.runtime.tracing import traced
from peerseal.trust.store import TrustStore

log = logging.getLogger("peerseal.identity")

_LONGEST_PAUSE = 10.0
"""Seconds between two attempts at most; the first pause is 0.2 s."""
_STOP_TIMEOUT = 15.0
"""Seconds for which `RotationThread.stop` waits for a rotation under way: longer than one call to the registry."""


class KeyRotation:
    """Registers, replaces and retires ``keys``. ``admission`` is the token that admits the first key; it may be None
    if the key folder has a key. ``alg`` is the algorithm of new keys."""

    def __init__(
        self,
        keys: SigningKeys,
        trust: TrustStore,
        *,
        admission: JoinToken | PlatformToken | None,
        alg: str,
        schedule: RotationSchedule,
    ) -> None:
        self._keys = keys
        self._service = keys.service
        self._folder = keys.folder
        self._trust = trust
        self._admission = admission
        self._alg = alg
        self._schedule = schedule
        self._clock = keys.clock
        self._enrolment = Enrolment(keys.service, trust, keys.clock)
        self.missing: str | None = None
        """Why there is no ``admission``, such as a missing file: for the error of a service without keys."""
        self.admitted = ""
        """How the key of this process was obtained, as a phrase for the log."""

    def ensure_registered(self) -> None:
        """Have a key that the registry knows: the key in the folder, or a new one that ``admission`` admits.

        A key from the folder is used even if the registry cannot be reached. Raises EnrolmentRefused,
        ConfigurationError, DocumentRefused if the registry has another root key than the pinned one, or one of
        TRY_AGAIN, after which the same key can be registered again.
        """
        with self._folder.locked():
            self._keys.reload()
            self._encrypt()
            self._check_registry()
            self._compare_with_registry()
            if self._signing_key() is None:
                self._join()
            else:
                self.admitted = f"taken up from the key folder {self._folder.path}"

    def register_within(self, timeout: float) -> None:
        """As `ensure_registered`, with further attempts for ``timeout`` seconds, with growing pauses. Raises as
        `peerseal.Identity.start` does."""
        deadline = time.monotonic() + timeout
        refusal: DocumentRefused | None = None
        failures = 0
        while True:
            try:
                return self.ensure_registered()
            except TRY_AGAIN as error:
                failures += 1
                pause = _backoff(failures)
                refusal = refusal_in(error) or (refusal if isinstance(error, TrustUnavailable) else None)
                over = time.monotonic() + pause > deadline
                if refusal is not None and (over or refusal.of_another_registry):
                    raise refusal from error
                if over:
                    raise
                log.warning("no registered key yet; trying again in %.1f s: %s", pause, error)
                time.sleep(pause)

    def publish_next(self) -> StoredKey:
        """Register the next key now; it signs after the lead of the schedule. A next key that is already registered
        is returned as it is. Raises as `ensure_registered` does."""
        notice_fork()
        with self._folder.locked():
            self._keys.reload()
            return self._next_key() or self._publish_next()

    def is_due(self) -> bool:
        """Whether a key is to be published or retired now."""
        notice_fork()
        self._keys.reload()
        return self._next_is_due() or bool(self._superseded())

    def work(self) -> None:
        """Publish and retire what is due, unless another process does so now. Raises as `ensure_registered` does."""
        with self._folder.locked(wait=False) as locked:
            if not locked:
                return
            self._keys.reload()
            for key in self._superseded():
                self._retire(key)
            if self._next_is_due():
                self._publish_next()

    def take(self, pair: KeyPair) -> None:
        """Save ``pair`` as the key that `ensure_registered` registers. Does nothing if the folder has that key. Raises
        ConfigurationError if it has another one, and TrustUnavailable if the trust domain is not known."""
        notice_fork()
        with self._folder.locked():
            self._keys.reload()
            held = [key for key in self._keys.stored.keys if not key.refused]
            ours = next((key for key in held if key.thumbprint == pair.public.thumbprint), None)
            if ours is not None:
                if not ours.brought:  # an earlier release saved it
                    self._keys.save(self._keys.stored.having(replace(ours, brought=True)))
                return
            if held:
                raise ConfigurationError(f"{self._folder.path} has the key {held[-1].kid} already: rotate or retire it")
            self._save_candidate(pair, brought=True)

    def retire_all(self) -> tuple[str, ...]:
        """Retire all keys of the folder now, and delete them. Returns their kids. Raises FetchError if the registry
        does not answer, or refuses; the keys that are not retired stay."""
        notice_fork()
        with self._folder.locked():
            self._keys.reload()
            keys = self._keys.stored.keys
            for key in keys:  # a candidate, too: the registry may have admitted it, and its answer was lost
                self._enrolment.retire(key.thumbprint, key)
                self._keys.save(self._keys.stored.without(key.kid))
        return tuple(key.kid for key in keys)

    def leave(self, *, retire: bool) -> None:
        """Stop using the keys. With ``retire`` the last process to leave retires them, if the registry answers."""
        with self._folder.locked():
            if not self._folder.release():
                return
            if retire:
                self._keys.reload()
                self._retire_at_exit()
        self._folder.discard()

    # ---- steps, each with the folder locked

    def _signing_key(self) -> StoredKey | None:
        return self._keys.stored.signing(self._clock())

    def _next_key(self) -> StoredKey | None:
        """The newest key, if it is registered and another key signs in its lead. A first key is no next key."""
        newest = self._keys.stored.keys[-1] if self._keys.stored.keys else None
        if newest is None or newest.registered_at is None or newest == self._signing_key():
            return None
        return newest if newest.signs_from > self._clock() else None

    def _retire_at_exit(self) -> None:
        if self._keys.stored.keys:
            log.warning(
                "the last process of %s retires its keys: the next start needs a new join token, or a platform's"
                " token. PEERSEAL_KEY_DIR without PEERSEAL_RETIRE_AT_EXIT keeps keys across restarts",
                self._service,
            )
        try:
            for key in self._keys.stored.keys:
                self._retire(key)
        except PeersealError as error:
            log.warning("a key of %s stays registered until its end: %s", self._service, error)

    @traced("peerseal.register")
    def _join(self) -> StoredKey:
        candidate = self._candidate()
        try:
            with self._noting_refusal(candidate):
                statement = self._enrolment.join(candidate.pair, self._admission)
        except EnrolmentRefused as error:
            if self._admission is None and error.code == "missing_token":
                message = f"{self._service} has no key that is registered, and no join token or platform's token"
                remedy = self.missing or "set PEERSEAL_JOIN_TOKEN, or PEERSEAL_KEY_DIR to the folder with its key"
                raise ConfigurationError(f"{message}: {remedy}") from error
            raise
        self.admitted = f"registered {_by(self._admission)}"
        log.info("%s was %s", candidate.kid, self.admitted)
        return self._save_registered(candidate, statement, signs_from=self._clock())

    @traced("peerseal.rotate")
    def _publish_next(self) -> StoredKey:
        current = self._signing_key()
        if current is None:  # the host slept past the end of the last key
            return self._join()
        candidate = self._candidate()
        with self._noting_refusal(candidate):
            statement, way = self._rotated(candidate, current)
        published = self._save_registered(candidate, statement, signs_from=self._clock() + self._schedule.lead)
        log.info("%s was registered %s; it signs in %s s", published.kid, way, self._schedule.lead)
        return published

    def _rotated(self, candidate: StoredKey, current: StoredKey) -> tuple[KeyStatement, str]:
        """Register the candidate by its predecessor, or else by ``admission``; returns by which, as a phrase for the
        log. The cause of a second refusal is the first one."""
        try:
            return self._enrolment.rotate(candidate.pair, current), f"by its predecessor {current.kid}"
        except EnrolmentRefused as refusal:
            log.error("the registry does not let %s vouch for its next key: %s", current.kid, refusal)
            self._compare_with_registry()  # removes a key that was revoked
            if self._admission is None:
                raise
            try:
                return self._enrolment.join(candidate.pair, self._admission), _by(self._admission)
            except (EnrolmentRefused, ConfigurationError) as error:
                raise error from refusal

    def _candidate(self) -> StoredKey:
        """The key to register. It is saved before: if this process is killed, the next one registers it."""
        for key in self._keys.stored.keys:
            if key.is_candidate:
                return key
        return self._save_candidate(KeyPair.generate(self._alg))

    def _save_candidate(self, pair: KeyPair, *, brought: bool = False) -> StoredKey:
        """Save the pair as the one candidate, in place of one that was refused."""
        domain, stored = self._check_domain(), self._keys.stored
        kid = make_kid(service_id(domain, self._service), pair.public.thumbprint)
        candidate = StoredKey(kid, pair, brought=brought)
        pin = self._admission.pin if isinstance(self._admission, JoinToken) else stored.pin
        kept = tuple(key for key in stored.keys if not key.refused)
        self._keys.save(replace(stored, domain=domain, pin=pin, keys=kept).having(candidate))
        return candidate

    @contextmanager
    def _noting_refusal(self, candidate: StoredKey) -> Iterator[None]:
        """Mark the candidate if its registration, in the block, is refused for the key itself. A call without an answer
        marks nothing: it may have registered the key. A key that was admitted once is not marked: only a signed
        statement ends it."""
        try:
            yield
        except (EnrolmentRefused, ConfigurationError) as error:
            refusals = [one for one in (error, error.__cause__) if isinstance(one, EnrolmentRefused)]
            admitted_once = candidate.expires_at > self._clock()  # both answers that say otherwise are unsigned
            if any(one.code in ANOTHER_KEY_HELPS for one in refusals) and not admitted_once:
                self._refuse(candidate)
            raise

    def _refuse(self, candidate: StoredKey) -> None:
        """Mark a candidate that is not admitted, so that the next attempt makes another key."""
        held = next((key for key in self._keys.stored.keys if key.kid == candidate.kid), candidate)
        if held.brought:
            log.error("%s was made elsewhere, and is not replaced", held.kid)
        elif held.registered_at is None:  # else a statement has just said that it is active
            log.error("%s is not admitted; the next attempt makes another key", held.kid)
            self._keys.save(self._keys.stored.having(replace(held, refused=True)))

    def _save_registered(self, key: StoredKey, statement: KeyStatement, *, signs_from: float) -> StoredKey:
        end = float(statement.active_until)
        registered = replace(key, registered_at=self._clock(), signs_from=signs_from, expires_at=end, refused=False)
        self._keys.save(self._keys.stored.having(registered))
        return registered

    def _retire(self, key: StoredKey) -> None:
        if key.registered_at is not None:
            self._enrolment.retire(key.thumbprint, key)
            log.info("retired %s", key.kid)
        self._keys.save(self._keys.stored.without(key.kid))

    def _compare_with_registry(self) -> None:
        """Ask the registry for the state of each key: delete keys that were revoked or retired, mark such a candidate,
        and keep a candidate whose registration succeeded before its process was killed. Only a signed answer deletes a
        key: one that the registry does not know becomes a candidate again."""
        for key in self._keys.stored.keys:
            try:
                self._check_domain()
                statement = self._enrolment.statement(key)
            except (*UNREACHABLE, DocumentRefused) as error:
                log.warning("cannot ask the registry about %s; the key stays in use: %s", key.kid, error)
                return
            if statement is None:
                if key.registered_at is not None:
                    log.error("%s is unknown to the registry; it is registered again", key.kid)
                    self._keys.save(self._keys.stored.having(replace(key, registered_at=None)))
            elif statement.state != ACTIVE and key.registered_at is None:
                log.error("%s is %s at the registry, and no candidate", key.kid, statement.state)
                self._refuse(key)
            elif statement.state != ACTIVE:
                log.error("%s is %s at the registry; it is deleted here", key.kid, statement.state)
                self._keys.save(self._keys.stored.without(key.kid))
            elif key.registered_at is None:
                self._save_registered(key, statement, signs_from=statement.active_from + self._schedule.lead)

    def _encrypt(self) -> None:
        """Encrypt keys that were saved before a passphrase was set: the next rotation may be a day away."""
        if self._folder.lies_open:
            self._keys.save(self._keys.stored)
            log.info("encrypted the private keys in %s", self._folder.path)

    def _check_registry(self) -> None:
        """Raises DocumentRefused or ConfigurationError for another registry than the expected one, and TrustUnavailable
        if the registry does not answer and no key of the folder can be used."""
        try:
            self._check_domain()
        except TrustUnavailable as error:
            refusal = refusal_in(error)
            if refusal is not None and refusal.of_another_registry:
                raise refusal from error
            if self._signing_key() is None:
                raise

    def _check_domain(self) -> str:
        domain, kept = self._trust.domain, self._keys.stored.domain
        if kept not in (None, domain):
            raise ConfigurationError(f"{self._folder.path} holds keys of the trust domain {kept}, not of {domain}")
        return domain

    # ---- what is due

    def _next_is_due(self) -> bool:
        if not self._keys.stored.keys:
            return False
        newest = self._keys.stored.keys[-1]
        if newest.registered_at is None:
            return True
        half_life = (newest.expires_at - newest.registered_at) / 2  # a registry may end keys before the schedule does
        return newest.registered_at + min(self._schedule.every, half_life) <= self._clock()

    def _superseded(self) -> list[StoredKey]:
        """Keys whose successor has been signing for the length of the overlap."""
        registered = [key for key in self._keys.stored.keys if key.registered_at is not None]
        horizon = self._clock() - self._schedule.overlap
        return [old for old, new in pairwise(registered) if new.signs_from <= horizon]


class RotationThread:
    """The background thread of one process: calls ``publish_counts`` and `KeyRotation.work` at regular intervals."""

    def __init__(
        self, service: str, rotation: KeyRotation, schedule: RotationSchedule, publish_counts: Callable[[], None]
    ) -> None:
        self._service = service
        self._rotation = rotation
        self._publish_counts = publish_counts
        self._interval = min(max(schedule.every / 20, 0.1), 10.0, max(schedule.lead / 2, 0.1))
        self._working = BackgroundWork()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread; a forked child starts its own. A master of uWSGI has none."""
        self._stopping = threading.Event()
        if left_to_workers():
            return
        self._thread = threading.Thread(target=self._run, name="peerseal-rotate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the rotation under way, which would otherwise find its keys deleted."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        stopping, failures, pause = self._stopping, 0, self._interval
        while not stopping.wait(pause):
            pause = self._interval
            try:
                with self._working:
                    self._publish_counts()
                    if self._rotation.is_due():
                        self._rotation.work()
                failures = 0
            except PeersealError as error:
                failures += 1
                pause = max(self._interval, _backoff(failures))
                log.warning("the keys of %s are not rotated: %s", self._service, error)
            except Exception:  # without this thread the keys would expire a week later
                pause = _LONGEST_PAUSE
                log.exception("the keys of %s are not rotated", self._service)


def _backoff(failures: int) -> float:
    return backoff(failures, first=0.2, longest=_LONGEST_PAUSE)


def _by(admission: JoinToken | PlatformToken | None) -> str:
    """How a first key was admitted. The id of a join token is no secret."""
    match admission:
        case JoinToken():
            return f"by join token {admission.id}"
        case PlatformToken():
            return "by a platform's token"
        case None:
            return "with no token"
