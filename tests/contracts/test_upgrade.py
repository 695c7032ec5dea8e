"""A database of the first schema, with data in it, brought up to date: it goes on, and `verify` finds it whole."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from cryptography.fernet import Fernet
from sqlalchemy import Connection, text

from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import ledger_jwk
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof
from registry.services.recovery.verify import verify
from registry.services.setup import keyfiles
from registry.settings import Settings
from registry.storage import migrate as migrating
from registry.storage import revisions as revisions_module
from registry.storage.engine import WRITES, create_engine
from registry.storage.schema import RELEASED_REVISION
from tests.registry.driver import DOMAIN, Clock, Driver, settings_at
from tests.support.released import migrated, populate
from tests.support.waiters import waiters

KEYS = 300
OWNER = service_id(DOMAIN, "billing")
WEEK = 7 * 24 * 3600


class FirstRelease:
    """Writes what the first schema's registry wrote: entries with their proofs in them, and no tree."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now
        self.size = 0

    def append(self, kind: str, **said: Any) -> int:
        self.size += 1
        entry = {"seq": self.size, "time": self._now, "type": kind, "service": None, "kid": None}
        entry |= {"by": {"local": "cli"}, "proof": None, "data": {}} | said
        self.insert("entries", body=canonical_json(entry), **{name: entry[name] for name in _COLUMNS})
        self._connection.execute(text("UPDATE ledger_head SET size = :size"), {"size": self.size})
        return self.size

    def insert(self, table: str, **row: Any) -> None:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        self._connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)

    def admit(self, key: KeyPair, vouched_by: KeyPair | None = None) -> None:
        public, end = key.public, self._now + WEEK
        data: dict[str, Any] = {"alg": public.alg, "jwk": dict(public.jwk)}
        data |= {"active_from": self._now, "expires_at": end}
        proof = sign_proof(key, issuer=OWNER, audience=registry_id(DOMAIN), now=self._now)
        by = {"dev": "first come first served"}
        if vouched_by is not None:
            by = {"kid": make_kid(OWNER, vouched_by.public.thumbprint)}
        kid = make_kid(OWNER, public.thumbprint)
        seq = self.append("key_admitted", service="billing", kid=kid, by=by, proof=proof, data=data)
        self.insert(
            "keys",
            thumbprint=public.thumbprint,
            service="billing",
            spki=public.spki,
            admitted_seq=seq,
            admitted_by=json.dumps(by, separators=(",", ":")),
            vouched_by=None,
            active_from=self._now,
            active_until=end,
            expires_at=end,
        )


_COLUMNS = ("seq", "time", "type", "service", "kid")


def first_schema_with_data(url: str, settings: Settings, now: int) -> list[KeyPair]:
    """The keys that stand in it: more than a tile of entries."""
    engine = create_engine(url)
    with engine.execution_options(**{WRITES: True}).connect() as connection:
        command.upgrade(migrating.alembic_config(connection), "0001")
        old = FirstRelease(connection, now)
        named = _registry_keys(settings, now)
        document = sign_document(named, keyfiles.read_key_pair(settings.root_key_file, "root"))
        said = {"version": 1, "root": named.root.thumbprint, "domain": DOMAIN}
        old.append("registry_created", proof=document, data=said)
        old.insert("registry_documents", version=1, jws=document)
        _operator(old, now)
        held = [KeyPair.generate("ES256") for _ in range(KEYS)]
        for key in held:
            old.admit(key)
        old.insert("services", name="billing", seq=old.size)
        connection.commit()
    engine.dispose()
    return held


def _operator(old: FirstRelease, now: int) -> None:
    token = {"id": "0123456789abcdef", "role": "admin", "expires_at": now + WEEK}
    old.append("operator_created", data=token)
    old.insert("operator_tokens", secret_hash=secrets.token_bytes(32), created_at=now, revoked=False, **token)


def _registry_keys(settings: Settings, now: int) -> RegistryKeys:
    keyfiles.write_new(settings.root_key_file, keyfiles.new_key_pair())
    keyfiles.write_new(settings.signing_key_file, keyfiles.new_key_pair())
    keyfiles.write_new(settings.ledger_key_file, keyfiles.new_ledger_key())
    keyfiles.write_new(settings.sealing_key_file, Fernet.generate_key())
    root = keyfiles.read_key_pair(settings.root_key_file, "root").public
    signing = keyfiles.read_key_pair(settings.signing_key_file, "signing").public
    ledger_key = ledger_jwk(keyfiles.read_ledger_key(settings.ledger_key_file).public_key())
    return RegistryKeys(
        issuer=registry_id(DOMAIN),
        subject=DOMAIN,
        issued_at=now,
        expires_at=now + 365 * 24 * 3600,
        version=1,
        root=root,
        signing_keys=(signing,),
        ledger_key=ledger_key,
    )


@pytest.mark.parametrize("registry_database", ["sqlite", "postgres"], indirect=True)  # no word through a pooler
def test_a_database_of_the_release_before_tells_of_changes_from_now_on(
    registry_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions_module, "LOOK_AFTER", 60)  # so that PostgreSQL has to say so
    migrated(registry_database, "0002")
    upgraded = Driver(registry_database, tmp_path / "home")
    assert migrating.newest_revision() == migrating.SCHEMA_REVISION
    other = upgraded.node()
    with waiters(upgraded, 2) as calls:
        other.join_token("billing")
        assert [call.result(1).status_code for call in calls] == [200, 200]
    other.close()
    upgraded.close()


def test_a_database_of_the_first_schema_goes_on_as_a_ledger(registry_database: str, tmp_path: Path) -> None:
    clock = Clock()
    home = tmp_path / "old-home"
    settings = settings_at(registry_database, home)
    held = first_schema_with_data(registry_database, settings, int(clock()))

    upgraded = Driver(registry_database, home, clock)
    try:
        assert not verify(upgraded.store, settings.limits, clock=clock).differences
        published = upgraded.read(KeySetDocument, upgraded.got("/v1/services/billing/jwks.jwt"))
        assert {key.public.thumbprint for key in published.keys} == {key.public.thumbprint for key in held}
        assert upgraded.rotate(held[0], KeyPair.generate("ES256"), "billing").status_code == 201
        assert not verify(upgraded.store, settings.limits, clock=clock).differences
    finally:
        upgraded.close()


@pytest.mark.parametrize("years", [0, 2])
def test_a_populated_database_of_the_last_release_is_whole_after_the_upgrade_and_after_the_way_back(
    registry_database: str, tmp_path: Path, years: int
) -> None:
    clock, home = Clock(), tmp_path / "home"
    clock.forward(years * 365 * 24 * 3600)
    populate(registry_database, home)
    upgraded = Driver(registry_database, home, clock)  # `init` migrates, and has the root sign its document again
    try:
        assert not verify(upgraded.store, upgraded.settings.limits, clock=clock).differences
        upgraded.joined(KeyPair.generate("ES256"), "service-1")
        assert migrating.migrate_down(upgraded.store.engine) == RELEASED_REVISION
        assert not verify(upgraded.store, upgraded.settings.limits, clock=clock).differences
        assert upgraded.key_set("service-1").keys
    finally:
        upgraded.close()
