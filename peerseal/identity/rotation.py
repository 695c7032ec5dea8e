"""Keeps a service's keys: the first one registered, each replaced in time, old ones retired.

The state lies in the key folder, so that all workers of a host sign with one key and one of them at a time looks after
it. A key's life here: candidate (generated and saved) → registered → signing after its lead → superseded when the next
one signs → retired after the overlap, its private half destroyed. Every step is saved before the next, and the
registry takes the same key twice without complaint, so a process may die anywhere in between.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from peerseal.errors import ConfigurationError, DocumentRefused, EnrolmentRefused, PeersealError, TrustUnavailable
from peerseal.identity.enrolment import (
    TRY_AGAIN,
    UNREACHABLE,
    Enrolment,
    PlatformToken,
    SignsRequests,
    pauses,
    refusal_behind,
)
from peerseal.identity.key_folder import HeldKey, HeldKeys, KeyFolder
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id, split_kid, split_service_id
from peerseal.runtime.forks import notice_fork
from peerseal.runtime.limits import RotationSchedule
from peerseal.trust.store import TrustStore

log = logging.getLogger("peerseal.identity")

LOOK_EVERY = 1.0
"""Seconds between two looks at whether another process has changed the folder."""


class KeyKeeper:
    """Looks after the keys of one service on one host. ``vouch(held)`` gives the function that signs a call to the
    registry with that key; ``newcomer`` is what admits a first key, and may be None once one is in the folder."""

    def __init__(
        self,
        service: str,
        folder: KeyFolder,
        trust: TrustStore,
        *,
        newcomer: JoinToken | PlatformToken | None,
        alg: str,
        schedule: RotationSchedule,
        vouch: Callable[[HeldKey], SignsRequests],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._folder = folder
        self._trust = trust
        self._newcomer = newcomer
        self.absent: str | None = None
        """What should have admitted a first key and is not there, for the error of a newcomer that has nothing."""
        self.admitted = ""
        """By what this process has its key, as a phrase, once it has one."""
        self._alg = alg
        self._schedule = schedule
        self._vouch = vouch
        self._clock = clock
        self._enrolment = Enrolment(service, trust, clock)
        self._held = HeldKeys()
        self._stamp: tuple[int, int] | None = None
        self._looked_at = 0.0

    @property
    def domain(self) -> str:
        """The trust domain: as the folder says, so that a start needs no registry, else as the registry does."""
        return self._held.domain or self._trust.domain

    def signing_key(self) -> HeldKey:
        """The key to sign with now. Raises TrustUnavailable where there is none yet, or none any more."""
        notice_fork()
        now = self._clock()
        if now - self._looked_at > LOOK_EVERY or now < self._looked_at:
            self._look_if_possible()
        key = self._held.signing(now)
        if key is None:
            raise TrustUnavailable("this service has no registered key; was it started?")
        return key

    def _look_if_possible(self) -> None:
        """Signing goes on with the keys in memory, whatever is wrong with the folder."""
        try:
            self.look()
        except (OSError, PeersealError):
            log.exception("%s cannot be read; going on with the keys in memory", self._folder)

    def look(self) -> None:
        """Take over what another process has saved. Lock-free: files are replaced in one step."""
        self._looked_at = self._clock()
        stamp = self._folder.stamp()
        if stamp is None and self._held.keys:
            log.error("%s was emptied; going on with the keys in memory", self._folder.path)
        elif stamp != self._stamp:
            self._held, self._stamp = self._checked(self._folder.load()), stamp

    def _checked(self, held: HeldKeys) -> HeldKeys:
        """Keys of this service: its folder may have been swapped for another service's of the same user."""
        for key in held.keys:
            if split_service_id(split_kid(key.kid)[0])[1] != self._service:
                raise ConfigurationError(f"{self._folder.path} holds {key.kid}, which is no key of {self._service}")
        return held

    def ensure_registered(self) -> None:
        """Have a key that the registry knows: the folder's, or a new one by join token or platform token.

        A key from the folder serves even while the registry cannot be asked. Raises EnrolmentRefused,
        ConfigurationError, DocumentRefused for another registry than the one that is meant, or one of TRY_AGAIN, after
        which the same key is registered again.
        """
        with self._folder.locked():
            self.look()
            self._encrypt()
            self._check_registry()
            self._compare_with_registry()
            if self._held.signing(self._clock()) is None:
                self._join()
            else:
                self.admitted = f"taken up from the key folder {self._folder.path}"

    def register_within(self, timeout: float) -> None:
        """As `ensure_registered`. What may pass is tried again for ``timeout`` seconds, with growing pauses. Raises as
        `peerseal.Identity.start` does."""
        deadline = time.monotonic() + timeout
        refusal: DocumentRefused | None = None
        for pause in pauses():
            try:
                return self.ensure_registered()
            except TRY_AGAIN as error:
                refusal = refusal_behind(error) or (refusal if isinstance(error, TrustUnavailable) else None)
                over = time.monotonic() + pause > deadline
                if refusal is not None and (over or refusal.of_another_registry):
                    raise refusal from error
                if over:
                    raise
                log.warning("no registered key yet; trying again in %.1f s: %s", pause, error)
                time.sleep(pause)
        raise AssertionError("unreachable: the pauses never end")

    def publish_next(self) -> HeldKey:
        """Register the next key now, vouched for by the current one; it signs after its lead time. Where a next key
        is on its way already, that one is given. Raises as `ensure_registered` does."""
        notice_fork()
        with self._folder.locked():
            self.look()
            newest = self._held.keys[-1] if self._held.keys else None
            if newest is not None and newest.registered_at is not None and newest.signs_from > self._clock():
                return newest
            return self._publish_next()

    def is_due(self) -> bool:
        """Whether there is anything to do now: a key to publish, or to retire."""
        notice_fork()
        self.look()
        return self._next_is_due() or bool(self._superseded())

    def work(self) -> None:
        """Do what is due, unless another process is at it. Raises as `ensure_registered` does."""
        with self._folder.locked(wait=False) as ours:
            if not ours:
                return
            self.look()
            for key in self._superseded():
                self._retire(key)
            if self._next_is_due():
                self._publish_next()

    def leave(self, *, retire: bool) -> None:
        """Give the keys up; the last process to do so retires them, as far as the registry can be reached."""
        with self._folder.locked():
            if not self._folder.release():
                return
            if retire:
                self.look()
                self._retire_all()
        self._folder.discard()

    # ---- steps, each with the folder locked

    def _retire_all(self) -> None:
        if self._held.keys:
            log.warning(
                "the last process of %s retires its keys: the next start needs a new join token, or a platform's"
                " token. PEERSEAL_KEY_DIR without PEERSEAL_RETIRE_AT_EXIT keeps keys across restarts",
                self._service,
            )
        try:
            for key in self._held.keys:
                self._retire(key)
        except PeersealError as error:
            log.warning("a key of %s stays registered until its end: %s", self._service, error)

    def _join(self) -> HeldKey:
        candidate = self._candidate()
        try:
            statement = self._enrolment.join(candidate.pair, self._newcomer)
        except EnrolmentRefused as error:
            if self._newcomer is None and error.code == "missing_token":
                message = f"{self._service} has no key that is registered, and no join token or platform's token"
                raise ConfigurationError(f"{message}: {self.absent}" if self.absent else message) from error
            raise
        self.admitted = f"registered {_by(self._newcomer)}"
        log.info("%s was %s", candidate.kid, self.admitted)
        return self._save_registered(candidate, statement, signs_from=self._clock())

    def _publish_next(self) -> HeldKey:
        current = self._held.signing(self._clock())
        if current is None:  # slept past its end: there is nobody left to vouch
            return self._join()
        candidate, way = self._candidate(), f"by its predecessor {current.kid}"
        try:
            statement = self._enrolment.rotate(candidate.pair, self._vouch(current))
        except EnrolmentRefused as error:
            log.error("the registry does not let %s vouch for its next key: %s", current.kid, error)
            self._compare_with_registry()  # a key that was revoked signs nothing more
            if self._newcomer is None:
                raise
            statement, way = self._enrolment.join(candidate.pair, self._newcomer), _by(self._newcomer)
        published = self._save_registered(candidate, statement, signs_from=self._clock() + self._schedule.lead)
        log.info("%s was registered %s; it signs in %s s", published.kid, way, self._schedule.lead)
        return published

    def _candidate(self) -> HeldKey:
        """The key being registered: saved first, so that a process that dies in the middle leaves it to the next."""
        for key in self._held.keys:
            if key.registered_at is None:
                return key
        domain = self._check_domain()
        pair = KeyPair.generate(self._alg)
        candidate = HeldKey(make_kid(service_id(domain, self._service), pair.public.thumbprint), pair)
        pin = self._newcomer.pin if isinstance(self._newcomer, JoinToken) else self._held.pin
        self._save(replace(self._held, domain=domain, pin=pin).having(candidate))
        return candidate

    def _save_registered(self, key: HeldKey, statement: KeyStatement, *, signs_from: float) -> HeldKey:
        end = float(statement.active_until)
        registered = replace(key, registered_at=self._clock(), signs_from=signs_from, expires_at=end)
        self._save(self._held.having(registered))
        return registered

    def _retire(self, key: HeldKey) -> None:
        if key.registered_at is not None:
            self._enrolment.retire(key, self._vouch(key))
            log.info("retired %s", key.kid)
        self._save(self._held.without(key.kid))

    def _compare_with_registry(self) -> None:
        """Learn what became of the keys: forget those that were revoked or retired, take up one whose registration
        nobody here lived to see. Only a signed answer destroys a key: one that is unknown to whoever answered becomes
        a candidate again."""
        for key in self._held.keys:
            try:
                self._check_domain()
                statement = self._enrolment.statement(key)
            except (*UNREACHABLE, DocumentRefused) as error:
                log.warning("cannot ask the registry about %s, and go on with it: %s", key.kid, error)
                return
            if statement is None:
                if key.registered_at is not None:
                    log.error("%s is unknown to the registry", key.kid)
                    self._save(self._held.having(replace(key, registered_at=None)))
            elif statement.state != ACTIVE:
                log.error("%s is no longer good: %s", key.kid, statement.state)
                self._save(self._held.without(key.kid))
            elif key.registered_at is None:
                self._save_registered(key, statement, signs_from=statement.active_from + self._schedule.lead)

    def _encrypt(self) -> None:
        """Keys that were saved before there was a passphrase, at once: the next rotation may be a day away."""
        if self._folder.lies_open:
            self._save(self._held)
            log.info("encrypted the private keys in %s", self._folder.path)

    def _check_registry(self) -> None:
        """Passes the registry that is meant; and one that cannot be asked now, where there is a key that can go on.
        Raises DocumentRefused, ConfigurationError or TrustUnavailable."""
        try:
            self._check_domain()
        except TrustUnavailable as error:
            refusal = refusal_behind(error)
            if refusal is not None and refusal.of_another_registry:
                raise refusal from error
            if self._held.signing(self._clock()) is None:
                raise

    def _check_domain(self) -> str:
        domain = self._trust.domain
        if self._held.domain not in (None, domain):
            raise ConfigurationError(f"{self._folder.path} holds keys of the trust domain {self._held.domain}")
        return domain

    def _save(self, held: HeldKeys) -> None:
        self._folder.save(held)
        self._held, self._stamp = held, self._folder.stamp()

    # ---- what is due

    def _next_is_due(self) -> bool:
        if not self._held.keys:
            return False
        newest = self._held.keys[-1]
        if newest.registered_at is None:
            return True
        half_life = (newest.expires_at - newest.registered_at) / 2  # a registry may give keys less time than we plan
        return newest.registered_at + min(self._schedule.every, half_life) <= self._clock()

    def _superseded(self) -> list[HeldKey]:
        """Keys whose successor has been signing for the length of the overlap."""
        registered = [key for key in self._held.keys if key.registered_at is not None]
        horizon = self._clock() - self._schedule.overlap
        return [old for old, new in pairwise(registered) if new.signs_from <= horizon]


def _by(newcomer: JoinToken | PlatformToken | None) -> str:
    """What let a first key in; of a join token its id, which is no secret."""
    match newcomer:
        case JoinToken():
            return f"by join token {newcomer.id}"
        case PlatformToken():
            return "by a platform's token"
        case None:
            return "with no token"
