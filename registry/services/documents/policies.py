"""Policies and the domain's settings, as operators write and read them."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.ledger.entries import DOMAIN_SET, POLICY_SET, Entry, evidence_digest
from peerseal.protocol.names import REGISTRY, check_service
from peerseal.protocol.policies import CallPolicy, DomainSettings
from registry.domain.admission import check_registrable
from registry.domain.errors import BadRequest, LedgerContradicted, PreconditionFailed
from registry.domain.policy import policy_from, policy_in, said_of, settings_from, text_of
from registry.services.authority.authority import AuthoritySource
from registry.settings import Limits
from registry.storage.queries import audit, policies, services
from registry.storage.queries.ledger import Change, append
from registry.storage.queries.policies import SettingEntry, SettingRow
from registry.storage.unit import Store

log = logging.getLogger(__name__)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Setting(Generic[V]):
    """What holds now, and the entry that set it: 0 where there is nothing."""

    seq: int
    value: V


class Policies:
    """Shows and changes what holds. Who changes something names the entry whose setting it saw, so that of two
    operators at once one is refused."""

    def __init__(
        self, store: Store, authority: AuthoritySource, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._authority = authority
        self._limits = limits
        self._clock = clock

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
        """Lays down what `registry.domain.policy.policy_from` reads, in the place of what one of the entries ``seen``
        set, and gives it back. What holds already is left as it is.

        It is compared with the entries, not with the row: so a row that somebody altered can be put right.
        Raises InvalidName, BadRequest, PreconditionFailed, StorageUnavailable.
        """
        check_registrable(service)
        policy = policy_from(body, self._authority.current().domain)
        if policy is not None:
            self._check_size(text_of(policy))
        data, evidence = said_of(policy)
        with self._store.write(service) as connection:
            with _as_written(f"the policy of {service}"):
                before = _seq_of(policies.newest_policy(connection, service), "policy")
            _check_seen(before, seen)
            if policies.policy(connection, service) == _row(before, policy):
                return Setting(before, policy)
            change = Change(POLICY_SET, service, by=by, evidence=evidence, data=data)
            seq = self._append(connection, change, service, by)
            if policy is None:
                policies.remove_policy(connection, service)
            else:
                policies.put_policy(connection, service, SettingRow(seq, text_of(policy)))
        log.info("policy set service=%s seq=%d by=%s", service, seq, dict(by))
        return Setting(0 if policy is None else seq, policy)

    def set_domain(
        self, body: Mapping[str, Any], seen: Collection[int], by: Mapping[str, str]
    ) -> Setting[DomainSettings]:
        """The same for the domain's settings. Raises as `set_policy` does."""
        settings = settings_from(body, self._authority.current().domain)
        text = text_of(settings)
        self._check_size(text)
        with self._store.write(REGISTRY) as connection:
            with _as_written("the domain's settings"):
                before = _seq_of(policies.newest_domain(connection), "settings")
            _check_seen(before, seen)
            if policies.domain(connection) == SettingRow(before, text):
                return Setting(before, settings)
            change = Change(DOMAIN_SET, by=by, data={"settings": settings.to_json()})
            seq = self._append(connection, change, self._authority.current().domain, by)
            policies.put_domain(connection, SettingRow(seq, text))
        log.info("domain set seq=%d by=%s", seq, dict(by))
        return Setting(seq, settings)

    def _append(self, connection: Connection, change: Change, subject: str, by: Mapping[str, str]) -> int:
        now = int(self._clock())
        seq = append(connection, now, change).entry.seq
        services.changed(connection, change.service or REGISTRY, seq)
        audit.record(connection, now, by, change.type, subject, seq)
        return seq

    def _check_size(self, text: str) -> None:
        if len(text.encode("utf-8")) > self._limits.policy_body:
            raise BadRequest("setting_too_large", f"longer than {self._limits.policy_body} bytes with names in full")


def setting_members(value: CallPolicy | DomainSettings | None) -> dict[str, Any]:
    """A setting as operators read and write it."""
    return {"allow": None} if value is None else value.to_json()


class Read(NamedTuple, Generic[V]):
    """A setting as its row and its newest entry both have it; no entry where none ever spoke of it."""

    setting: Setting[V]
    entry: Entry | None


def read_policy(connection: Connection, service: str) -> Read[CallPolicy | None]:
    """The service's policy. Raises LedgerContradicted where its row says other than its newest entry: a row that
    somebody altered, removed or brought back."""
    with _as_written(f"the policy of {service}"):
        found = policies.newest_policy(connection, service)
        policy = None if found is None else policy_in(_committed(found), found.evidence)
        seq = _seq_of(found, "policy")
    if policies.policy(connection, service) != _row(seq, policy):
        raise LedgerContradicted(f"the policy of {service} is not what the ledger says")
    return Read(Setting(seq, policy), found and found.entry)


def read_settings(connection: Connection) -> Read[DomainSettings]:
    """The domain's settings. Raises LedgerContradicted as `read_policy` does."""
    with _as_written("the domain's settings"):
        found = policies.newest_domain(connection)
        settings = None if found is None else DomainSettings.from_json(found.entry.data["settings"])
        seq = _seq_of(found, "settings")
    if policies.domain(connection) != _row(seq, settings):
        raise LedgerContradicted("the domain's settings are not what the ledger says")
    return Read(Setting(seq, settings or DomainSettings()), found and found.entry)


@contextmanager
def _as_written(what: str) -> Iterator[None]:
    """For reading entries, which are as the registry once wrote them, or altered."""
    try:
        yield
    except (MalformedToken, InvalidName, KeyError, TypeError, AttributeError) as error:
        raise LedgerContradicted(f"{what}: an entry was altered: {error}") from error


def _committed(found: SettingEntry) -> Entry:
    """The entry, whose evidence is what it commits to. Raises MalformedToken."""
    digest = None if found.evidence is None else evidence_digest(found.evidence)
    if digest != found.entry.evidence:
        raise MalformedToken("the evidence is not what the entry commits to")
    return found.entry


def _seq_of(found: SettingEntry | None, member: str) -> int:
    """The number of the entry that set what holds; 0 where none did, or the newest one removed it."""
    return 0 if found is None or found.entry.data[member] is None else found.entry.seq


def _row(seq: int, setting: CallPolicy | DomainSettings | None) -> SettingRow | None:
    return None if setting is None else SettingRow(seq, text_of(setting))


def _check_seen(before: int, seen: Collection[int]) -> None:
    if before not in seen:
        raise PreconditionFailed(f"entry {before} set what holds, and that was not the one named")
