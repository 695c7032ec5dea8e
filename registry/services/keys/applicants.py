"""Applicants: newcomers with no right to their name, who wait for an operator (docs/protocol.md).

Off unless `registry.settings.Settings.applicants` is set: anybody may apply, so what they may fill is capped.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.tokens.request import Proof
from registry.domain.admission import Approved, already_registered
from registry.domain.errors import NotFound, TooManyApplicants
from registry.domain.key_quality import check_quality
from registry.domain.keys import Applicant, KeyState
from registry.services.authority.authority import AuthoritySource
from registry.services.keys.admit import Admitted, KeyAdmission
from registry.settings import Limits
from registry.storage.queries import applicants, keys
from registry.storage.unit import Store

log = logging.getLogger(__name__)


class Applicants:
    """Takes applications down, shows them, and lets those in that an operator approves. They are rejected like keys
    are ended (`registry.services.keys.end_keys`)."""

    def __init__(
        self,
        store: Store,
        authority: AuthoritySource,
        admission: KeyAdmission,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._authority = authority
        self._admission = admission
        self._limits = limits
        self._clock = clock

    def apply(self, service: str, unverified_proof: str) -> Applicant | Admitted:
        """The key that the proof is made with, waiting; or, where it is registered for the service already, as
        `KeyAdmission.admit` answers. Asking again changes nothing: no longer wait, no second place.

        Raises as `KeyAdmission.admit` does, and TooManyApplicants.
        """
        now, (owner, proof) = int(self._clock()), self._admission.prove(service, unverified_proof)
        thumbprint = proof.public_key.thumbprint
        with self._store.look() as connection:
            known = keys.find(connection, thumbprint)
            waiting = applicants.find(connection, service, thumbprint, now)
            if known is None and waiting is None:
                self._check_room(connection, service, now)
        if known is not None:
            return Admitted(already_registered(known, service, self._clock()))
        if waiting is not None:
            return waiting
        check_quality(proof.public_key)
        return self._add(Applicant(thumbprint, service, proof.jws, now, now + self._limits.applicant_ttl), owner, proof)

    def _add(self, applicant: Applicant, owner: str, proof: Proof) -> Applicant:
        now, service = applicant.created_at, applicant.service
        with self._store.write(applicants.LOCK) as connection:
            waiting = applicants.find(connection, service, applicant.thumbprint, now)
            if waiting is not None:
                return waiting
            applicants.remove_past(connection, now)
            self._check_room(connection, service, now)
            applicants.add(connection, applicant)
        log.info("applicant waits kid=%s", make_kid(owner, proof.public_key.thumbprint))
        return applicant

    def _check_room(self, connection: Connection, service: str, now: int) -> None:
        of_all, of_service = applicants.counts(connection, service, now)
        if of_all >= self._limits.applicants_kept:
            raise TooManyApplicants(f"{of_all} applicants wait")
        if of_service >= self._limits.applicants_of_service:
            raise TooManyApplicants(f"{of_service} applicants wait for {service}")

    def approve(self, service: str, thumbprint: str, by: Mapping[str, str]) -> Admitted:
        """Admits an applicant in the operator's name. One that was approved before is left as it is.

        Raises NotFound, KeyTaken, or KeyRefused.
        """
        now = int(self._clock())
        with self._store.look() as connection:
            waiting = applicants.find(connection, service, thumbprint, now)
            known = keys.find(connection, thumbprint)
        if known is not None and known.service == service:
            return Admitted(already_registered(known, service, now))
        if waiting is None:
            raise NotFound("applicant_not_found")
        return self._admission.admit(service, waiting.proof, Approved(by, thumbprint), proven_at=waiting.created_at)

    def page(self, after: str = "", limit: int | None = None) -> dict[str, Any]:
        """``{"applicants": [{"kid", "service", "state", "alg", "jwk", "created_at", "expires_at"}], "next"}``: those
        that wait, by thumbprint behind ``after``."""
        size = min(limit or self._limits.page, self._limits.page)
        with self._store.read() as connection:
            page = applicants.page(connection, after, size, int(self._clock()))
        following = page[-1].thumbprint if len(page) == size else None
        return {"applicants": [self._members(applicant) for applicant in page], "next": following}

    def answer(self, applicant: Applicant) -> dict[str, Any]:
        """``{"kid", "state", "expires_at"}``: what an applicant is told."""
        kid = make_kid(service_id(self._authority.current().domain, applicant.service), applicant.thumbprint)
        return {"kid": kid, "state": KeyState.PENDING.value, "expires_at": applicant.expires_at}

    def _members(self, applicant: Applicant) -> dict[str, Any]:
        public = self._admission.prove(applicant.service, applicant.proof, applicant.created_at)[1].public_key
        times = {"created_at": applicant.created_at, "expires_at": applicant.expires_at}
        shown = {"service": applicant.service, "alg": public.alg, "jwk": dict(public.jwk)}
        return {**self.answer(applicant), **shown, **times}
