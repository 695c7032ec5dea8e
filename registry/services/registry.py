"""All use cases of one registry, put together once: what the web and the command line call."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from peerseal.errors import ConfigurationError
from peerseal.verify.request import Verifier
from registry.services.access.access_tokens import AccessTokens
from registry.services.access.audit import Audit
from registry.services.access.callers import DatabaseKeys, caller_verifier
from registry.services.access.clients import Clients
from registry.services.access.exchange import TokenExchange
from registry.services.access.operators import Operators
from registry.services.authority.authority import AuthoritySource
from registry.services.authority.fork_guard import ForkGuard
from registry.services.authority.ledger_watch import LedgerWatch
from registry.services.documents.changes import ChangesFeed
from registry.services.documents.ledger import LedgerView
from registry.services.documents.policies import Policies
from registry.services.documents.publish import Publisher
from registry.services.documents.setting_documents import SettingDocuments
from registry.services.housekeeping import Housekeeping
from registry.services.keys.admit import KeyAdmission
from registry.services.keys.applicants import Applicants
from registry.services.keys.end_keys import KeyEnding
from registry.services.keys.join_tokens import JoinTokens
from registry.services.keys.platforms import Platforms, read_rules
from registry.services.keys.records import Records
from registry.services.readiness import Checks, Readiness, basic_checks
from registry.services.recovery.histories import HistoryDeclarations
from registry.services.setup.keyfiles import Sealer, read
from registry.settings import Settings
from registry.storage.durability import DurabilityGuard
from registry.storage.engine import POSTGRESQL, DatabaseTimeouts, create_engine
from registry.storage.queries.used_tokens import DatabaseReplayGuard
from registry.storage.revisions import revisions
from registry.storage.unit import Store


@dataclass(frozen=True, slots=True)
class Registry:
    """One registry, ready to be asked. Making one opens no connection."""

    settings: Settings
    clock: Callable[[], float]
    store: Store
    fork_guard: ForkGuard
    watch: LedgerWatch
    authority: AuthoritySource
    callers: Verifier
    admission: KeyAdmission
    platforms: Platforms
    ending: KeyEnding
    publisher: Publisher
    policies: Policies
    exchange: TokenExchange
    access_tokens: AccessTokens
    documents: SettingDocuments
    changes: ChangesFeed
    ledger: LedgerView
    histories: HistoryDeclarations
    records: Records
    join_tokens: JoinTokens
    operators: Operators
    audit: Audit
    applicants: Applicants
    housekeeping: Housekeeping
    checks: Checks

    @classmethod
    def of(
        cls, settings: Settings, clock: Callable[[], float] = time.time, timeouts: DatabaseTimeouts | None = None
    ) -> Self:
        """With the keys in its files read. Raises ConfigurationError."""
        limits, unguarded = settings.limits, store_of(settings, timeouts)
        fork_guard = ForkGuard.of(settings, unguarded, clock)
        store = unguarded.guarded(fork_guard)
        authority = AuthoritySource(settings, store, fork_guard, clock)
        tokens = JoinTokens(store, authority, Sealer(read(settings.sealing_key_file, "sealing key")), limits, clock)
        admission = KeyAdmission(store, authority, tokens, limits, clock)
        changed = revisions(store.engine)
        ledger = LedgerView(store, changed, authority, clock, lambda: fork_guard.note)
        keys, guard = DatabaseKeys(store, authority), DatabaseReplayGuard(store, clock)
        policies = Policies(store, authority, limits, clock)
        watch = LedgerWatch(settings, store, fork_guard, authority)
        checks = basic_checks(store, authority, clock)
        checks.for_writing("ledger", watch.check)
        clients = Clients(keys, authority, guard, clock)
        return cls(
            settings=settings,
            clock=clock,
            store=store,
            fork_guard=fork_guard,
            watch=watch,
            authority=authority,
            callers=caller_verifier(keys, guard, clock),
            admission=admission,
            platforms=Platforms(read_rules(settings.oidc_file), authority, clock=clock),
            ending=KeyEnding(store, authority, clock),
            publisher=Publisher(store, changed, authority, ledger, limits, clock),
            policies=policies,
            exchange=TokenExchange(keys, authority, policies, clients, limits, clock),
            access_tokens=AccessTokens(clients, authority, clock),
            documents=SettingDocuments(store, changed, authority, ledger, limits, clock),
            changes=ChangesFeed(store, changed, authority, ledger, limits, clock),
            ledger=ledger,
            histories=HistoryDeclarations(unguarded, clock),
            records=Records(store, authority, limits, clock),
            join_tokens=tokens,
            operators=Operators(store, limits, clock),
            audit=Audit(store, limits),
            applicants=Applicants(store, authority, admission, limits, clock),
            housekeeping=Housekeeping(store, limits, clock),
            checks=checks,
        )

    def readiness(self) -> Readiness:
        """Whether this node can read, and whether it can write too."""
        return self.checks.now()


def store_of(settings: Settings, timeouts: DatabaseTimeouts | None = None) -> Store:
    """The database that the settings name. Raises ConfigurationError."""
    guard = DurabilityGuard(settings.allow_async_replication)
    engine = create_engine(settings.database_url, timeouts)
    listen = create_engine(settings.listen_url) if settings.listen_url else None
    if listen is not None and {engine.dialect.name, listen.dialect.name} != {POSTGRESQL}:
        raise ConfigurationError("REGISTRY_LISTEN_URL is for PostgreSQL behind a pooler: leave it out")
    return Store(engine, guard, listen)
