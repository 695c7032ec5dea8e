"""Cases: one for each transaction of a user."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Column, Engine, Index, Integer, MetaData, String, Table, create_engine, insert, make_url, select
from sqlalchemy.exc import IntegrityError

from peerseal.inbox import create_tables
from peerseal.runtime.database_url import sqlalchemy_url

LISTED = 100
"""The most cases of one user that a list shows."""

metadata = MetaData()
CASES = Table(
    "cases",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("case_id", String(200), nullable=False, unique=True),
    Column("issuer", String(500), nullable=False),  # a user's name is unique at its issuer only
    Column("user_id", String(512), nullable=False),
    Column("opened_at", String(20), nullable=False),
)
Index("cases_of_user", CASES.c.issuer, CASES.c.user_id, CASES.c.number)


@dataclass(frozen=True, slots=True)
class Case:
    """The case of one transaction."""

    id: str
    user: str
    opened_at: str

    def to_json(self) -> dict[str, str]:
        """``{"caseID", "userID", "openedAt", "state"}``."""
        return {"caseID": self.id, "userID": self.user, "openedAt": self.opened_at, "state": "open"}


class CaseOfAnotherUser(Exception):
    """The case is another user's, or of another transaction."""


class Cases:
    """The cases in ``database``. ``clock`` gives seconds since the epoch."""

    def __init__(self, database: Engine, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def opened(self, case_id: str, issuer: str, user: str) -> tuple[Case, bool]:
        """The case, and whether it was opened now. Raises CaseOfAnotherUser."""
        now = f"{datetime.fromtimestamp(int(self._clock()), UTC):%Y-%m-%dT%H:%M:%SZ}"
        row = {"case_id": case_id, "issuer": issuer, "user_id": user, "opened_at": now}
        try:
            with self._database.begin() as connection:
                connection.execute(insert(CASES).values(row))
        except IntegrityError:
            return self._opened_before(case_id, issuer, user), False
        return Case(case_id, user, now), True

    def of(self, issuer: str, user: str) -> list[Case]:
        """A user's cases, the newest first."""
        theirs = select(CASES).where(CASES.c.issuer == issuer, CASES.c.user_id == user)
        with self._database.connect() as connection:
            rows = connection.execute(theirs.order_by(CASES.c.number.desc()).limit(LISTED)).all()
        return [Case(row.case_id, row.user_id, row.opened_at) for row in rows]

    def _opened_before(self, case_id: str, issuer: str, user: str) -> Case:
        with self._database.connect() as connection:
            row = connection.execute(select(CASES).where(CASES.c.case_id == case_id)).one()
        if (row.issuer, row.user_id) != (issuer, user):
            raise CaseOfAnotherUser(case_id)
        return Case(row.case_id, row.user_id, row.opened_at)


def open_database(url: str) -> Engine:
    """The database, with a missing table created. Safe to use after a fork."""
    url = sqlalchemy_url(url)
    waits = {"timeout": 30} if make_url(url).get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=waits)
    create_tables(engine, metadata)
    return engine
