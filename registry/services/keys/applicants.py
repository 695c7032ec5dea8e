"""Applicants: keys without a right to their service's name, which wait for an operator (docs/protocol.md).

Off unless `registry.settings.Settings.applicants` is set. Everyone may apply, so the number of applicants is bounded.
"""

import logging
from collections.abc import Mapping

from sqlalchemy import Connection

from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.tokens.proof import Proof
from registry.domain.admission import Approved, already_registered
from registry.domain.errors import NotFound, TooManyApplicants
from registry.domain.key_quality import check_quality
from registry.domain.keys import Applicant, KeyState
from registry.services.keys.admit import Admitted, KeyAdmission
from registry.services.use_case import Json, Node, UseCase
from registry.storage.queries import applicants, keys

log = logging.getLogger(__name__)


class Applicants(UseCase):
    """Stores applicants, lists them, and admits those that an operator approves. `registry.services.keys.end_keys`
    rejects them."""

    def __init__(self, node: Node, admission: KeyAdmission) -> None:
        super().__init__(node)
        self._admission = admission

    def apply(self, service: str, unverified_proof: str) -> Applicant | Admitted:
        """Stores the key of the proof as an applicant. A key that is already registered for the service is returned as
        `KeyAdmission.admit` returns it. A repeated call changes nothing.

        Raises as `KeyAdmission.admit` does, and TooManyApplicants.
        """
        now, (owner, proof) = self._now(), self._admission.prove(service, unverified_proof)
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
            raise TooManyApplicants(f"{of_all} applicants wait, {self._limits.applicants_kept} may")
        if of_service >= self._limits.applicants_of_service:
            raise TooManyApplicants(
                f"{of_service} applicants wait for {service}, {self._limits.applicants_of_service} may"
            )

    def approve(self, service: str, thumbprint: str, by: Mapping[str, str]) -> Admitted:
        """Admits an applicant in the operator's name. A key that was approved before is left as it is.

        Raises NotFound, KeyTaken, or KeyRefused.
        """
        now = self._now()
        with self._store.look() as connection:
            waiting = applicants.find(connection, service, thumbprint, now)
            known = keys.find(connection, thumbprint)
        if known is not None and known.service == service:
            return Admitted(already_registered(known, service, now))
        if waiting is None:
            raise NotFound("applicant_not_found")
        return self._admission.admit(service, waiting.proof, Approved(by, thumbprint), proven_at=waiting.created_at)

    def page(self, after: str = "", limit: int | None = None) -> Json:
        """``{"applicants": [{"kid", "service", "state", "alg", "jwk", "created_at", "expires_at"}], "next"}``: those
        that wait, by thumbprint, after the thumbprint ``after``."""

        def read(connection: Connection, size: int) -> list[tuple[object, Json]]:
            page = applicants.page(connection, after, size, self._now())
            return [(applicant.thumbprint, self._members(applicant)) for applicant in page]

        return self._page("applicants", limit, read)

    def answer(self, applicant: Applicant) -> Json:
        """``{"kid", "state", "expires_at"}``: the answer to an application."""
        kid = make_kid(service_id(self._authority.current().domain, applicant.service), applicant.thumbprint)
        return {"kid": kid, "state": KeyState.PENDING.value, "expires_at": applicant.expires_at}

    def _members(self, applicant: Applicant) -> Json:
        public = self._admission.prove(applicant.service, applicant.proof, applicant.created_at)[1].public_key
        times = {"created_at": applicant.created_at, "expires_at": applicant.expires_at}
        members = {"service": applicant.service, "alg": public.alg, "jwk": dict(public.jwk)}
        return {**self.answer(applicant), **members, **times}
