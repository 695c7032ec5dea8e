"""What is believed of services' keys: pure values, apart from all fetching.

`KeySource` is what a verifier asks; the trust store answers from registry documents, the registry itself from its
database. A belief is what a checked document says about one subject, and until which entry and time it is confirmed.
`KnownService` is the belief about one service's keys, and how a newer document or a list of changes alters it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, Self, cast

from peerseal.errors import DocumentRefused, Expired, NotYetValid, TrustUnavailable
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederatedDomain, FederationDocument
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart, ListedKey, PartName, part_of
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.names import split_kid
from peerseal.protocol.policies import CallPolicy, DomainSettings

REVOKED_FOR_GOOD: Final = 0
"""The end (seconds since the epoch) of a revoked key: it is not valid at any time."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that may be believed now: good for tokens whose ``iat`` lies between ``active_from`` and ``active_until``
    (seconds since the epoch). ``service_id`` owns it. Only a signed and checked document, or the registry's own
    database, makes one. A key of another trust domain is believed under the entry ``federated`` of the own registry's
    federation document, which limits what its owner may do; None for a key of the own domain."""

    kid: str
    service_id: str
    public: PublicKey = field(repr=False)
    active_from: int
    active_until: int
    federated: FederatedDomain | None = None

    @classmethod
    def of(cls, key: ListedKey | KeyStatement, service_id: str) -> Self:
        """From a key in a document that was checked."""
        return cls(key.kid, service_id, key.public, key.active_from, key.active_until)


def check_window(issued_at: int, key: TrustedKey, leeway: int) -> None:
    """Step 7 of verification, second half. A retired key is good only for what was issued while it was active. Raises
    NotYetValid or Expired."""
    if issued_at < key.active_from - leeway:
        raise NotYetValid(f"issued at {issued_at}, and its key is active from {key.active_from}")
    if issued_at > key.active_until + leeway:
        raise Expired(f"issued at {issued_at}, and its key was active until {key.active_until}")


class KeySource(Protocol):
    """The source of the keys, policies and settings that a verifier uses."""

    @property
    def domain(self) -> str:
        """The trust domain whose services' keys these are. Raises TrustUnavailable while it is not known."""

    def key(self, kid: str) -> TrustedKey:
        """The key with that kid, which the caller has checked to be well-formed.

        Raises UnknownKey, RevokedKey, or TrustUnavailable where the answer cannot be fetched now.
        """

    def recorded_key(self, kid: str) -> TrustedKey:
        """As `key`, and for past keys too: good for what was signed while the key was active, however long ago."""

    def settings(self) -> DomainSettings:
        """The settings of the whole domain: who may mint, whose users are believed. Raises TrustUnavailable."""

    def policy(self, service_id: str) -> CallPolicy | None:
        """The operators' policy of who may call the service with that id; None where they left that to the service's
        code. Returns the identical object while the policy is unchanged. Raises TrustUnavailable where it cannot be
        fetched now."""


class RemoteKeySource(KeySource, Protocol):
    """A KeySource that may have to wait for its answers. Verifiers use each of these methods if a source has it."""

    def deadline(self) -> AbstractContextManager[object]:
        """Entered around the questions of one verification: it bounds the time that they wait, all together."""

    def recall(self, kid: str, audience: str, *, recorded_kid: str | None = None) -> KeySource | None:
        """What memory holds for one verification, as a source that never waits; None where memory cannot answer all."""

    def foreign(self, domain: str) -> "ForeignKeySource | None":
        """The source for another trust domain, where the own registry federates with it. Raises TrustUnavailable."""


class ForeignKeySource(KeySource, Protocol):
    """The KeySource of another trust domain, from its own registry, within the limits of the federation document."""

    @property
    def federated(self) -> FederatedDomain:
        """The entry of the federation document."""


def deadline_of(keys: KeySource | RemoteKeySource) -> Callable[[], AbstractContextManager[object]]:
    """What makes the deadline of one verification: the source's method, or one that sets no bound."""
    deadline: Callable[[], AbstractContextManager[object]] = getattr(keys, "deadline", nullcontext)
    return deadline


@dataclass(frozen=True, slots=True)
class Recalled:
    """What memory holds for one verification: a frozen KeySource that never waits and makes no call.

    ``callee_policy`` is the policy of ``audience``. ``domain_settings`` is None where memory holds no settings. A
    question about another subject raises TrustUnavailable.
    """

    domain: str
    audience: str
    callee_policy: CallPolicy | None
    keys: Mapping[str, TrustedKey]
    domain_settings: DomainSettings | None = None

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        if kid not in self.keys:
            raise TrustUnavailable(f"the key {kid} was not recalled from memory")
        return self.keys[kid]

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self.key(kid)

    def settings(self) -> DomainSettings:
        """See KeySource."""
        if self.domain_settings is None:
            raise TrustUnavailable("the domain's settings were not recalled from memory")
        return self.domain_settings

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        if service_id != self.audience:
            raise TrustUnavailable(f"the policy of {service_id} was not recalled from memory")
        return self.callee_policy


class Dated:
    """The signed times of a belief about one service, be it keys or a policy. Its subclasses are frozen dataclasses
    with these members.

    ``seq`` is the entry that last changed the subject. ``confirmed_at`` is the newest signed time at which the belief
    was still true; ``covered`` is the ledger entry up to which the belief is true. All come from signed documents
    only, never from a local clock, so neither a mirror nor a restart makes an old document young.
    """

    __slots__ = ()

    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    def check_not_older(self, document: KeySetDocument | PolicyDocument | DomainDocument | FederationDocument) -> None:
        """Passes a document that is not older than what was seen before. Raises DocumentRefused."""
        if document.seq < self.seq or (document.seq > self.seq and document.head < self.covered):
            raise DocumentRefused("document_rolled_back", f"seq {document.seq} after {self.seq}")

    def merged_with(self, new: Self) -> Self:
        """The belief after ``new``. If ``new`` has no higher ``seq``, the later of both times is kept."""
        if new.seq > self.seq:
            return new
        return self._dated(
            new,
            covered=max(self.covered, new.covered),
            confirmed_at=max(self.confirmed_at, new.confirmed_at),
            expires_at=max(self.expires_at, new.expires_at),
        )

    def confirmed(self, service_id: str, changes: Changes) -> Self | None:
        """After a list of changes: the belief confirmed, or None where the document must be fetched again."""
        if self.covered > changes.seq:
            return self  # the list is older than this belief
        changed = changes.last_changes.get(service_id, 0) > self.covered
        if changes.reset or changed or changes.since > self.covered:
            return None
        return self.true_until(changes.seq, changes.issued_at)

    def confirmed_by_list(self, service_id: str, current: CurrentServices) -> Self | None:
        """After the list of the block in which the service was last changed, as in `confirmed`."""
        if self.covered > current.seq:
            return self
        if not 0 < current.services.get(service_id, 0) <= self.covered:
            return None
        return self.true_until(current.seq, current.issued_at)

    def true_until(self, entry: int, signed_at: int) -> Self:
        """The belief, which a document signed at that time says is true up to that entry."""
        later = max(self.covered, entry), max(self.confirmed_at, signed_at)
        return self._dated(self, covered=later[0], confirmed_at=later[1])

    def _dated(self, belief: Self, **times: int) -> Self:
        return cast(Self, replace(cast(Any, belief), **times))


@dataclass(frozen=True, slots=True)
class KnownPart:
    """What one part of a large key set says: its keys, and those revoked (by kid). It is believed while the set names
    its ``digest``. ``expires_at`` is the end of the document that said so."""

    keys: Mapping[str, TrustedKey]
    revoked: frozenset[str]
    digest: str
    expires_at: int

    @classmethod
    def of(cls, document: KeySetPart) -> Self:
        """From a part that was checked."""
        return cls(*_listed_in(document), document.digest, document.expires_at)


def _listed_in(document: KeySetDocument | KeySetPart) -> tuple[dict[str, TrustedKey], frozenset[str]]:
    """The keys by kid, and the kids of the revoked ones."""
    revoked = frozenset(key.kid for key in document.revoked)
    keys = {key.kid: TrustedKey.of(key, document.subject) for key in document.keys if key.kid not in revoked}
    return keys, revoked


class Refusals:
    """Keys that were called revoked before the believed key set of their service says so. Threads may add to it while
    others read."""

    def __init__(self) -> None:
        self._known = dict[str, dict[str, tuple[int, int]]]()  # by service id and kid: see `add`

    def __contains__(self, kid: str) -> bool:
        return kid in self._known.get(kid.rpartition("/")[0], ())

    def __iter__(self) -> Iterator[str]:
        """Each kid."""
        for kids in tuple(self._known.values()):
            yield from tuple(kids)

    def of(self, service_id: str) -> Set[str]:
        """The kids of the service, as of now."""
        return frozenset(self._known.get(service_id, ()))

    def add(self, kid: str, entry: int, ends_at: int) -> None:
        """Refuse a key that was revoked up to that entry. ``ends_at`` (seconds since the epoch) is its end, or a later
        time where that is not known."""
        kids = self._known.setdefault(kid.rpartition("/")[0], {})
        before = kids.get(kid, (0, 0))
        kids[kid] = max(before[0], entry), max(before[1], ends_at)

    def settle(self, service_id: str, known: "KnownService", now: float) -> None:
        """Forget the keys that the belief itself refuses: it covers the entry, and lists the key as revoked. A registry
        lists a revoked key to its end: one that it no longer lists, or in a part that is not held, is forgotten after
        that."""
        kids = self._known.get(service_id, {})
        for kid, (entry, ends_at) in tuple(kids.items()):
            said = kid in known.revoked or now >= ends_at
            if said and known.covered >= entry and kid not in known.keys:
                kids.pop(kid, None)


@dataclass(frozen=True, slots=True)
class KnownService(Dated):
    """What is believed of one service: its keys, those revoked (by kid), and the times of `Dated`. Of a large key set
    it has the names of its ``parts``, and the keys of those that are ``held``, by number."""

    keys: Mapping[str, TrustedKey]
    revoked: frozenset[str]
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int
    parts: tuple[PartName | None, ...] = ()
    held: Mapping[int, KnownPart] = field(default_factory=dict)

    @classmethod
    def of(cls, document: KeySetDocument, held: Mapping[int, KnownPart] | None = None) -> Self:
        """From the first document about the service, and the parts that are held of it."""
        held, (keys, revoked) = held or {}, _listed_in(document)
        for part in held.values():
            keys.update(part.keys)
        revoked = revoked.union(*(part.revoked for part in held.values()))
        times = document.seq, document.head, document.issued_at, document.expires_at
        return cls(keys, revoked, *times, document.parts, held)

    def lists(self, kid: str) -> bool:
        """Whether the kid is among the keys or the revoked keys."""
        return kid in self.keys or kid in self.revoked

    def part_lacked(self, kid: str) -> tuple[int, PartName] | None:
        """The part that would list the kid, where it is not held; None where nothing is lacking."""
        number = part_of(split_kid(kid)[1])
        name = self.parts[number] if self.parts else None
        return None if name is None or number in self.held else (number, name)

    def needed_parts(self) -> list[int]:
        """The numbers of the parts without which a key that is known now would be unknown."""
        return sorted(self.held if self.parts else {part_of(split_kid(kid)[1]) for kid in self.keys})

    def updated(self, document: KeySetDocument, held: Mapping[int, KnownPart] | None = None) -> Self:
        """After another document, and the parts that are held of it. Raises DocumentRefused for one that is older than
        what was seen before, and for one that brings a revoked key back, whatever its signer says.

        A cache may deliver an older document of the same ``seq``, which changes nothing.
        """
        self.check_not_older(document)
        new = type(self).of(document, held)
        self._check_not_revived([*new.keys, *(key.kid for key in document.keys)])
        new = replace(new, revoked=self.revoked | new.revoked)  # revoked stays revoked, listed or not
        return self.merged_with(new)

    def with_part(self, number: int, part: KnownPart) -> Self:
        """With one more part. Raises DocumentRefused for one that brings a revoked key back."""
        self._check_not_revived(part.keys)
        keys, revoked = {**self.keys, **part.keys}, self.revoked | part.revoked
        return replace(self, keys=keys, revoked=revoked, held={**self.held, number: part})

    def _check_not_revived(self, kids: Iterable[str]) -> None:
        revived = next((kid for kid in kids if kid in self.revoked), None)
        if revived is not None:
            raise DocumentRefused("document_revived_key", f"{revived} was revoked before")
