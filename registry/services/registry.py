"""All use cases of one registry, built once: the web application and the commands call them."""

import time
from collections.abc import Callable

from peerseal.errors import ConfigurationError
from registry.services.access.callers import Clients, DatabaseKeys, caller_verifier
from registry.services.access.console_sessions import ConsoleSessions
from registry.services.access.issuer_sign_in import IssuerSignIn
from registry.services.access.operators import Operators
from registry.services.access.token_endpoint import AccessTokens, TokenExchange
from registry.services.authority.authority import AuthoritySource
from registry.services.authority.fork_guard import ForkGuard
from registry.services.authority.ledger_watch import LedgerWatch
from registry.services.documents.changes import ChangesFeed
from registry.services.documents.current import CurrentLists
from registry.services.documents.federation import Federations
from registry.services.documents.ledger import LedgerView
from registry.services.documents.ledger_pages import LedgerPages
from registry.services.documents.policies import Policies
from registry.services.documents.publish import Publisher, SettingDocuments
from registry.services.housekeeping import Housekeeping
from registry.services.insight.activity import Activity
from registry.services.insight.overview import Overview
from registry.services.insight.trust_graph import TrustGraphs
from registry.services.keys.admit import Applicants, KeyAdmission
from registry.services.keys.records import Audit, KeyEnding, Records
from registry.services.keys.rights import JoinTokens, Platforms, read_rules
from registry.services.keys.service_views import ServiceViews
from registry.services.readiness import Readiness, basic_checks
from registry.services.recovery.histories import HistoryDeclarations
from registry.services.setup.keyfiles import read_sealer
from registry.services.use_case import Node
from registry.services.witnesses.cosigning import Cosigning
from registry.settings import Settings
from registry.storage.durability import DurabilityGuard
from registry.storage.engine import POSTGRESQL, DatabaseTimeouts, create_engine
from registry.storage.queries.used_tokens import DatabaseReplayGuard
from registry.storage.revisions import revisions
from registry.storage.unit import Store


class Registry:
    """The use cases of one registry. Building them opens no connection."""

    def __init__(
        self, settings: Settings, clock: Callable[[], float] = time.time, timeouts: DatabaseTimeouts | None = None
    ) -> None:
        """Reads the keys from their files. Raises ConfigurationError."""
        unguarded = store_of(settings, timeouts)
        self.settings = settings
        self.clock = clock
        self.fork_guard = ForkGuard.of(settings, unguarded, clock)
        self.store = unguarded.guarded(self.fork_guard)
        self.authority = AuthoritySource(settings, self.store, self.fork_guard, clock)
        self.watch = LedgerWatch(settings, self.store, self.fork_guard, self.authority)
        self.checks = basic_checks(self.store, self.authority, clock)
        self.checks.for_writing("ledger", self.watch.check)
        self.histories = HistoryDeclarations(unguarded, clock)
        self.housekeeping = Housekeeping(self.store, settings.limits, clock)
        changed = revisions(self.store.engine)
        most = settings.limits.tiles_cached
        self.ledger = LedgerView(self.store, changed, self.authority, clock, lambda: self.fork_guard.note, most)
        self._add_use_cases(Node(self.store, changed, self.authority, self.ledger, settings.limits, clock))

    def _add_use_cases(self, node: Node) -> None:
        keys, guard = DatabaseKeys(node.store, node.authority), DatabaseReplayGuard(node.store, node.clock)
        clients = Clients(keys, guard, node.clock)
        sealer = read_sealer(self.settings.sealing_key_file)
        self.callers = caller_verifier(keys, guard, node.clock)
        self.join_tokens = JoinTokens(node, sealer)
        self.admission = KeyAdmission(node, self.join_tokens)
        self.applicants = Applicants(node, self.admission)
        self.platforms = Platforms(read_rules(self.settings.oidc_file), node.authority, clock=node.clock)
        self.ending = KeyEnding(node)
        self.records = Records(node)
        self.service_views = ServiceViews(node)
        self.audit = Audit(node)
        self.operators = Operators(node)
        self.console_sessions = ConsoleSessions(node, self.operators, guard)
        issuer = self.settings.operator_issuer
        self.issuer_sign_in = None if issuer is None else IssuerSignIn(issuer, node.clock)
        self.policies = Policies(node)
        self.federations = Federations(node)
        self.exchange = TokenExchange(node, keys, self.policies, clients)
        self.access_tokens = AccessTokens(node, clients)
        self.publisher = Publisher(node)
        self.documents = SettingDocuments(node)
        self.changes = ChangesFeed(node)
        self.current = CurrentLists(node)
        self.overview = Overview(node)
        self.activity = Activity(node)
        self.trust_graphs = TrustGraphs(node)
        self.ledger_pages = LedgerPages(node)
        self.cosigning = Cosigning(self.settings, node)

    def cached_bytes(self) -> dict[str, int]:
        """Bytes that the caches of this process hold, by what they keep."""
        return {
            "documents": self.publisher.held,
            "policies": self.documents.held,
            "changes": self.changes.held + self.current.held,
            "tiles": self.ledger.held + self.fork_guard.held,
        }

    def readiness(self) -> Readiness:
        """Whether this node can read, and whether it can write too."""
        return self.checks.now()


def store_of(settings: Settings, timeouts: DatabaseTimeouts | None = None) -> Store:
    """The database that the settings name. Raises ConfigurationError."""
    guard = DurabilityGuard(settings.allow_async_replication)
    engine = create_engine(settings.database_url, timeouts, settings.limits.database_connections)
    listen = create_engine(settings.listen_url) if settings.listen_url else None
    if listen is not None and {engine.dialect.name, listen.dialect.name} != {POSTGRESQL}:
        raise ConfigurationError(
            "REGISTRY_LISTEN_URL is for PostgreSQL behind a pooler; it leads to "
            f"{listen.dialect.name}, and the database is {engine.dialect.name}: unset it"
        )
    return Store(engine, guard, listen)
