"""``kill -9`` of the registry in the middle of registrations: acknowledged keys are there, and none is half."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

import peerseal
from peerseal.errors import FetchError, TrustUnavailable
from peerseal.identity.enrolment import Enrolment
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REGISTRATIONS = 200


def test_every_acknowledged_key_survives_a_kill_and_entries_have_no_gap(stack: Stack, registry_database: str) -> None:
    registry = stack.start_registry(workers=2)
    token = JoinToken.parse(stack.join_token("batch", uses=REGISTRATIONS))
    trust = peerseal.TrustStore(stack.registry_url, pin=token.pin)
    enrolment = Enrolment("batch", trust, time.time)
    keys = [KeyPair.generate("ES256") for _ in range(REGISTRATIONS)]
    assert trust.domain == stack.domain

    acknowledged: list[str] = []

    def register(key: KeyPair) -> None:
        try:
            acknowledged.append(enrolment.join(key, token).kid)
        except (FetchError, TrustUnavailable):
            return
        if len(acknowledged) == REGISTRATIONS // 2:
            registry.kill()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(register, keys))

    assert REGISTRATIONS // 2 <= len(acknowledged) < REGISTRATIONS, "it was killed half way"
    stack.start_registry(workers=2)
    listed = {key["kid"] for key in stack.operate_json("keys", "batch") if key["state"] == "active"}
    assert set(acknowledged) <= listed
    with create_engine(registry_database).connect() as database:
        seqs = list(database.execute(text("SELECT seq FROM entries ORDER BY seq")).scalars())
        admitted = set(database.execute(text("SELECT kid FROM entries WHERE type = 'key_admitted'")).scalars())
        size = database.execute(text("SELECT size FROM ledger_head")).scalar_one()
    assert seqs == list(range(1, size + 1)), "no entry is missing or double"
    assert admitted == listed, "no key without its entry, no entry without its key"
