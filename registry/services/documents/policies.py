"""Policies and the domain's settings: how operators read and write them."""

import logging
from collections.abc import Collection, Iterator, Mapping
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
from registry.services.use_case import UseCase
from registry.storage.queries import audit, policies, services
from registry.storage.queries.ledger import Change
from registry.storage.queries.policies import SettingEntry, SettingRow

log = logging.getLogger(__name__)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Setting(Generic[V]):
    """The current value, and the entry that set it; 0 where none did."""

    seq: int
    value: V


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
            seq = self._append(connection, change, service)
            if policy is None:
                policies.remove_policy(connection, service)
            else:
                policies.put_policy(connection, service, SettingRow(seq, text_of(policy)))
        log.info("policy set service=%s seq=%d by=%s", service, seq, dict(by))
        return Setting(0 if policy is None else seq, policy)

    def set_domain(
        self, body: Mapping[str, Any], seen: Collection[int], by: Mapping[str, str]
    ) -> Setting[DomainSettings]:
        """Replaces the domain's settings in the same way. Raises as `set_policy` does."""
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
            seq = self._append(connection, change, self._authority.current().domain)
            policies.put_domain(connection, SettingRow(seq, text))
        log.info("domain set seq=%d by=%s", seq, dict(by))
        return Setting(seq, settings)

    def _append(self, connection: Connection, change: Change, subject: str) -> int:
        seq = audit.append_act(connection, self._now(), change, subject).entry.seq
        services.changed(connection, change.service or REGISTRY, seq)
        return seq

    def _check_size(self, text: str) -> None:
        size, most = len(text.encode("utf-8")), self._limits.policy_body
        if size > most:
            raise BadRequest("setting_too_large", f"it has {size} bytes with full service names, {most} are allowed")


def setting_members(value: CallPolicy | DomainSettings | None) -> dict[str, Any]:
    """A setting as operators read and write it."""
    return {"allow": None} if value is None else value.to_json()


class Read(NamedTuple, Generic[V]):
    """A setting on which its row and its newest entry agree; ``entry`` is None where it was never set."""

    setting: Setting[V]
    entry: Entry | None


def read_policy(connection: Connection, service: str) -> Read[CallPolicy | None]:
    """The service's policy. Raises LedgerContradicted where its row differs from its newest entry: the row was altered,
    removed or brought back."""
    with _as_written(f"the policy of {service}"):
        found = policies.newest_policy(connection, service)
        policy = None if found is None else policy_in(_committed(found), found.evidence)
        seq = _seq_of(found, "policy")
    if policies.policy(connection, service) != _row(seq, policy):
        raise LedgerContradicted(f"the row of {service}'s policy differs from its newest entry in the ledger")
    return Read(Setting(seq, policy), found and found.entry)


def read_settings(connection: Connection) -> Read[DomainSettings]:
    """The domain's settings. Raises LedgerContradicted as `read_policy` does."""
    with _as_written("the domain's settings"):
        found = policies.newest_domain(connection)
        settings = None if found is None else DomainSettings.from_json(found.entry.data["settings"])
        seq = _seq_of(found, "settings")
    if policies.domain(connection) != _row(seq, settings):
        raise LedgerContradicted("the row of the domain's settings differs from their newest entry in the ledger")
    return Read(Setting(seq, settings or DomainSettings()), found and found.entry)


@contextmanager
def _as_written(what: str) -> Iterator[None]:
    """Reports entries that cannot be read as altered: the registry writes readable ones."""
    try:
        yield
    except (MalformedToken, InvalidName, KeyError, TypeError, AttributeError) as error:
        raise LedgerContradicted(f"{what}: an entry was altered: {error}") from error


def _committed(found: SettingEntry) -> Entry:
    """The entry, whose digest matches its evidence. Raises MalformedToken."""
    digest = None if found.evidence is None else evidence_digest(found.evidence)
    if digest != found.entry.evidence:
        raise MalformedToken("the evidence does not match the digest in the entry")
    return found.entry


def _seq_of(found: SettingEntry | None, member: str) -> int:
    """The number of the entry that set the value; 0 where none did, or where the newest entry removed it."""
    return 0 if found is None or found.entry.data[member] is None else found.entry.seq


def _row(seq: int, setting: CallPolicy | DomainSettings | None) -> SettingRow | None:
    return None if setting is None else SettingRow(seq, text_of(setting))


def _check_seen(before: int, seen: Collection[int]) -> None:
    if before not in seen:
        raise PreconditionFailed(f"entry {before} set the current value, the request names {sorted(seen)}")
