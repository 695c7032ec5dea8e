"""The console's pages at a registry of 100,000 services: the time to the first byte, which is that of the whole page,
since pages are sent when they are complete."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from flask.testing import FlaskClient
from sqlalchemy import insert, text

from benchmarks.figures import Figure, Goal
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import KEY_ADMITTED, POLICY_SET
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.policies import CallPolicy
from registry.app import create_app
from registry.domain.keys import KeyRecord
from registry.domain.policy import text_of
from registry.services.access.operators import Role
from registry.services.registry import Registry
from registry.services.setup.initialise import initialise
from registry.settings import Settings
from registry.storage.batched_writes import Write
from registry.storage.engine import BULK_TIMEOUTS, create_engine
from registry.storage.queries import keys, ledger, services
from registry.storage.queries.ledger import Change
from registry.storage.tables import policies
from registry.storage.unit import Store

DOMAIN = "bench.internal"
SERVICES: Final = 100_000
CALLEES: Final = 2_000
CALLERS: Final = 5
"""Callers in the policy of each of the `CALLEES`."""
FLEET: Final = 1_000
"""Keys of the service ``fleet``, each of which vouched for the next one."""
GIANT: Final = 60_000
"""Keys of the service ``giant``, in the same way."""
CALLS: Final = 40
_WARM: Final = 5
_DAY: Final = 86_400
_GOAL = Goal("<", 50, "ms")
_KEY = KeyPair.generate("ES256").public
_INVENTED: Final = (
    """INSERT INTO services
    SELECT 's-' || lpad(CAST(n AS text), 6, '0'), mod(n, :fleet) + 1 FROM generate_series(1, :services) n""",
    "INSERT INTO services VALUES ('giant', :fleet)",
    """INSERT INTO keys
    SELECT left(md5(CAST(n AS text)) || md5(CAST(-n AS text)), 42) || 'A', 's-' || lpad(CAST(n AS text), 6, '0'), :spki,
        n, '{"join_token":"aaaaaaaaaaaaaaaa"}', NULL, :now, :end, :end FROM generate_series(1, :services) n""",
    """INSERT INTO keys
    SELECT made.thumbprint, 'giant', :spki, made.n, '{"kid":"' || :owner || '/' || made.voucher || '"}', made.voucher,
        :now, :end, :end
    FROM (SELECT n, 'giant' || lpad(CAST(n AS text), 37, '0') || 'A' AS thumbprint,
        'giant' || lpad(CAST(n - 1 AS text), 37, '0') || 'A' AS voucher FROM generate_series(1, :giant) n) made""",
)
"""Rows that the database invents within seconds: with the numbers of entries that are about other services."""


def measure(folder: Path, database_url: str) -> Iterator[Figure]:
    """The median time of each page, to an operator who is signed in."""
    settings = Settings.from_environ(
        {"REGISTRY_HOME": str(folder), "REGISTRY_DATABASE_URL": database_url, "REGISTRY_CONSOLE": "on"}
    )
    initialise(settings, Store(create_engine(database_url)), DOMAIN)
    registry = Registry(settings)
    fleet = _filled(registry, database_url)
    with registry.store.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")  # as the server does by itself within a minute
        connection.commit()
    client = _signed_in(create_app(settings).test_client(), registry.operators.create(Role.VIEWER, _DAY)[1])
    for page, path in _pages(fleet).items():
        yield Figure(f"console: {page}", _median(client, path), "ms", goal=_GOAL)


def _median(client: FlaskClient, path: str) -> float:
    times = list[float]()
    for _ in range(_WARM + CALLS):
        started = time.perf_counter()
        answer = client.get(path)
        times.append(time.perf_counter() - started)
        assert answer.status_code in (200, 303), answer.text
    return 1e3 * median(times[_WARM:])


def _pages(fleet: Sequence[str]) -> Mapping[str, str]:
    return {
        "overview": "/console/",
        "services, first page": "/console/services",
        "services, a deep page": "/console/services?after=s-090000",
        "search by the beginning of a name": "/console/services?q=s-05",
        "search by kid": f"/console/services?q={service_id(DOMAIN, 'fleet')}/{fleet[500]}",
        "search by thumbprint": f"/console/services?q={fleet[10]}",
        "a service of 1,000 keys": "/console/services/fleet",
        "a service of 60,000 keys": "/console/services/giant",
        "60,000 keys, a deep page": f"/console/services/giant?key={'giant'}{GIANT // 2:037d}A",
        "a key with 999 vouchers": f"/console/services/fleet/keys/{fleet[-1]}",
        "graph of 2,000 services, 10,000 calls": "/console/graph",
        "graph of one service": "/console/graph?of=s-000001",
        "activity": "/console/activity",
        "activity of one service": "/console/activity?service=fleet",
        "ledger": "/console/ledger",
    }


def _signed_in(client: FlaskClient, token: str) -> FlaskClient:
    hidden = client.get("/console/sign-in").text.partition('name="csrf_token" value="')[2].partition('"')[0]
    answer = client.post("/console/sign-in", data={"csrf_token": hidden, "token": token})
    assert answer.status_code == 303, answer.text
    return client


# ---- the registry's state


def _filled(registry: Registry, database_url: str) -> Sequence[str]:
    """Fills the registry, and returns the thumbprints of the keys of ``fleet``. They and the policies have entries."""
    now, fleet = int(time.time()), [b64url(secrets.token_bytes(32)) for _ in range(FLEET)]
    _admit(registry, fleet, now)
    sizes = {"services": SERVICES, "fleet": FLEET, "giant": GIANT, "owner": service_id(DOMAIN, "giant")}
    with create_engine(database_url, BULK_TIMEOUTS).begin() as connection:
        for statement in _INVENTED:
            connection.execute(text(statement), {**sizes, "spki": _KEY.spki, "now": now, "end": now + 7 * _DAY})
    _set_policies(registry, now)
    return fleet


def _admit(registry: Registry, fleet: Sequence[str], now: int) -> None:
    vouchers = (None, *fleet)
    with registry.store.write() as connection:
        changes = [_admission(one, voucher, now) for one, voucher in zip(fleet, vouchers, strict=False)]
        seqs = [entry.seq for entry in ledger.append(connection, now, *changes).entries]
        rows = [_row(*row, now) for row in zip(fleet, vouchers, seqs, strict=False)]
        connection.execute(rows[0].statement, [row.parameters for row in rows])
        services.changed(connection, "fleet", seqs[-1])


def _admission(thumbprint: str, voucher: str | None, now: int) -> Change:
    data = {"alg": "ES256", "jwk": dict(_KEY.jwk), "active_from": now, "expires_at": now + 7 * _DAY}
    return Change(KEY_ADMITTED, "fleet", _kid(thumbprint), _by(voucher), {}, data)


def _row(thumbprint: str, voucher: str | None, seq: int, now: int) -> Write:
    end = now + 7 * _DAY
    return keys.addition(KeyRecord(thumbprint, "fleet", _KEY.spki, seq, _by(voucher), now, end, end), voucher)


def _by(voucher: str | None) -> Mapping[str, str]:
    return {"join_token": "a" * 16} if voucher is None else {"kid": _kid(voucher)}


def _kid(thumbprint: str) -> str:
    return make_kid(service_id(DOMAIN, "fleet"), thumbprint)


def _set_policies(registry: Registry, now: int) -> None:
    """Each of the first `CALLEES` services may be called by `CALLERS` others of them."""
    names = [f"s-{number:06d}" for number in range(1, CALLEES + 1)]
    found = [
        _policy([names[(31 * at + 101 * step) % CALLEES] for step in range(1, CALLERS + 1)]) for at in range(CALLEES)
    ]
    said = [Change(POLICY_SET, name, data={"policy": one.to_json()}) for name, one in zip(names, found, strict=True)]
    with registry.store.write() as connection:
        made = ledger.append(connection, now, *said).entries
        rows = zip(names, found, made, strict=True)
        values = [{"service": name, "seq": entry.seq, "body": text_of(policy)} for name, policy, entry in rows]
        connection.execute(insert(policies), values)
        for name, entry in zip(names, made, strict=True):
            services.changed(connection, name, entry.seq)


def _policy(callers: Sequence[str]) -> CallPolicy:
    return CallPolicy({service_id(DOMAIN, caller): frozenset(("orders:read", "orders:write")) for caller in callers})
