"""A registry as it is after months: 2,000 services with policies, keys of several days, applicants, join tokens."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert

from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import KEY_ADMITTED, POLICY_SET
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.policies import CallPolicy
from registry.domain.policy import policy_from, said_of, text_of
from registry.services.access.operators import Role
from registry.services.keys.records import Reason
from registry.storage.queries import ledger
from registry.storage.queries.ledger import Change
from registry.storage.tables import keys, policies, services
from tests.registry.driver import BY, DOMAIN, Clock, Driver

SERVICES: Final = 2_000
CALLERS: Final = 6
"""Callers that each policy names, but those of gateways, which one service calls: 10,000 calls in all."""
SHOP: Final = "shop"
"""The service that has a history, callers and callees."""
TILL: Final = "till"
"""Another one with such a history."""
PARTNER: Final = "partner.example"
"""A foreign domain that is believed, and replaces its root."""
FOREIGN: Final = f"{PARTNER}/billing"
_DAY = 86_400
_DAYS = 6
_PARTS = ("orders", "billing", "stock", "search", "mail", "audit", "users", "prices", "routes", "claims")
_ROLES = ("gateway", "api", "worker", "batch", "store")
"""Each calls the next one."""
_FEW = {
    SHOP: {"web": ["orders:read", "orders:write"], "mobile": ["orders:read"], "partners": ["orders:read"]},
    "billing": {SHOP: ["charge"], "invoicing": ["charge", "refund"]},
    "stock": {SHOP: ["stock:reserve"], "warehouse": ["stock:read", "stock:write"]},
    "payments": {"billing": ["pay"]},
    "bank-link": {"payments": ["transfer"]},
    "mail": {"billing": ["mail:send"], "stock": ["mail:send"]},
    "status": {"*": ["status:read"], FOREIGN: ["status:read", "status:write"], "stranger.example/spy": ["status:read"]},
}
_FOREIGN_DOMAINS: Final = 11
"""Domains that the federation has besides `PARTNER`: two pages in all."""


@dataclass(frozen=True)
class Populated:
    """The registry in this process, on the database that the real one uses too; and what tests look for."""

    driver: Driver
    tokens: dict[Role, str]
    key: str
    """The thumbprint of the oldest key of `SHOP`, which vouched for the ones after it."""
    doomed: str
    """That of `TILL`, which a test ends."""
    applicants: Sequence[str]
    """Thumbprints of keys that wait, all for the service ``reports``, for tests to decide. Others wait for ever."""

    @property
    def operator_id(self) -> str:
        """The id of the viewer's token."""
        return self.tokens[Role.VIEWER].split(".")[1]


def populated(root: Path) -> Populated:
    """A new registry below ``root`` with all of that."""
    clock = Clock(float(int(time.time()) - _DAYS * _DAY))
    home = root / "home"
    driver = Driver(f"sqlite:///{root / 'registry.db'}", home, clock, console=True, applicants=True)
    first, doomed = _history(driver, clock, SHOP, _DAY), _history(driver, clock, TILL, _DAY // 24)
    clock.now = float(int(time.time()))
    _bulk(driver)
    for callee, allow in _FEW.items():
        driver.registry.policies.set_policy(callee, {"allow": allow}, range(SERVICES * 4), BY)
    driver.registry.federations.replace({"domains": list(_federated())}, {0}, BY)
    for service, uses in (("reports", 1), ("web", 20)):
        driver.join_token(service, uses=uses)
    applicants = [_applicant(driver, service) for service in (*["reports"] * 3, "exports", "imports")][:3]
    tokens = {role: driver.registry.operators.create(role, _DAY)[1] for role in Role}
    return Populated(driver, tokens, first.public.thumbprint, doomed.public.thumbprint, applicants)


def _federated() -> Iterator[dict[str, Any]]:
    """Foreign domains: one with long lists and two roots, and others without limits."""
    services = ["billing", *(f"partner-service-{number}" for number in range(30))]
    limits = {"services": services, "scopes": ["status:read", "orders:read"], "transactions": True}
    for number in range(2):
        urls = [f"https://registry-{number}.{PARTNER}", f"https://mirror-{number}.{PARTNER}"]
        yield {"domain": PARTNER, "urls": urls, "root": KeyPair.generate("ES256").public.thumbprint, **limits}
    for number in range(_FOREIGN_DOMAINS):
        domain = f"division-{number:02}.a-company-with-a-long-name.example"
        root = KeyPair.generate("ES256").public.thumbprint
        yield {"domain": domain, "urls": [f"https://registry.{domain}"], "root": root}


def _applicant(driver: Driver, service: str) -> str:
    """The thumbprint of a new key that waits for an operator."""
    key = KeyPair.generate("ES256")
    assert driver.post_key(service, {"proof": driver.proof(key, service)}).status_code == 202
    return key.public.thumbprint


def _history(driver: Driver, clock: Clock, service: str, every: int) -> KeyPair:
    """A host that rotated ``every`` so many seconds, and another one whose key was stolen. Returns the first key."""
    first = key = driver.joined(KeyPair.generate("ES256"), service)
    for _ in range(_DAYS - 1):
        clock.forward(every)
        new = KeyPair.generate("ES256")
        assert driver.rotate(key, new, service).status_code == 201
        key = new
    stolen = driver.joined(KeyPair.generate("ES256"), service)
    assert driver.registry.ending.end(service, stolen.public.thumbprint, Reason.COMPROMISED, BY)
    return first


def _names() -> list[str]:
    names = [f"{part}-{role}-{number:02d}" for number in range(SERVICES) for part in _PARTS for role in _ROLES]
    return names[:SERVICES]


def _bulk(driver: Driver) -> None:
    """Services with a key and a policy each. The entries are real, but for the evidence of the keys."""
    names, now = _names(), int(driver.clock())
    made = [(name, KeyPair.generate("ES256"), policy) for name, policy in zip(names, _policies(names), strict=True)]
    with driver.registry.store.write() as connection:
        changes = [change for each in made for change in _changes(*each, now)]
        numbers = [entry.seq for entry in ledger.append(connection, now, *changes).entries]
        rows = [_rows(*each, now, *numbers[2 * at : 2 * at + 2]) for at, each in enumerate(made)]
        for table, at in ((services, 0), (keys, 1), (policies, 2)):
            connection.execute(insert(table), [row[at] for row in rows])


def _policies(names: Sequence[str]) -> Iterator[CallPolicy]:
    tiers = len(_ROLES)
    for number in range(len(names)):
        near = range(number - 1, number - 1 + tiers * 13 * CALLERS, tiers * 13)
        callers = [names[at % len(names)] for at in near] if number % tiers else ["edge"]
        policy = policy_from({"allow": {caller: ["read"] for caller in callers}}, DOMAIN)
        assert policy is not None
        yield policy


def _changes(service: str, key: KeyPair, policy: CallPolicy, now: int) -> tuple[Change, Change]:
    public = key.public
    data = {"alg": public.alg, "jwk": dict(public.jwk), "active_from": now, "expires_at": now + 7 * _DAY}
    kid = make_kid(service_id(DOMAIN, service), public.thumbprint)
    said, evidence = said_of(policy)
    admitted = Change(KEY_ADMITTED, service, kid, {"oidc": "platform.example"}, data=data)
    return admitted, Change(POLICY_SET, service, by=BY, evidence=evidence, data=said)


def _rows(
    service: str, key: KeyPair, policy: CallPolicy, now: int, admitted: int, policy_set: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    end = now + 7 * _DAY
    own = {"thumbprint": key.public.thumbprint, "service": service, "spki": key.public.spki}
    right = {"admitted_seq": admitted, "admitted_by": json.dumps({"oidc": "platform.example"}), "vouched_by": None}
    times = {"active_from": now, "active_until": end, "expires_at": end, "revoked_at": None, "revoked_seq": None}
    policy_row = {"service": service, "seq": policy_set, "body": text_of(policy)}
    return {"name": service, "seq": policy_set}, {**own, **right, **times}, policy_row
