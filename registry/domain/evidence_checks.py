"""Checks the evidence of single entries: the signatures that a ledger rests on.

Each check has all that it needs, and depends on no other. They take most of the time of a replay, and can be made at
once in several processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from peerseal.errors import PeersealError
from peerseal.protocol.ledger.evidence import PROOF, TOKEN, VOUCH, past_proof, past_request, read_evidence, vouches_for
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.protocol.tokens.proof import PROOF_LIFETIME
from peerseal.protocol.tokens.request import REQUEST_LIFETIME_CAP
from registry.domain.differences import Difference
from registry.domain.keys import parsed_key

WRITTEN_WITHIN: Final = 60
"""The most seconds between a token's acceptance and its entry, which may wait for locks."""


class BadGrounds(ValueError):
    """The grounds of an entry are false. ``column`` names the part."""

    def __init__(self, column: str, says: object, should_say: str) -> None:
        super().__init__(column, says, should_say)
        self.column, self.says, self.should_say = column, says, should_say


UNCHECKABLE: Final = (PeersealError, KeyError, TypeError, ValueError)
"""Errors of a check, BadGrounds among them."""


def fault(seq: int, error: Exception) -> Difference:
    """The difference that an error of a check of that entry stands for."""
    if isinstance(error, BadGrounds):
        return Difference.of("entries", seq, error.column, error.says, error.should_say)
    return Difference.of("entries", seq, "body", f"{type(error).__name__}: {error}", "what can be checked")


class TokenSigner(NamedTuple):
    """The key that signed a request token: its kid, and its public key as DER."""

    kid: str
    spki: bytes


class Checked(NamedTuple):
    """What was found in the evidence of an entry: its number, the fault, and whether its voucher is for a body in
    another spelling than the canonical one."""

    seq: int
    difference: Difference | None = None
    unbound: bool = False


@dataclass(frozen=True, slots=True)
class EvidenceCheck:
    """The evidence of one entry. ``registry`` is the registry's service id, ``time`` the entry's."""

    seq: int
    time: int
    registry: str
    evidence: bytes = field(repr=False)

    def checked(self) -> Checked:
        """The result. It raises no error: what cannot be checked is a difference."""
        try:
            return Checked(self.seq, None, self._is_unbound())
        except UNCHECKABLE as error:
            return Checked(self.seq, fault(self.seq, error))

    def _is_unbound(self) -> bool:
        """Checks the evidence. Raises the errors of `UNCHECKABLE`."""
        raise NotImplementedError

    def _spent(self, token: str, signer: TokenSigner, method: str) -> Mapping[str, Any]:
        """The claims of a request token that the signer sent to the registry shortly before the entry."""
        key = parsed_key(signer.spki)
        claims = past_request(token, key=key, kid=signer.kid, registry=self.registry, method=method)
        _check_time(claims["iat"], self.time, REQUEST_LIFETIME_CAP)
        return claims


@dataclass(frozen=True, slots=True)
class AdmissionCheck(EvidenceCheck):
    """The key ``kid``, which the entry admits as ``jwk`` and ``alg``, proves itself. Where there is a ``voucher``, it
    vouches for the key. ``waited``: the proof is that of an applicant, and may be old."""

    kid: str
    jwk: Mapping[str, Any]
    alg: str
    waited: bool
    voucher: TokenSigner | None

    def _is_unbound(self) -> bool:
        members = read_evidence(self.evidence)
        proof = past_proof(members[PROOF], kid=self.kid, registry=self.registry)
        if dict(proof.public_key.jwk) != self.jwk or proof.public_key.alg != self.alg:
            raise BadGrounds("evidence", proof.public_key.jwk, "a proof by the key that the entry admits")
        _check_time(proof.issued_at, self.time, None if self.waited else PROOF_LIFETIME)
        if (self.voucher is not None) != (VOUCH in members):
            raise BadGrounds("evidence", sorted(members), "a voucher where, and only where, a key vouches")
        if self.voucher is None:
            return False
        return not vouches_for(self._spent(members[VOUCH], self.voucher, "POST"), members[PROOF])


@dataclass(frozen=True, slots=True)
class EndingCheck(EvidenceCheck):
    """The ``signer`` ended itself by a call to the registry."""

    signer: TokenSigner

    def _is_unbound(self) -> bool:
        self._spent(read_evidence(self.evidence)[TOKEN], self.signer, "DELETE")
        return False


def checked_all(checks: Sequence[EvidenceCheck]) -> list[Checked]:
    """The results that name a fault or an unbound voucher, in the order of the checks."""
    return [found for found in (check.checked() for check in checks) if found.difference is not None or found.unbound]


def _check_time(made_at: int, entered_at: int, lives: int | None) -> None:
    """``lives`` is the lifetime of such a token in seconds; None for one that may have waited."""
    late = lives is not None and entered_at > made_at + lives + LEEWAY + WRITTEN_WITHIN
    if late or made_at > entered_at + LEEWAY:
        raise BadGrounds("evidence", f"made at {made_at}", f"made shortly before {entered_at}")
