"""A whole registry in this process, and the calls that services and operators make of it, signed for real."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from peerseal.protocol import jose
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.frame import Frame, read_document
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json, digest_header, strict_json_object
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import Entry, evidence_digest
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.proof import sign_proof
from peerseal.protocol.tokens.request import REQUEST_TYP, RequestToken
from registry.app import create_app
from registry.domain.errors import StorageUnavailable
from registry.domain.rebuild import JoinTokenState, OperatorState, PublicState
from registry.limits import Limits
from registry.services.authority.ledger_memory import FILE
from registry.services.recovery.compare import LOST
from registry.services.registry import Registry
from registry.services.setup.initialise import initialise
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.queries import keys, ledger
from registry.storage.revisions import PostgresRevisions, SqliteRevisions
from registry.storage.tables import domain_settings, join_tokens, operator_tokens, policies, registry_documents
from registry.storage.tables import keys as keys_table
from registry.storage.tables import services as services_table
from registry.storage.unit import Store
from registry.web import metrics
from tests.support.migrated import copy_schema
from tests.support.waiting import until

DOMAIN = "acme.internal"
JSON = {"Content-Type": "application/json"}
BY = {"local": "test"}

F = TypeVar("F", bound=Frame)


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: float = field(default_factory=lambda: float(int(time.time())))

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


def settings_at(url: str, home: Path, **changes: Any) -> Settings:
    """All tests come from one address, so it may be refused as often as it likes, unless a test says how often."""
    limits = changes.pop("limits", Limits())
    if limits.refusals_per_minute == Limits().refusals_per_minute:
        limits = replace(limits, refusals_per_minute=10**9)
    changes["limits"] = limits
    return Settings.from_environ({"REGISTRY_HOME": str(home), "REGISTRY_DATABASE_URL": url}, **changes)


class Driver:
    """One node. Further nodes of the same registry: `Driver.node`."""

    def __init__(self, url: str, home: Path, clock: Callable[[], float] = time.time, **changes: Any) -> None:
        self.url, self.home, self.clock = url, home, clock
        self.settings = settings_at(url, home, **changes)
        copy_schema(url)
        self.store = Store(create_engine(url))
        self.initialised = initialise(self.settings, self.store, DOMAIN, clock)
        self.pin = self.initialised.pin
        self.app = create_app(self.settings, clock)
        self.client = self.app.test_client()
        self.registry: Registry = self.app.extensions["peerseal-registry"]
        self.registry.changes.waiting.server_holds(1000)  # tests call it from threads of their own
        self.operator = {"Authorization": f"Bearer {self.initialised.operator_token}"}

    def node(self, **changes: Any) -> "Driver":
        """Another node on the same database and keys."""
        return Driver(self.url, self.home, self.clock, **changes)

    def forgetful_node(self) -> "Driver":
        """Another node, whose host remembers no ledger: it goes on from whatever the database has."""
        (self.home / FILE).unlink(missing_ok=True)
        return self.node()

    def fresh_node(self, **changes: Any) -> "Driver":
        """Another node, in a new container: it has the keys, and its host remembers no ledger."""
        (self.home / FILE).unlink(missing_ok=True)
        node = copy(self)
        node.settings = settings_at(self.url, self.home, **changes)
        node.app = create_app(node.settings, self.clock)
        node.client = node.app.test_client()
        node.registry = node.app.extensions["peerseal-registry"]
        return node

    def close(self) -> None:
        metrics.WORKERS.share_in(None)
        metrics.answered.count()  # waits for a timer that writes into this registry's home just now
        self.store.engine.dispose()
        self.registry.store.engine.dispose()

    def join_token(self, service: str, *, uses: int = 1, ttl: int = 600) -> JoinToken:
        return JoinToken.parse(self.registry.join_tokens.create(service, ttl, uses, BY).token)

    def proof(self, key: KeyPair, service: str, *, domain: str = DOMAIN, audience: str | None = None) -> str:
        audience = audience or registry_id(DOMAIN)
        return sign_proof(key, issuer=service_id(domain, service), audience=audience, now=self.clock())

    def post_key(self, service: str, body: Any, headers: dict[str, str] | None = None) -> TestResponse:
        data = body if isinstance(body, bytes) else canonical_json(body)
        return self.client.post(f"/v1/services/{service}/keys", data=data, headers={**JSON, **(headers or {})})

    def join(self, key: KeyPair, service: str, token: JoinToken) -> TestResponse:
        proof = self.proof(key, service)
        return self.post_key(service, {"proof": proof, "join": {"id": token.id, "mac": join_mac(token.mac_key, proof)}})

    def joined(self, key: KeyPair, service: str) -> KeyPair:
        """The key, registered with a join token of its own."""
        response = self.join(key, service, self.join_token(service))
        assert response.status_code == 201, response.data
        return key

    def rotate(self, old: KeyPair, new: KeyPair, service: str, *, voucher_of: str | None = None) -> TestResponse:
        body = canonical_json({"proof": self.proof(new, service)})
        path = f"/v1/services/{service}/keys"
        headers = self.signed(old, voucher_of or service, "POST", path, body, {"content-type": "application/json"})
        return self.post_key(service, body, headers)

    def signed(
        self,
        key: KeyPair,
        service: str,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> dict[str, str]:
        """The Authorization header of a call to the registry."""
        now, owner = int(self.clock()), service_id(DOMAIN, service)
        digests = digest_header(target.encode("ascii")), digest_header(body)
        token = RequestToken(owner, registry_id(DOMAIN), now, now, now + 60, new_jti(), method, *digests, headers or {})
        header = jose.encode_header(jose.Header(key.public.alg, make_kid(owner, key.public.thumbprint), REQUEST_TYP))
        return {"Authorization": f"Bearer {jose.compact(header, canonical_json(token.claims()), key.sign)}"}

    def end(
        self, key: KeyPair, service: str, reason: str, *, by: KeyPair | None = None, by_service: str | None = None
    ) -> TestResponse:
        """Ends a key: in its own name, in that of ``by``."""
        path = f"/v1/services/{service}/keys/{key.public.thumbprint}?reason={reason}"
        return self.client.delete(path, headers=self.signed(by or key, by_service or service, "DELETE", path))

    def operator_ends(self, key: KeyPair, service: str, reason: str = "compromised") -> TestResponse:
        path = f"/v1/services/{service}/keys/{key.public.thumbprint}?reason={reason}"
        return self.client.delete(path, headers=self.operator)

    def read(self, kind: type[F], jws: str) -> F:
        """A signed document, checked as a client checks it, from the pin on."""
        keys_jws = self.client.get("/.well-known/peerseal-registry").text
        signing = read_registry_keys(keys_jws, pin=self.pin, now=self.clock()).signing_keys
        signers = {make_kid(registry_id(DOMAIN), key.thumbprint): key for key in signing}
        return read_document(kind, jws, signers, now=self.clock(), domain=DOMAIN)

    def key_set(self, service: str, query: str = "") -> KeySetDocument:
        return self.read(KeySetDocument, self.got(f"/v1/services/{service}/jwks.jwt{query}"))

    def statement(self, service: str, key: KeyPair) -> KeyStatement:
        return self.read(KeyStatement, self.got(f"/v1/services/{service}/keys/{key.public.thumbprint}.jwt"))

    def changes(self, since: int) -> Changes:
        return self.read(Changes, self.got(f"/v1/changes?since={since}"))

    def got(self, path: str) -> str:
        response = self.client.get(path)
        assert response.status_code == 200, response.data
        return response.text


def tables_of(store: Store) -> PublicState:
    """What the tables say of everything that `registry.domain.rebuild` rebuilds."""
    with store.read() as connection:
        state = PublicState(size=ledger.head(connection))
        documents = select(registry_documents.c.jws).order_by(registry_documents.c.version)
        state.documents = list(connection.execute(documents).scalars())
        state.services = {row.name: row.seq for row in connection.execute(services_table.select())}
        for row in connection.execute(keys_table.select()):
            record = keys.find(connection, row.thumbprint)
            assert record is not None
            state.keys[row.thumbprint] = record
        for row in connection.execute(policies.select()):
            policy = None if row.body == LOST else CallPolicy.from_json(json.loads(row.body))
            public = policy is not None and not policy.restricted
            state.policies[row.service] = row.seq, policy if public else None
        for row in connection.execute(domain_settings.select()):
            state.settings = row.seq, DomainSettings.from_json(json.loads(row.body))
        for row in connection.execute(join_tokens.select()):
            times = row.created_at, row.expires_at
            state.join_tokens[row.id] = JoinTokenState(row.service, *times, row.uses, row.used, row.withdrawn)
        for row in connection.execute(operator_tokens.select()):
            times = row.created_at, row.expires_at
            state.operators[row.id] = OperatorState(row.role, *times, row.secret_hash, row.revoked)
    return state


def entries_of(store: Store) -> list[Entry]:
    with store.read() as connection:
        return list(ledger.read_entries(connection))


def evidence_of(store: Store, entry: Entry) -> dict[str, Any]:
    """What the entry commits to, which is kept next to it."""
    with store.look() as connection:
        evidence = ledger.evidence(connection, entry.seq)
    assert evidence is not None
    assert entry.evidence == evidence_digest(evidence)
    return strict_json_object(evidence)


def fail_revisions(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    """The database cannot be asked for ``question``, a method of `registry.storage.revisions.Revisions`."""

    def down(*_: object) -> None:
        raise StorageUnavailable("down")

    for revisions in (SqliteRevisions, PostgresRevisions):
        monkeypatch.setattr(revisions, question, down)


def outcome(response: TestResponse) -> tuple[int, str | None]:
    """The status and the error code of an answer."""
    return response.status_code, (response.get_json(silent=True) or {}).get("code")


def joined_at_once(registry: Driver, *newcomers: tuple[KeyPair, str, JoinToken]) -> list[int]:
    """The statuses of newcomers who wait while another writer holds the ledger's head, all but the first for the same
    transaction."""

    def join(newcomer: tuple[KeyPair, str, JoinToken]) -> int:
        return registry.join(*newcomer).status_code

    joining = registry.registry.admission.joining
    with ThreadPoolExecutor(len(newcomers)) as pool:
        with registry.store.write() as connection:
            ledger.lock_frontier(connection)
            answers = [pool.submit(join, newcomers[0])]
            until(lambda: joining.busy and not joining.waiting)
            answers += [pool.submit(join, newcomer) for newcomer in newcomers[1:]]
            until(lambda: joining.waiting == len(newcomers) - 1)
        return [answer.result() for answer in answers]
