"""Checks the grounds of each entry against the state before it: voucher, join token, operator, and what goes with it.

The signatures in an entry's evidence need no state. They are handed on, since they take most of the time
(`registry.domain.evidence_checks`).

A registry that invents an admission must write a proof that verifies, and a voucher's signature that it cannot make, or
name a join token or an operator, which its owner sees.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final

from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.documents.history_statement import read_history
from peerseal.protocol.documents.key_set import LONGEST_LIFE
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.ledger import entries
from peerseal.protocol.ledger.entries import Entry, evidence_digest
from peerseal.protocol.names import make_kid, registry_id, service_id, split_kid
from registry.domain.differences import Difference
from registry.domain.evidence_checks import (
    UNCHECKABLE,
    AdmissionCheck,
    BadGrounds,
    EndingCheck,
    EvidenceCheck,
    TokenSigner,
    fault,
)
from registry.domain.keys import KeyRecord, KeyState
from registry.domain.rebuild import PublicState

_READ_ONLY: Final = "viewer"
"""The role of operators who may change nothing."""
_ADMIN: Final = "admin"
_OF_ADMINS: Final = (
    entries.DOMAIN_SET,
    entries.FEDERATION_SET,
    entries.OPERATOR_CREATED,
    entries.OPERATOR_REVOKED,
)
"""What admins alone may do."""
_SHAPES: Final = frozenset(
    map(
        frozenset[str],
        (("join_token",), ("kid",), ("oidc", "subject"), ("dev",), ("operator",), ("self",), ("local",)),
    )
)
"""The members of ``by``: one ground for each entry."""


class Grounds:
    """Checks entry after entry. ``domain`` and ``root`` come from the first entry; ``documents`` are the root-signed
    ones, by version. ``unproven`` counts the entries whose evidence was lost, as a later entry records. Each check of
    evidence is handed to ``prove``, which makes it now or later."""

    def __init__(self, prove: Callable[[EvidenceCheck], object]) -> None:
        self._prove = prove
        self.domain: str | None = None
        self.root: str | None = None
        self.documents: dict[int, RegistryKeys] = {}
        self.unproven = 0
        self._missing = array("Q")  # entries without their evidence, in order: after a restore all of them
        self._vouched: dict[str, list[str]] = {}
        self._families: dict[str, Mapping[str, None]] = {}
        self._falling: tuple[Entry, str] | None = None

    def check(self, entry: Entry, evidence: bytes | None, state: PublicState) -> Iterator[Difference]:
        """The faults in the grounds of an entry; ``state`` is the state before it."""
        yield from self._after_cascade(entry, state)
        evidence = yield from self._committed(entry, evidence)
        try:
            _check_shape(entry)
            _RULES[entry.type](self, entry, evidence, state)
        except UNCHECKABLE as error:
            yield fault(entry.seq, error)

    def end(self, state: PublicState) -> Iterator[Difference]:
        """After the last entry."""
        yield from self._after_cascade(None, state)
        for seq in self._missing:
            yield Difference.of("entries", seq, "evidence", None, "the bytes whose digest the entry has")

    def _committed(self, entry: Entry, evidence: bytes | None) -> Generator[Difference, None, bytes | None]:
        """The evidence if its digest is the one in the entry; None otherwise, which is reported. Missing evidence is
        reported at the end, since a later entry may record its loss. All other checks go on without it."""
        if (None if evidence is None else evidence_digest(evidence)) == entry.evidence:
            return evidence
        if evidence is None:
            self._missing.append(entry.seq)
        else:
            expected = f"bytes with the digest {entry.evidence}"
            yield Difference.of("entries", entry.seq, "evidence", evidence, expected)
        return None

    # ---- by type

    def _document(self, entry: Entry, _: bytes | None, state: PublicState) -> None:
        document = read_registry_keys(entry.data["document"], pin=self.root, now=entry.time)
        first = entry.type == entries.REGISTRY_CREATED
        if first != (entry.seq == 1):
            raise BadGrounds("type", entry.type, "registry_created in the first entry, and nowhere else")
        said = {"version": document.version, "root": document.root.thumbprint, "domain": document.subject}
        if {name: entry.data[name] for name in said} != said:
            raise BadGrounds("body", entry.data, f"what the root-signed document says: {said}")
        if self.documents and document.version != max(self.documents) + 1:
            raise BadGrounds("body", document.version, f"version {max(self.documents) + 1}")
        if self.domain not in (None, document.subject):
            raise BadGrounds("body", document.subject, f"the domain {self.domain}")
        self.domain, self.root = document.subject, document.root.thumbprint
        self.documents[document.version] = document
        self._operator(entry, None, state)

    def _history(self, entry: Entry, _: bytes | None, state: PublicState) -> None:
        root = self.documents[max(self.documents)].root
        read_history(entry.data["statement"], root, domain=self._domain(), now=entry.time)
        self._operator(entry, None, state)

    def _federation(self, entry: Entry, _: bytes | None, state: PublicState) -> None:
        federation = Federation.from_json(entry.data["federation"], self._domain())
        if entry.data != {"federation": federation.to_json()}:
            raise BadGrounds("body", dict(entry.data), "a federation in its one spelling")
        self._operator(entry, None, state)

    def _admitted(self, entry: Entry, evidence: bytes | None, state: PublicState) -> None:
        data, kid, service = entry.data, entry.kid or "", entry.service or ""
        owner, thumbprint = split_kid(kid)
        if owner != service_id(self._domain(), service) or thumbprint in state.keys:
            raise BadGrounds("kid", kid, f"a key of {service} that was not admitted before")
        if data["active_from"] != entry.time or not 0 < data["expires_at"] - entry.time <= LONGEST_LIFE:
            days = LONGEST_LIFE // (24 * 3600)
            raise BadGrounds("body", dict(data), f"a window that begins with the entry, of {days} days at most")
        if entry.evidence is None:
            raise BadGrounds("evidence", None, "the proof of possession")
        voucher = self._voucher(entry, state) if "kid" in entry.by else None
        if "join_token" in entry.by:
            _check_join_token(entry, entry.by["join_token"], state)
        elif voucher is None and "oidc" not in entry.by and "dev" not in entry.by:
            self._operator(entry, None, state)
        if evidence is not None:
            waited = "operator" in entry.by or "local" in entry.by  # an applicant's proof is older
            signer = None if voucher is None else self._signer(voucher)
            place = entry.seq, entry.time, registry_id(self._domain()), evidence
            self._prove(AdmissionCheck(*place, kid, data["jwk"], data["alg"], waited, signer))

    def _voucher(self, entry: Entry, state: PublicState) -> KeyRecord:
        voucher = self._key(entry.by["kid"], entry, state)
        if voucher.state(entry.time) is not KeyState.ACTIVE:
            raise BadGrounds(
                "by", entry.by["kid"], f"a key that was active then, not {voucher.state(entry.time).value}"
            )
        self._vouched.setdefault(voucher.thumbprint, []).append(split_kid(entry.kid or "")[1])
        self._families.clear()
        return voucher

    def _retired(self, entry: Entry, evidence: bytes | None, state: PublicState) -> None:
        key = self._key(entry.kid or "", entry, state)
        if key.state(entry.time) is not KeyState.ACTIVE:
            raise BadGrounds("kid", entry.kid, "a key that was active then")
        self._ender(entry, entry.kid or "", evidence, state)

    def _revoked(self, entry: Entry, evidence: bytes | None, state: PublicState) -> None:
        key, cause = self._key(entry.kid or "", entry, state), entry.data["cause"]
        first = self._key(cause, entry, state)
        if key.revoked_at is not None:
            raise BadGrounds("kid", entry.kid, "a key that was not revoked before")
        if key.thumbprint not in self._family(first.thumbprint):
            raise BadGrounds("kid", entry.kid, f"{cause}, or a key that it vouched for")
        self._falling = entry, first.thumbprint
        self._ender(entry, cause, evidence, state)

    def _ender(self, entry: Entry, kid: str, evidence: bytes | None, state: PublicState) -> None:
        """Checks who ended the key: the key itself, whose token is the evidence, or an operator."""
        if "self" not in entry.by:
            self._operator(entry, None, state)
            return
        if entry.by["self"] != kid:
            raise BadGrounds("by", entry.by["self"], f"{kid}: a key ends only itself")
        if entry.evidence is None:
            raise BadGrounds("evidence", None, "the request token with which the key ended itself")
        record = self._key(kid, entry, state)
        if record.revoked_at not in (None, entry.time):  # the descendants' entries follow the key's own
            raise BadGrounds("by", kid, "a key that was not revoked before")
        if evidence is not None:
            self._prove(EndingCheck(entry.seq, entry.time, registry_id(self._domain()), evidence, self._signer(record)))

    def _restored(self, entry: Entry, _: bytes | None, state: PublicState) -> None:
        """Accepts the missing evidence of the entries that a restore names."""
        first, last = entry.data["first"], entry.data["last"]
        if "local" not in entry.by or not 0 < first <= last == state.size:
            raise BadGrounds("body", dict(entry.data), f"said by this host's own command line, up to {state.size}")
        before = bisect_left(self._missing, first)
        self.unproven += len(self._missing) - before
        del self._missing[before:]

    def _operator(self, entry: Entry, _: bytes | None, state: PublicState) -> None:
        """Checks that an operator with the right to change something did it, or this host's own command line."""
        if "local" in entry.by:
            return
        operator = state.operators.get(entry.by.get("operator", ""))
        if operator is None:
            raise BadGrounds("by", dict(entry.by), "an operator that the ledger knows")
        entitled = operator.role == _ADMIN if entry.type in _OF_ADMINS else operator.role != _READ_ONLY
        if operator.revoked or operator.expires_at <= entry.time or not entitled:
            raise BadGrounds("by", dict(entry.by), "an operator who was entitled to it then")

    # ---- parts

    def _domain(self) -> str:
        if self.domain is None:
            raise BadGrounds("seq", "", "an entry after registry_created, which names the trust domain")
        return self.domain

    def _key(self, kid: str, entry: Entry, state: PublicState) -> KeyRecord:
        record = state.keys.get(split_kid(kid)[1])
        if record is None or record.service != entry.service:
            raise BadGrounds("by", kid, f"a key that {entry.service} had then")
        if kid != make_kid(service_id(self._domain(), record.service), record.thumbprint):
            raise BadGrounds("by", kid, "the kid of that key")
        return record

    def _signer(self, key: KeyRecord) -> TokenSigner:
        return TokenSigner(make_kid(service_id(self._domain(), key.service), key.thumbprint), key.spki)

    def _family(self, thumbprint: str) -> Mapping[str, None]:
        """The key, those that it vouched for, and so on, in this order. It is remembered until a key vouches: each of
        the thousands of entries of a revocation asks for it."""
        if thumbprint not in self._families:
            members = [thumbprint]
            for member in members:
                members.extend(self._vouched.get(member, ()))
            self._families[thumbprint] = dict.fromkeys(members)
        return self._families[thumbprint]

    def _after_cascade(self, entry: Entry | None, state: PublicState) -> Iterator[Difference]:
        """After the last entry of a revocation, every key that the revoked one vouched for must be revoked."""
        if self._falling is None:
            return
        last, cause = self._falling
        same = entry is not None and (entry.type, entry.time, entry.by) == (last.type, last.time, last.by)
        if same and entry is not None and entry.data.get("cause") == last.data["cause"]:
            return
        self._falling = None
        for thumbprint in self._family(cause):
            record = state.keys.get(thumbprint)
            if record is not None and record.revoked_at is None:
                yield Difference.of("entries", last.seq, "body", f"the end of a revocation without {thumbprint}", "all")


def _check_shape(entry: Entry) -> None:
    if frozenset(entry.by) not in _SHAPES:
        raise BadGrounds("by", dict(entry.by), "one ground, of a kind that there is")


def _check_join_token(entry: Entry, token_id: str, state: PublicState) -> None:
    token = state.join_tokens.get(token_id)
    if token is None or token.service != entry.service:
        raise BadGrounds("by", token_id, f"a join token for {entry.service}")
    if token.withdrawn or token.used >= token.uses or token.expires_at <= entry.time:
        raise BadGrounds("by", token_id, "a join token that was neither spent, withdrawn nor past then")


_RULES: Final[Mapping[str, Callable[[Grounds, Entry, bytes | None, PublicState], None]]] = {
    entries.REGISTRY_CREATED: Grounds._document,
    entries.REGISTRY_KEYS_ISSUED: Grounds._document,
    entries.KEY_ADMITTED: Grounds._admitted,
    entries.KEY_RETIRED: Grounds._retired,
    entries.KEY_REVOKED: Grounds._revoked,
    entries.POLICY_SET: Grounds._operator,
    entries.DOMAIN_SET: Grounds._operator,
    entries.FEDERATION_SET: Grounds._federation,
    entries.JOIN_TOKEN_CREATED: Grounds._operator,
    entries.JOIN_TOKEN_WITHDRAWN: Grounds._operator,
    entries.OPERATOR_CREATED: Grounds._operator,
    entries.OPERATOR_REVOKED: Grounds._operator,
    entries.REGISTRY_RESTORED: Grounds._restored,
    entries.HISTORY_DECLARED: Grounds._history,
}
