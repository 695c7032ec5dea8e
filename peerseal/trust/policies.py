"""What operators laid down: the policies of services, and the domain's settings.

A setting is as fresh as keys are, by signed times only: good for the offline limit after it was signed, or after a list
of changes that does not name its subject. With nothing to believe there is no answer: a policy that cannot be had may
be one that denies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from peerseal.errors import FetchError
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.names import split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.trust.beliefs import Dated
from peerseal.trust.documents import Fetched, Question
from peerseal.trust.shelf import Environment, Item, Shelf

V = TypeVar("V")
S = TypeVar("S", bound=PolicyDocument | DomainDocument)


@dataclass(frozen=True, slots=True)
class KnownSetting(Dated, Generic[V]):
    """What is believed that operators laid down for one subject, and the times of `Dated`."""

    value: V
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    @classmethod
    def of(cls, document: PolicyDocument | DomainDocument, value: V) -> "KnownSetting[V]":
        """From the first document about the subject, which says ``value``."""
        return cls(value, document.seq, document.head, document.issued_at, document.expires_at)

    def updated(self, document: PolicyDocument | DomainDocument, value: V) -> "KnownSetting[V]":
        """After another document. Raises DocumentRefused for one that is older than what was seen before.

        A value that says the same stays the same object: else a verifier would put together again what it has."""
        self.check_not_older(document)
        return self.followed_by(type(self).of(document, self.value if value == self.value else value))


class SettingShelf(Shelf[S, KnownSetting[V], KnownSetting[V]]):
    """The settings of one kind."""

    def ask(self, subject: str) -> V:
        """The setting about that subject, fetched where what is held is not to be believed any more. Raises
        TrustUnavailable."""
        item = self.items.get(subject) or self.items.setdefault(subject, self._new_item(subject))
        return self._ask(item, subject).value

    def _value(self, document: S) -> V:
        raise NotImplementedError

    def _belief(self, document: S, known: KnownSetting[V] | None) -> KnownSetting[V]:
        value = self._value(document)
        return KnownSetting.of(document, value) if known is None else known.updated(document, value)

    def _find(self, known: KnownSetting[V], name: str) -> KnownSetting[V]:
        return known


class PolicyShelf(SettingShelf[PolicyDocument, CallPolicy | None]):
    """The policies of the services that verifiers of this process stand for: mostly one. ``sign_reading`` returns
    a request token for a GET of a target at the registry: restricted policies are asked for with it."""

    document = PolicyDocument
    what = "policy"
    path = "/v1/services/{}/policy.jwt"
    file = "policy-{}.jwt"

    def __init__(self, environment: Environment, sign_reading: Callable[[str], str] | None = None) -> None:
        super().__init__(environment)
        self._sign_reading = sign_reading

    def _value(self, document: PolicyDocument) -> CallPolicy | None:
        return document.policy

    def _fetch(
        self, item: Item[KnownSetting[CallPolicy | None]], question: Question[PolicyDocument]
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


class DomainShelf(SettingShelf[DomainDocument, DomainSettings]):
    """The domain's settings, by the id of its registry."""

    document = DomainDocument
    what = "settings"
    path = "/v1/domain.jwt"
    file = "domain.jwt"

    def _document_subject(self, subject: str) -> str:
        return split_service_id(subject)[0]

    def _value(self, document: DomainDocument) -> DomainSettings:
        return document.settings
