"""``peerseal monitor`` as its own process, against a real registry: it prints what happens without the owner's
knowledge, within two seconds."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import peerseal
from demo.processes import BIN
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from registry.storage.engine import create_engine
from registry.storage.tables import entries, ledger_head
from registry.storage.unit import Store
from tests.support.processes import Process
from tests.support.stack import Stack
from tests.support.webhook import webhook

pytestmark = pytest.mark.e2e

SERVICE = "billing"
WITHIN = 10.0
"""Seconds from a registration's answer to the line that reports it. The monitor looks once a second; a busy machine
takes longer."""


def identity(stack: Stack, folder: Path, **options: Any) -> peerseal.Identity:
    wired = {"registry": stack.registry_url, "join_token": stack.join_token(SERVICE), "key_dir": folder, "alg": "ES256"}
    return peerseal.Identity(SERVICE, **{**wired, **options}).start()


class Watching(Process):
    """A running monitor."""

    def ended(self) -> int:
        """Its exit code, waited for."""
        return self._process.wait(20)


def monitor(stack: Stack, log: Path, *arguments: str) -> Watching:
    command = [str(BIN / "python"), "-m", "peerseal", "monitor", SERVICE, "--registry", stack.registry_url, *arguments]
    return stack.keep(Watching("monitor", command, log=log))


def lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output().splitlines()]


def events(process: Process) -> list[str]:
    return [line["event"] for line in lines(process)]


def wait_for(process: Process, event: str, count: int = 1, timeout: float = 20.0) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = [line for line in lines(process) if line["event"] == event]
        if len(found) >= count:
            return found[-1]
        time.sleep(0.02)
    raise AssertionError(f"no {event} in {timeout} s: {process.output()}")


def wait_for_size(state: Path, size: int) -> None:
    """Until the monitor has read that many entries."""
    deadline = time.monotonic() + 20
    while not state.exists() or json.loads(state.read_bytes())["size"] < size:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def size_of(stack: Stack) -> int:
    with store_of(stack).read() as connection:
        return connection.execute(select(ledger_head.c.size)).scalar_one()


def store_of(stack: Stack) -> Store:
    return Store(create_engine(stack.registry_settings["REGISTRY_DATABASE_URL"]))


def test_a_key_registered_behind_the_owners_back_is_reported(stack: Stack, tmp_path: Path) -> None:
    stack.start_registry()
    owner, state = identity(stack, tmp_path / "keys"), tmp_path / "state"
    with webhook() as (url, posted):
        options = ("--key-dir", str(tmp_path / "keys"), "--state", str(state), "--webhook", url)
        watching = monitor(stack, tmp_path / "log", *options)
        wait_for_size(state, size_of(stack))
        stranger = identity(stack, tmp_path / "elsewhere")
        registered = time.monotonic()
        told = wait_for(watching, "unknown_key")
        assert time.monotonic() - registered < WITHIN
        assert told["kid"] == stranger.credentials.key_id
        assert "join_token" in told["by"]
        deadline = time.monotonic() + WITHIN
        while told not in posted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert told in posted
    watching.stop()
    assert watching.ended() == 1
    stranger.stop()
    owner.stop()


def test_rotations_by_the_owner_are_not_reported_and_a_restart_goes_on(stack: Stack, tmp_path: Path) -> None:
    """The monitor knows the owner's first key only; it runs somewhere else than where the keys are."""
    stack.start_registry()
    owner, state = identity(stack, tmp_path / "keys"), tmp_path / "state"
    watching = monitor(stack, tmp_path / "log", "--known", owner.credentials.key_id, "--state", str(state))
    for _ in range(2):
        owner.rotate()
    wait_for_size(state, size_of(stack))
    watching.stop()
    assert watching.ended() == 0
    assert set(events(watching)) == {"join_token_created"}
    owner.rotate()
    once = monitor(stack, tmp_path / "again", "--state", str(state), "--once")
    assert (once.ended(), once.output()) == (0, "")
    owner.stop()


def test_a_rewritten_ledger_is_reported_and_ends_the_monitor(stack: Stack, tmp_path: Path) -> None:
    stack.start_registry()
    owner, state = identity(stack, tmp_path / "keys"), tmp_path / "state"
    watching = monitor(stack, tmp_path / "log", "--key-dir", str(tmp_path / "keys"), "--state", str(state))
    wait_for_size(state, size_of(stack))
    rewrite(store_of(stack))
    stack.operate("remember")  # the operator helps: a node alone would not sign another history
    stack.join_token("another")
    wait_for(watching, "inconsistent_ledger")
    assert watching.ended() == 4
    again = monitor(stack, tmp_path / "again", "--state", str(state), "--once")
    assert again.ended() == 4, "a restart does not forget"
    owner.stop()


def rewrite(store: Store) -> None:
    """The second entry with another time, and the head as it follows: nothing in the database contradicts it."""
    with store.write() as connection:
        bodies = list(connection.execute(select(entries.c.body).order_by(entries.c.seq)).scalars())
        bodies[1] = replace(Entry.decode(bodies[1]), time=1).encode()
        edge = Frontier()
        for body in bodies:
            edge = edge.appended(leaf_hash(body))
        changed = {"time": 1, "body": bodies[1], "leaf": leaf_hash(bodies[1])}
        connection.execute(update(entries).where(entries.c.seq == 2).values(**changed))
        connection.execute(update(ledger_head).values(size=edge.size, frontier=edge.encode()))
