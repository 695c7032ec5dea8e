"""The trust store's shelves: services' key sets and policies, the domain's settings and federation, and statements.

Where the whole domain may call, any caller can send invented kids. So a fetch for an unknown kid of a known service,
and one for an unknown service, have budgets, and names that the registry does not know are remembered for a while.

Policies and settings follow the same age rules as keys, by signed times only. Each is good for the offline limit after
it was signed, or after a list of changes that does not name its subject. If no valid policy is known, the call is
refused: the missing policy may be one that denies it.

An event is verified against the key as it stood when the event was signed, a year ago perhaps, and never after that key
was revoked. So statements, about active and past keys, follow the same age rules too. But none is renewed in the
background, since a service has hundreds of past keys: one that changed, or is too old, is fetched when the next event
needs it.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import random
from typing import Final, Generic, TypeVar

from peerseal.errors import DocumentRefused, FetchError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import Federation, FederationDocument
from peerseal.protocol.documents.key_set import LONGEST_LIFE, REVOKED, KeySetDocument
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.runtime.bounded import AbsentNames
from peerseal.runtime.token_bucket import TokenBucket
from peerseal.transport.deadline import held_if_free, held_in_time
from peerseal.trust.beliefs import REVOKED_FOR_GOOD, Dated, KnownPart, KnownService, Refusals, TrustedKey
from peerseal.trust.disk.document_cache import NoCopies
from peerseal.trust.documents import Fetched, Question
from peerseal.trust.key_set_parts import PartReader
from peerseal.trust.shelf import CachedSubject, Shelf, ShelfContext

SPREAD: Final = 1.0
"""After a list of changes has named revoked keys, each client fetches their key set at a random time within these
seconds."""

V = TypeVar("V")
SettingDocument = PolicyDocument | DomainDocument | FederationDocument
S = TypeVar("S", bound=SettingDocument)


class KeyShelf(Shelf[KeySetDocument, KnownService, TrustedKey]):
    """The key sets of the services that were asked about, and the parts of large ones that were. ``held`` maps each kid
    to its key and the item of its owner, which says until when it is believed. It leaves out parts whose keys nothing
    has asked for lately. ``refused`` has the keys that were revoked, where the believed key set does not say so yet."""

    document = KeySetDocument
    label = "keys"
    path = "/v1/services/{}/jwks.jwt"
    file = "keys-{}.jwt"
    may_be_absent = True

    def __init__(self, context: ShelfContext) -> None:
        super().__init__(context)
        limits = context.limits
        self.held: dict[str, tuple[TrustedKey, CachedSubject[KnownService]]] = {}
        self.refused = Refusals()
        self._parts = PartReader(context.reader, context.copies, limits, context.clock)
        self._strangers = TokenBucket(limits.stranger_fetches, limits.stranger_rate, context.clock)
        self._unknown_kid_fetches = threading.Semaphore(limits.doubtful_fetches)

    def ask(self, kid: str) -> TrustedKey:
        """The key with that kid, which memory did not have: looked for again, and fetched once where that may help.

        Raises UnknownKey, RevokedKey or TrustUnavailable.
        """
        return self._ask(self.item(split_kid(kid)[0]), kid)

    def in_memory(self, name: str) -> TrustedKey | None:
        """See Shelf. The ``name`` is a kid."""
        found = self.held.get(name)
        if found is None:
            return self._in_unasked_part(name)
        key, item = found  # as `is_believed`, without a call: each request looks a key up
        return key if self._clock() < item.good_until and self._awake.is_current(item.period) else None

    def _in_unasked_part(self, kid: str) -> TrustedKey | None:
        """The key in a part that ``held`` leaves out until it is asked for, which is noted."""
        if kid in self.refused:  # before the belief is read: one that settles a refusal is set first
            return None
        item = self.items.get(kid.rpartition("/")[0])
        known = item.known if item is not None and self.is_believed(item) else None
        key = known.keys.get(kid) if known is not None and known.parts else None
        if key is None or kid in self.refused:
            return None
        self._parts.note_question(kid)
        return key

    def has_revoked(self, kid: str) -> bool:
        """Whether memory has it that the key was revoked."""
        item = self.items.get(kid.rpartition("/")[0])
        known = None if item is None else item.known
        return kid in self.refused or (known is not None and kid in known.revoked)

    def item(self, service_id: str) -> CachedSubject[KnownService]:
        """What is held about that service. Raises TrustUnavailable where there is no room for one more."""
        item = self.items.get(service_id)
        if item is None:
            if len(self.items) >= self._limits.max_services:
                self._forget_strangers()
            if len(self.items) >= self._limits.max_services:
                raise TrustUnavailable(f"no room for {service_id}: {self._limits.max_services} services are remembered")
            item = self.items.setdefault(service_id, self._new_item(service_id))
        return item

    def confirm(self, changes: Changes, period: int) -> None:
        """See Shelf. Before that, the keys that the list calls revoked are refused: this only takes trust away.

        Their key sets are then fetched within `SPREAD` seconds, at random times, so that not all clients fetch at once.
        """
        hit = [item for kid in changes.revoked if (item := self._refuse(kid, changes.seq)) is not None]
        super().confirm(changes, period)
        for item in hit:
            item.retry_at = item.retry_at or self._clock() + SPREAD * random()  # noqa: S311 - no secret

    def _refuse(self, kid: str, seq: int) -> CachedSubject[KnownService] | None:
        """Refuse a key that was revoked up to that entry. Returns the item of its service, or None where the key is not
        held. A key in a part that is not held counts as held: an older part may bring it.

        It takes no lock, since a fetch may hold it for long: `_update_lookup` reads ``refused`` last.
        """
        item = self.items.get(split_kid(kid)[0])
        known = None if item is None else item.known
        if item is None or known is None or known.covered >= seq:
            return None
        if kid not in known.keys and known.part_lacked(kid) is None:
            return None
        if not self._is_in_ledger(item):
            return None
        self._refuse_known(known, kid, seq)
        return item

    def _refuse_known(self, known: KnownService, kid: str, entry: int) -> None:
        key = known.keys.get(kid)
        end = self._clock() + LONGEST_LIFE if key is None else key.active_until
        self.refused.add(kid, entry, math.ceil(end))
        self.held.pop(kid, None)

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache."""
        ends: dict[str, int] = {}
        for known in filter(None, (item.known for item in self._all())):
            ends |= {kid: key.active_until for kid, key in known.keys.items()}
            ends |= dict.fromkeys(known.revoked, REVOKED_FOR_GOOD)
        return ends | dict.fromkeys(self.refused, REVOKED_FOR_GOOD)

    def renew_locks(self) -> None:
        """See Shelf."""
        super().renew_locks()
        self._unknown_kid_fetches = threading.Semaphore(self._limits.doubtful_fetches)

    def _belief(self, document: KeySetDocument, known: KnownService | None, subject: str) -> KnownService:
        if known is not None:
            known.check_not_older(document)
        renewed = self._parts.renewed(document, known)
        if known is not None:
            self._refuse_listed(known, document, renewed.held)
        if renewed.failure is not None:
            raise renewed.failure
        return KnownService.of(document, renewed.held) if known is None else known.updated(document, renewed.held)

    def _refuse_listed(self, known: KnownService, document: KeySetDocument, parts: Mapping[int, KnownPart]) -> None:
        """Refuse the keys that a newer set and its parts list as revoked, before it is believed: this only takes trust
        away. Parts that it lacks, or a list of changes that is not to be had, may delay the belief for long."""
        listed = {key.kid for key in document.revoked}.union(*(part.revoked for part in parts.values()))
        for kid in listed & known.keys.keys():
            self._refuse_known(known, kid, document.head)

    def _complete(self, item: CachedSubject[KnownService], known: KnownService, name: str) -> KnownService:
        lacked = known.part_lacked(name)
        return known if lacked is None else known.with_part(lacked[0], self._parts.part(item.service, *lacked))

    def _find(self, known: KnownService, name: str) -> TrustedKey | None:
        if name in known.revoked or name in self.refused:
            raise RevokedKey(f"{name} was revoked")
        key = known.keys.get(name)
        if key is not None:
            self._parts.note_question(name)
        return key

    def _lists(self, known: KnownService, name: str) -> bool:
        return known.lists(name)

    @contextmanager
    def _budget(self, item: CachedSubject[KnownService]) -> Iterator[None]:
        """Fetches for unknown services do not delay those for known services, which have their own cooldowns."""
        if item.known is None and not self._strangers.take():
            raise TrustUnavailable(f"too many unknown services: {item.subject} is not fetched now", retry_after=1)
        if item.known is None or not self.is_believed(item):
            yield
        elif self._unknown_kid_fetches.acquire(blocking=False):
            try:
                yield
            finally:
                self._unknown_kid_fetches.release()
        else:
            raise TrustUnavailable(f"too many unknown kids: {item.subject} is not fetched now", retry_after=1)

    def _update_lookup(self, item: CachedSubject[KnownService], known: KnownService | None) -> None:
        """Add new keys before old ones are removed, so that a reader without a lock always finds a valid key."""
        before, after = item.known.keys if item.known else {}, known.keys if known else {}
        item.absent.discard(after)
        unasked = [known.held.get(number) for number in self._parts.unasked(item.service)] if known else []
        left_out = frozenset(self.refused.of(item.service)).union(*(part.keys for part in unasked if part is not None))
        shown = {kid: (key, item) for kid, key in after.items() if kid not in left_out}
        self.held.update(shown)
        for kid in (before.keys() - shown.keys()) | (after.keys() & self.refused.of(item.service)):
            self.held.pop(kid, None)

    def _believe(self, item: CachedSubject[KnownService], known: KnownService, period: int) -> None:
        super()._believe(item, known, period)
        if item.known is not None:
            self.refused.settle(item.service, item.known, self._clock())  # after it is believed: readers take no lock

    def _forget_strangers(self) -> None:
        """Make room: remove names that are not registered."""
        for item in self._all():
            with held_if_free(item.lock) as held:  # not being fetched now
                if held and item.known is None:
                    self.items.pop(item.subject, None)


@dataclass(frozen=True, slots=True)
class KnownSetting(Dated, Generic[V]):
    """What is believed of an operator's setting for one subject, and the times of `Dated`. ``set_by`` is the entry that
    proves the value; 0 for none."""

    value: V
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int
    set_by: int = 0

    @classmethod
    def of(cls, document: SettingDocument, value: V) -> "KnownSetting[V]":
        """From the first document about the subject, which says ``value``."""
        set_by = document.set_by if isinstance(document, FederationDocument) else 0
        return cls(value, document.seq, document.head, document.issued_at, document.expires_at, set_by)

    def updated(self, document: SettingDocument, value: V) -> "KnownSetting[V]":
        """After another document. Raises DocumentRefused for one that is older than what was seen before.

        A value that says the same stays the same object: a verifier compares objects to see whether its cache is valid.
        """
        self.check_not_older(document)
        new = type(self).of(document, self.value if value == self.value else value)
        if new.set_by < self.set_by:
            raise DocumentRefused("document_rolled_back", f"set by entry {new.set_by} after {self.set_by}")
        return self.merged_with(new)


class SettingShelf(Shelf[S, KnownSetting[V], KnownSetting[V]]):
    """The settings of one kind."""

    def ask(self, subject: str) -> V:
        """The setting about that subject, fetched where what is held is not to be believed any more. Raises
        TrustUnavailable."""
        item = self.items.get(subject) or self.items.setdefault(subject, self._new_item(subject))
        return self._ask(item, subject).value

    def _value(self, document: S) -> V:
        raise NotImplementedError

    def _belief(self, document: S, known: KnownSetting[V] | None, subject: str) -> KnownSetting[V]:
        value = self._value(document)
        return KnownSetting.of(document, value) if known is None else known.updated(document, value)

    def _rests_on(self, known: KnownSetting[V]) -> int:
        return 0

    def _find(self, known: KnownSetting[V], name: str) -> KnownSetting[V]:
        return known


class PolicyShelf(SettingShelf[PolicyDocument, CallPolicy | None]):
    """The policies of the services that this process runs as, usually one. ``sign_reading`` returns a request token
    for a GET of a target at the registry: restricted policies are asked for with it."""

    document = PolicyDocument
    label = "policy"
    path = "/v1/services/{}/policy.jwt"
    file = "policy-{}.jwt"

    def __init__(self, context: ShelfContext, sign_reading: Callable[[str], str] | None = None) -> None:
        super().__init__(context)
        self._sign_reading = sign_reading

    def _value(self, document: PolicyDocument) -> CallPolicy | None:
        return document.policy

    def _fetch(
        self, item: CachedSubject[KnownSetting[CallPolicy | None]], question: Question[PolicyDocument]
    ) -> Fetched[PolicyDocument] | None:
        """Most policies are public, and come from caches; a restricted one is asked for with a token."""
        held = item.known.value if item.known is not None else None
        if held is None or not held.restricted or self._sign_reading is None:
            try:
                return super()._fetch(item, question)
            except FetchError as error:
                if error.http_status != 401 or self._sign_reading is None:
                    raise
        return super()._fetch(item, replace(question, headers=self._authorization))

    def _authorization(self, path: str) -> Mapping[str, str]:
        sign, target = self._sign_reading, self._reader.fetcher.target(path)
        return {"Authorization": f"Bearer {sign(target)}"} if sign is not None else {}


class DomainWideShelf(SettingShelf[S, V]):
    """A setting of the whole domain, by the id of its registry: there is one item."""

    def value_in_memory(self) -> V | None:
        """The setting, where memory has it and it is believed now."""
        found = [self.in_memory(subject) for subject in list(self.items)]
        return found[0].value if found and found[0] is not None else None

    def _document_subject(self, item: CachedSubject[KnownSetting[V]]) -> str:
        return split_service_id(item.service)[0]


class DomainShelf(DomainWideShelf[DomainDocument, DomainSettings]):
    """The domain's settings."""

    document = DomainDocument
    label = "settings"
    path = "/v1/domain.jwt"
    file = "domain.jwt"

    def _value(self, document: DomainDocument) -> DomainSettings:
        return document.settings


class FederationShelf(DomainWideShelf[FederationDocument, Federation]):
    """The federation of the domain: which other trust domains are believed. It is fetched at the first question about
    one. ``on_change`` is called with each other federation, before that is believed, and with None where the one that
    was known is no longer believed.

    A list of changes that names the registry may mean that a federation was taken away. So nothing is believed from
    then on until the newest document is here. A registry of an earlier release has no such document: its 404 says that
    there is no federation, for `TrustLimits.negative_ttl` seconds.
    """

    document = FederationDocument
    label = "federation"
    path = "/v1/federation.jwt"
    file = "federation.jwt"
    may_be_absent = True
    mirrors_have_all = False

    def __init__(self, context: ShelfContext, on_change: Callable[[Federation | None], None]) -> None:
        super().__init__(context)
        self._on_change = on_change

    def ask(self, subject: str) -> Federation:
        """See SettingShelf."""
        try:
            return super().ask(subject)
        except UnknownKey:  # the registry has no such document
            return Federation()

    def is_believed(self, item: CachedSubject[KnownSetting[Federation]]) -> bool:
        """See Shelf."""
        return not item.awaited_entry and super().is_believed(item)

    def _version(self, document: FederationDocument) -> int:
        return document.set_by

    def _check_not_older_than_seen(
        self, item: CachedSubject[KnownSetting[Federation]], document: FederationDocument
    ) -> None:
        """See Shelf. The ledger proves which entry set the federation, so that counts also where the root has dropped
        the key that signed the document."""
        known = item.known.set_by if item.known is not None and self._is_in_ledger(item) else 0
        if document.set_by < (seen := max(known, self._copies.read_seen(item.file))):
            raise DocumentRefused("document_rolled_back", f"set by entry {document.set_by}, seen was {seen}")

    def _rests_on(self, known: KnownSetting[Federation]) -> int:
        return known.set_by if known.value.domains else 0

    def _value(self, document: FederationDocument) -> Federation:
        return document.federation

    def _update_lookup(
        self, item: CachedSubject[KnownSetting[Federation]], known: KnownSetting[Federation] | None
    ) -> None:
        before, after = (None if each is None else each.value for each in (item.known, known))
        if after is not before:
            self._on_change(after)


@dataclass(frozen=True, slots=True)
class KnownStatement(Dated):
    """What is believed of one key: ``key``, which is None if it was revoked, and the times of `Dated`."""

    key: TrustedKey | None
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    @classmethod
    def of(cls, document: KeyStatement) -> "KnownStatement":
        """From a statement that was checked."""
        key = None if document.state == REVOKED else TrustedKey.of(document, document.subject)
        return cls(key, document.seq, document.head, document.issued_at, document.expires_at)


class StatementShelf(Shelf[KeyStatement, KnownStatement, TrustedKey]):
    """Statements by kid, in memory only; the oldest is forgotten first.

    A question about a kid that is not registered leaves no item. Services are in groups, by the hash of their id: a
    group has one thread that fetches, and remembers the kids that the registry does not know.
    """

    document = KeyStatement
    label = "statement"
    path = "/v1/services/{}/keys/{}.jwt"
    may_be_absent = True
    mirrors_have_all = False

    _GROUPS = 64

    def __init__(self, context: ShelfContext) -> None:
        limits = context.limits
        # The budget is limit enough: what could not be fetched may be asked for again at once.
        super().__init__(replace(context, copies=NoCopies(), limits=replace(limits, cooldown=0.0)))
        self._absent = [AbsentNames(limits.max_negative, limits.negative_ttl) for _ in range(self._GROUPS)]
        self._fetching = [threading.Lock() for _ in range(self._GROUPS)]
        self._strangers = TokenBucket(limits.stranger_fetches, limits.stranger_rate, context.clock)

    def ask(self, kid: str) -> TrustedKey:
        """The key, fetched where memory cannot say. Raises UnknownKey, RevokedKey or TrustUnavailable."""
        with held_in_time(self._fetching[self._group(split_kid(kid)[0])], f"the statement about {kid}"):
            return self._ask(self.items.get(kid) or self._new_item(kid), kid)

    def is_believed(self, item: CachedSubject[KnownStatement]) -> bool:
        """See Shelf. A statement that a dropped key may have signed is not believed: none is renewed."""
        return item.generation == self._reader.generation and super().is_believed(item)

    def on_new_ledger(self) -> None:
        """See LedgerCache."""
        self.items.clear()
        for absent in self._absent:
            absent.clear()

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache."""
        held = [(item.subject, item.known) for item in self._all()]
        keys = {kid: known.key for kid, known in held if known is not None}
        return {kid: REVOKED_FOR_GOOD if key is None else key.active_until for kid, key in keys.items()}

    def renew_locks(self) -> None:
        """See Shelf."""
        super().renew_locks()
        self._fetching = [threading.Lock() for _ in range(self._GROUPS)]

    def _group(self, service_id: str) -> int:
        return hash(service_id) % self._GROUPS

    def _new_item(self, subject: str) -> CachedSubject[KnownStatement]:
        owner, thumbprint = split_kid(subject)
        path = self.path.format(split_service_id(owner)[1], thumbprint)
        return CachedSubject(subject, owner, path, self.file, self._absent[self._group(owner)])

    def _belief(self, document: KeyStatement, known: KnownStatement | None, subject: str) -> KnownStatement:
        if document.kid != subject:
            raise DocumentRefused("document_wrong_subject", f"a statement about {document.kid} instead of {subject}")
        return KnownStatement.of(document)

    def _find(self, known: KnownStatement, name: str) -> TrustedKey:
        if known.key is None:
            raise RevokedKey(f"{name} was revoked")
        return known.key

    @contextmanager
    def _budget(self, item: CachedSubject[KnownStatement]) -> Iterator[None]:
        """Only kids that the registry does not know are counted."""
        if not self._strangers.has_token():
            raise TrustUnavailable(f"too many unknown keys: {item.subject} is not fetched now", retry_after=1)
        yield
        if item.known is None:
            self._strangers.spend()

    def _due_at(self, item: CachedSubject[KnownStatement]) -> float:
        return math.inf

    def _confirm(self, item: CachedSubject[KnownStatement], changes: Changes, period: int) -> None:
        super()._confirm(item, changes, period)
        if item.awaited_entry:  # its service changed
            self._forget(item)

    def _update_lookup(self, item: CachedSubject[KnownStatement], known: KnownStatement | None) -> None:
        if known is None:
            self.items.pop(item.subject, None)
        elif len(self.items) > self._limits.max_statements:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        for item in self._all():
            if len(self.items) <= self._limits.max_statements:
                return
            with held_if_free(item.lock) as held:
                if held:
                    self.items.pop(item.subject, None)
