"""All use cases of one registry, put together once: what the web and the command line call."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from peerseal.errors import PeersealError
from peerseal.peers.verify import Verifier
from registry.services.admit import Admission
from registry.services.authority import AuthoritySource
from registry.services.callers import caller_verifier
from registry.services.changes import ChangesFeed
from registry.services.end_keys import KeyEnding
from registry.services.join_tokens import JoinTokens
from registry.services.keyfiles import Sealer, read
from registry.services.operators import Operators
from registry.services.publish import Publisher
from registry.services.records import Records
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.migrate import SCHEMA_REVISION, current_revision
from registry.storage.revisions import revisions
from registry.storage.unit import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registry:
    """One registry, ready to be asked. Making one opens no connection."""

    settings: Settings
    clock: Callable[[], float]
    store: Store
    authority: AuthoritySource
    callers: Verifier
    admission: Admission
    ending: KeyEnding
    publisher: Publisher
    changes: ChangesFeed
    records: Records
    join_tokens: JoinTokens
    operators: Operators

    @classmethod
    def of(cls, settings: Settings, clock: Callable[[], float] = time.time) -> Self:
        """With the keys in its files read. Raises ConfigurationError."""
        limits, store = settings.limits, Store(create_engine(settings.database_url))
        authority = AuthoritySource(settings, store, clock)
        tokens = JoinTokens(store, authority, Sealer(read(settings.sealing_key_file, "sealing key")), limits, clock)
        changed = revisions(store.engine)
        return cls(
            settings=settings,
            clock=clock,
            store=store,
            authority=authority,
            callers=caller_verifier(store, authority, clock),
            admission=Admission(store, authority, tokens, limits, clock),
            ending=KeyEnding(store, authority, clock),
            publisher=Publisher(store, changed, authority, limits, clock),
            changes=ChangesFeed(store, changed, authority, limits, clock),
            records=Records(store, authority, limits, clock),
            join_tokens=tokens,
            operators=Operators(store, limits, clock),
        )

    def readiness(self) -> dict[str, bool]:
        """What calls need, and whether it is there: the database, its schema as this version knows it, the keys."""
        checks = {"database": False, "schema": False, "keys": False}
        try:
            with self.store.read() as connection:
                checks["database"] = True
                checks["schema"] = current_revision(connection) == SCHEMA_REVISION
            checks["keys"] = self.clock() < self.authority.current().keys.expires_at
        except (PeersealError, SQLAlchemyError) as error:
            log.warning("not ready: %s", error)
        return checks
