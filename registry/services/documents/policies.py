"""Policies and the domain's settings: how operators read and write them."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.ledger.entries import DOMAIN_SET, POLICY_SET, Entry, evidence_digest
from peerseal.protocol.names import REGISTRY, check_service
from peerseal.protocol.policies import CallPolicy, DomainSettings
from registry.domain.admission import check_registrable
from registry.domain.errors import BadRequest, LedgerContradicted, PreconditionFailed
from registry.domain.policy import policy_from, policy_in, said_of, settings_from, text_of
from registry.services.use_case import UseCase
from registry.storage.queries import audit, documents, services
from registry.storage.queries.documents import SettingEntry, SettingRow
from registry.storage.queries.ledger import Change

log = logging.getLogger(__name__)

V = TypeVar("V")
S = TypeVar("S", CallPolicy, DomainSettings)


@dataclass(frozen=True, slots=True)
class Setting(Generic[V]):
    """The current value, and the entry that set it; 0 where none did."""

    seq: int
    value: V


AnySetting = Setting[CallPolicy | None] | Setting[DomainSettings] | Setting[Federation]


class Policies(UseCase):
    """Reads and changes settings. A change names the entry of the setting that the operator saw, so of two operators at
    the same time one is refused."""

    def policy(self, service: str) -> Setting[CallPolicy | None]:
        """The service's policy. Raises InvalidName, LedgerContradicted, StorageUnavailable."""
        check_service(service)
        with self._store.read() as connection:
            return read_policy(connection, service).setting

    def domain(self) -> Setting[DomainSettings]:
        """The domain's settings. Raises LedgerContradicted, StorageUnavailable."""
        with self._store.read() as connection:
            return read_settings(connection).setting

    def set_policy(
        self, service: str, body: Mapping[str, Any], seen: Collection[int], by: Mapping[str, str]
    ) -> Setting[CallPolicy | None]:
        """Replaces the policy that one of the entries ``seen`` set by ``body`` (`registry.domain.policy.policy_from`),
        and returns the new one. A policy that is already in force is left as it is.

        The comparison is with the entries, not with the row, so a row that was altered can be repaired.
        Raises InvalidName, BadRequest, PreconditionFailed, StorageUnavailable.
        """
        check_registrable(service)
        policy = policy_from(body, self._authority.current().domain)
        data, evidence = said_of(policy)
        change = Change(POLICY_SET, service, by=by, evidence=evidence, data=data)
        return Setting(self._change(policy, change, seen), policy)

    def set_domain(
        self, body: Mapping[str, Any], seen: Collection[int], by: Mapping[str, str]
    ) -> Setting[DomainSettings]:
        """Replaces the domain's settings in the same way. Raises as `set_policy` does."""
        settings = settings_from(body, self._authority.current().domain)
        change = Change(DOMAIN_SET, by=by, data={"settings": settings.to_json()})
        return Setting(self._change(settings, change, seen), settings)

    def _change(self, value: CallPolicy | DomainSettings | None, change: Change, seen: Collection[int]) -> int:
        """Appends the change and writes the row, unless the value is in force. Returns the number of the entry that set
        the value; 0 for no value."""
        service, domain = change.service, self._authority.current().domain
        if value is not None:
            self._check_size(text_of(value))
        with self._store.write(service or REGISTRY) as connection:
            with _reading(service):
                before = _seq_of(documents.newest_setting_entry(connection, service))
            if before not in seen:
                raise PreconditionFailed(f"entry {before} set the current value, the request names {sorted(seen)}")
            if documents.setting(connection, service) == _row(before, value):
                return before
            seq = audit.append_act(connection, self._now(), change, service or domain).entry.seq
            services.changed(connection, service or REGISTRY, seq)
            documents.put_setting(connection, service, _row(seq, value))
        what = "domain set" if service is None else f"policy set service={service}"
        log.info("%s seq=%d by=%s", what, seq, dict(change.by))
        return 0 if value is None else seq

    def _check_size(self, text: str) -> None:
        size, most = len(text.encode("utf-8")), self._limits.policy_body
        if size > most:
            raise BadRequest("setting_too_large", f"it has {size} bytes with full service names, {most} are allowed")


def setting_members(value: CallPolicy | DomainSettings | Federation | None) -> dict[str, Any]:
    """A setting as operators read and write it."""
    return {"allow": None} if value is None else value.to_json()


class Read(NamedTuple, Generic[V]):
    """A setting on which its row and its newest entry agree; ``entry`` is None where it was never set."""

    setting: Setting[V]
    entry: Entry | None


def read_policy(connection: Connection, service: str) -> Read[CallPolicy | None]:
    """The service's policy. Raises LedgerContradicted where its row differs from its newest entry: the row was altered,
    removed or brought back."""
    return _read(connection, service, _policy_of)


def read_settings(connection: Connection) -> Read[DomainSettings]:
    """The domain's settings. Raises LedgerContradicted as `read_policy` does."""
    setting, entry = _read(connection, None, lambda found: DomainSettings.from_json(found.entry.data["settings"]))
    return Read(Setting(setting.seq, setting.value or DomainSettings()), entry)


def _read(connection: Connection, service: str | None, value_of: Callable[[SettingEntry], S | None]) -> Read[S | None]:
    with _reading(service):
        found = documents.newest_setting_entry(connection, service)
        value = None if found is None else value_of(found)
        seq = _seq_of(found)
    if documents.setting(connection, service) != _row(seq, value):
        raise LedgerContradicted(f"the row of {_named(service)} differs from its newest entry in the ledger")
    return Read(Setting(seq, value), found and found.entry)


def _policy_of(found: SettingEntry) -> CallPolicy | None:
    """Raises MalformedToken where the evidence is not the one of the entry."""
    digest = None if found.evidence is None else evidence_digest(found.evidence)
    if digest != found.entry.evidence:
        raise MalformedToken("the evidence does not match the digest in the entry")
    return policy_in(found.entry, found.evidence)


def _named(service: str | None) -> str:
    return "the domain's settings" if service is None else f"the policy of {service}"


@contextmanager
def _reading(service: str | None) -> Iterator[None]:
    """Reports entries that cannot be read as altered: the registry writes readable ones."""
    try:
        yield
    except (MalformedToken, InvalidName, KeyError, TypeError, AttributeError) as error:
        raise LedgerContradicted(f"{_named(service)}: an entry was altered: {error}") from error


def _seq_of(found: SettingEntry | None) -> int:
    """The number of the entry that set the value; 0 where none did, or where the newest entry removed it."""
    if found is None:
        return 0
    member = "settings" if found.entry.type == DOMAIN_SET else "policy"
    return 0 if found.entry.data[member] is None else found.entry.seq


def _row(seq: int, value: CallPolicy | DomainSettings | None) -> SettingRow | None:
    return None if value is None else SettingRow(seq, text_of(value))
