"""The whole site under load, what happens to it, and the table of what each event cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peerseal.errors import PeersealError
from peerseal.protocol.join import JoinToken
from tests.ha.cluster import Cluster, Member, until
from tests.ha.deployment import DATABASE, Deployment
from tests.ha.hosts import Network
from tests.ha.load import Attempt, Registrations, Series, Trickle, longest, reading
from tests.ha.peers import PEERS, Peers, Refusal

REGISTRATIONS: Final = 15
READS: Final = 20
"""Calls a second through the balancer."""
PROBES: Final = 10
"""Calls a second of each sort to each node itself."""
CALM: Final = 2.0
"""Seconds of load before an event, and after it."""
_SERVICES: Final = tuple(f"crowd-{number}" for number in range(20))
_USES: Final = 500


@dataclass(frozen=True, slots=True)
class Costs:
    """What an event cost. ``lost`` are registrations that were acknowledged and are not in the database;
    ``refusals`` are the good calls that peers refused meanwhile, ``verifying`` counts the peers that verify a service
    which came later. Where lost ones came back, ``lost_at_first`` were."""

    event: str
    reads: Series
    writes: Series
    health: Sequence[Attempt]
    warm: Sequence[Attempt]
    lost: int
    lost_at_first: int | None
    refusals: Sequence[Refusal]
    verifying: int

    @property
    def slowest_refusal(self) -> float:
        """Seconds until the last of those whose writes were refused knew it."""
        return longest(self.writes.refused)

    def cells(self) -> tuple[str, ...]:
        """This row of the table."""
        return (
            self.event,
            *(f"{len(series.refused)} of {len(series.attempts)}" for series in (self.reads, self.writes)),
            f"{self.writes.outage:.1f} s",
            f"{self.slowest_refusal:.1f} s",
            *(f"{longest(attempts) * 1000:.0f} ms" if attempts else "-" for attempts in (self.health, self.warm)),
            str(self.lost) if self.lost_at_first is None else f"{self.lost_at_first}, then {self.lost}",
            f"{len({refusal.peer for refusal in self.refusals})} of {PEERS}",
            f"{self.verifying} of {PEERS}",
        )


HEADINGS: Final = (
    "event",
    "reads refused",
    "writes refused",
    "for",
    "slowest refusal",
    "/healthz",
    "warm read",
    "lost",
    "peers that refused",
    "peers that verify a newcomer",
)


class Table:
    """One row for each event, in the order in which they happened."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, ...]] = [HEADINGS]

    def add(self, *cells: str) -> None:
        """A row."""
        self._rows.append(cells)

    def leave_out(self, event: str, why: str) -> None:
        """A row that names an event which cannot be made to happen here."""
        self.add(event, f"left out: {why}", *[""] * (len(HEADINGS) - 2))

    def text(self) -> str:
        """All rows, in columns."""
        widths = [max(map(len, column)) for column in zip(*(row for row in self._rows if row[-1]), strict=True)]
        widths[0] = max(len(row[0]) for row in self._rows)
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in self._rows]
        return "\n".join(lines)


class Event:
    """One that goes on, under load. ``costs`` are known once it is over."""

    costs: Costs

    def __init__(self, name: str, registrations: Registrations, writing: Trickle) -> None:
        self.name = name
        self.registrations = registrations
        self.lost_at_first: int | None = None
        self._writing = writing

    def wait_for_writes(self, patience: float = 30.0) -> None:
        """Until a registration that begins from now on succeeds."""
        now = time.monotonic()
        until(lambda: self._writing.series.succeeded_since(now), "registrations succeed again", patience)

    def stop_writing(self) -> None:
        """Let no registration be on its way any more."""
        self._writing.stop()

    def go_on_writing(self) -> None:
        """After `stop_writing`."""
        self._writing.start()


class Site:
    """Everything that runs."""

    def __init__(self, cluster: Cluster, deployment: Deployment, peers: Peers, *, can_cut_off: bool) -> None:
        self.cluster, self.deployment, self.peers = cluster, deployment, peers
        self.can_cut_off = can_cut_off
        """Whether hosts can be made to vanish."""
        self.table = Table()
        self._tokens = {name: JoinToken.parse(deployment.join_token(name, uses=_USES)) for name in _SERVICES}
        self._newcomers = 0

    @contextmanager
    def event(self, name: str, *, probed: bool = True) -> Iterator[Event]:
        """The load, while the block makes something happen; at its end the row of the table, whatever came of it. The
        nodes themselves are called where they are ``probed``, and not only through the balancer."""
        self.deployment.wait_until_serving()
        url, nodes = self.deployment.url, self.deployment.nodes if probed else []
        registrations = Registrations(url, self._tokens)
        documents = [f"/v1/services/peer-{number}/jwks.jwt" for number in range(3)]
        reading_on = Trickle(reading([url + document for document in documents]), READS)
        writing = Trickle(registrations.attempt, REGISTRATIONS)
        health = [Trickle(reading([f"{node.url}/healthz"]), PROBES) for node in nodes]
        warm = [Trickle(reading([node.url + document for document in documents]), PROBES) for node in nodes]
        event, began = Event(name, registrations, writing), time.monotonic()
        try:
            with ExitStack() as load:
                for trickle in (reading_on, writing, *health, *warm):
                    load.enter_context(trickle)
                time.sleep(CALM)
                yield event
                time.sleep(CALM)
        finally:
            event.costs = Costs(
                event=event.name,
                reads=reading_on.series,
                writes=writing.series,
                health=[attempt for trickle in health for attempt in trickle.series.attempts],
                warm=[attempt for trickle in warm for attempt in trickle.series.attempts],
                lost=self.lost(registrations, self.cluster.wait_until_whole()),
                lost_at_first=event.lost_at_first,
                refusals=self.peers.refusals_since(began),
                verifying=self.verifying_newcomer(),
            )
            self.table.add(*event.costs.cells())

    def lost(self, registrations: Registrations, member: Member) -> int:
        """How many acknowledged registrations that member does not have."""
        with self.cluster.session(member, DATABASE) as connection:
            held = {thumbprint for (thumbprint,) in connection.execute("SELECT thumbprint FROM keys")}
        return sum(newcomer.key.public.thumbprint not in held for newcomer in registrations.acknowledged)

    def ledger_size(self, member: Member) -> int:
        """Entries of the ledger that it has."""
        with self.cluster.session(member, DATABASE) as connection:
            row = connection.execute("SELECT size FROM ledger_head").fetchone()
        assert row is not None
        return int(row[0])

    def verifying_newcomer(self) -> int:
        """How many peers verify a service that registers now."""
        self._newcomers += 1
        try:
            newcomer = self.peers.join(f"newcomer-{self._newcomers}")
        except (AssertionError, PeersealError):  # no join token, or no registration
            return 0
        try:
            return len(self.peers.that_verify(newcomer))
        finally:
            newcomer.stop()


@contextmanager
def running_site(network: Network, folder: Path, logs: Path) -> Iterator[Site]:
    """All of it, started; stopped at the end."""
    with (
        Cluster(network, folder, logs) as cluster,
        Deployment(cluster, folder, logs) as deployment,
        Peers(deployment.url, deployment.join_token, folder) as peers,
    ):
        yield Site(cluster, deployment, peers, can_cut_off=network.can_cut_off)
