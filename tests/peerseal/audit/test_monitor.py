"""The monitor against a real registry's own web application, in this process: what it reports, what it fetches, and
that nothing but one history is believed."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from peerseal import __main__ as cli
from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.monitor import GRACE, Alert, Monitor
from peerseal.audit.monitor_state import MonitorState, kids_in, load_state, save_state
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_LIFETIME, RegistryKeys
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger import checkpoint
from peerseal.protocol.ledger.checkpoint import Checkpoint, encode_bundle, ledger_jwk, sign_checkpoint
from peerseal.protocol.ledger.entries import (
    FEDERATION_SET,
    KEY_ADMITTED,
    POLICY_SET,
    REGISTRY_KEYS_ISSUED,
    REGISTRY_RESTORED,
    Entry,
)
from peerseal.protocol.ledger.merkle import Frontier, NodeReader, leaf_hash
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.transport.fetch import Answer, Fetcher
from peerseal.transport.webhook import PAUSES, Webhook
from peerseal.trust.tile_proofs import nodes_from_tiles
from registry.domain.keys import KeyRecord
from registry.storage.queries import keys
from registry.storage.queries.ledger import Change, append
from registry.storage.tables import entries, ledger_head
from tests.registry.driver import BY, DOMAIN, Clock, Driver
from tests.support.federation import PARTNER
from tests.support.root_witnesses import name_witnesses

OWNER = service_id(DOMAIN, "billing")


def key() -> KeyPair:
    return KeyPair.generate("ES256")


def kid_of(pair: KeyPair) -> str:
    return make_kid(OWNER, pair.public.thumbprint)


class OverWsgi(Fetcher):
    """A Fetcher over the registry's real application. ``calls`` counts what was fetched; ``answers`` maps a path to
    what is answered instead, by a function of the real answer."""

    def __init__(self, registry: Driver) -> None:
        self._registry = registry
        self.calls: Counter[str] = Counter()
        self.answers: dict[str, Callable[[Answer], Answer]] = {}
        self.down = False

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        self.calls[path] += 1
        if self.down:
            raise FetchError("down")
        response = self._registry.client.open(path, method=method, data=body, headers=dict(headers or {}))
        answer = Answer(response.status_code, response.data)
        change = self.answers.get(path)
        return answer if change is None else change(answer)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home", clock)
    yield driver
    driver.close()


@pytest.fixture
def fetcher(registry: Driver) -> OverWsgi:
    return OverWsgi(registry)


@pytest.fixture
def mine(registry: Driver) -> KeyPair:
    """The owner's key."""
    return registry.joined(key(), "billing")


@pytest.fixture
def monitor(registry: Driver, fetcher: OverWsgi, mine: KeyPair, clock: Clock) -> Monitor:
    """One that knows the owner's key and has seen everything so far."""
    watched = MonitorState("billing", known=frozenset((kid_of(mine),)), pin=registry.pin)
    monitor = Monitor(fetcher, watched, clock=clock)
    assert kinds(monitor.look()) == ["join_token_created"]
    return monitor


def kinds(alerts: list[Alert]) -> list[str]:
    return [alert.kind for alert in alerts]


# what is reported


def test_a_key_that_an_operators_join_token_let_in_is_reported(registry: Driver, monitor: Monitor) -> None:
    stranger = registry.joined(key(), "billing")
    created, unknown = monitor.look()
    assert (created.kind, created.level) == ("join_token_created", "info")
    assert (unknown.kind, unknown.level) == ("unknown_key", "alert")
    told = unknown.to_json()
    assert told["kid"] == kid_of(stranger)
    assert "join_token" in told["by"]
    assert told["index"] == told["seq"] - 1 == monitor.state.edge.size - 1
    assert monitor.look() == [], "once"


def test_a_rotation_by_the_owner_is_not_reported_however_long_the_chain(
    registry: Driver, monitor: Monitor, mine: KeyPair
) -> None:
    for _ in range(3):
        registry.rotate(mine, following := key(), "billing")
        mine = following
    assert monitor.look() == []
    assert kid_of(mine) in monitor.state.known


def test_what_an_unknown_key_vouches_for_is_unknown_too(registry: Driver, monitor: Monitor) -> None:
    stranger = registry.joined(key(), "billing")
    registry.rotate(stranger, key(), "billing")
    assert kinds(monitor.look()) == ["join_token_created", "unknown_key", "unknown_key"]


def test_what_a_revoked_key_vouches_for_is_unknown(registry: Driver, monitor: Monitor, mine: KeyPair) -> None:
    """A registry that works together with the thief of a key that the owner has revoked."""
    stolen, made = key(), key()
    registry.rotate(mine, stolen, "billing")
    registry.rotate(stolen, made, "billing")
    revoked = MonitorState(
        "billing", known=frozenset(map(kid_of, (mine, stolen))), revoked=frozenset((kid_of(stolen),))
    )
    found = Monitor(OverWsgi(registry), replace(revoked, pin=registry.pin), clock=registry.clock).look()
    assert [alert.entry.kid for alert in found if alert.kind == "unknown_key" and alert.entry] == [kid_of(made)]
    registry.end(stolen, "billing", "compromised")
    monitor.look()
    assert kid_of(stolen) in monitor.state.revoked


def test_other_services_are_none_of_its_business(registry: Driver, monitor: Monitor) -> None:
    registry.joined(key(), "shipping")
    assert monitor.look() == []


def test_the_end_of_a_key_is_reported_unless_it_ended_itself(registry: Driver, monitor: Monitor, mine: KeyPair) -> None:
    registry.rotate(mine, new := key(), "billing")
    registry.rotate(new, newest := key(), "billing")
    registry.end(mine, "billing", "retired")
    assert monitor.look() == []
    registry.operator_ends(newest, "billing", "retired")
    [ended] = monitor.look()
    assert (ended.kind, ended.to_json()["kid"]) == ("key_ended", kid_of(newest))
    registry.end(new, "billing", "compromised")  # with which falls what it vouched for
    assert monitor.look() == []


def test_policies_and_new_registry_keys_are_reported(registry: Driver, monitor: Monitor) -> None:
    with registry.store.write() as connection:
        changes = [Change(POLICY_SET, name, by=BY, data={"policy": None}) for name in ("billing", "shipping")]
        append(connection, int(registry.clock()), *changes, Change(REGISTRY_KEYS_ISSUED, by=BY))
    assert kinds(monitor.look()) == ["policy_set", "registry_keys_issued"]


def test_what_changes_for_all_services_is_reported_in_words(registry: Driver, monitor: Monitor) -> None:
    believed = registry.registry.federations.replace({"domains": [PARTNER]}, {0}, BY)
    registry.registry.federations.replace({"domains": []}, {believed.seq}, BY)
    name_witnesses(registry, "w.example", needed=1)
    assert [(alert.kind, alert.level, alert.detail) for alert in monitor.look()] == [
        (FEDERATION_SET, "alert", "which foreign trust domains are believed was changed: believed are partner.example"),
        (
            FEDERATION_SET,
            "alert",
            "which foreign trust domains are believed was changed: no foreign trust domain is believed",
        ),
        (
            REGISTRY_KEYS_ISSUED,
            "alert",
            "the root named other keys or witnesses of the registry: version 2 of the root's document, 1 of 1 "
            "witnesses needed (w.example)",
        ),
    ]


def test_a_restore_is_reported_and_excuses_no_key_whose_evidence_is_lost(
    registry: Driver, monitor: Monitor, mine: KeyPair
) -> None:
    """A registry that made up a rotation could say as much."""
    registry.rotate(mine, following := key(), "billing")
    seq = monitor.state.edge.size + 1
    with registry.store.write() as connection:
        connection.execute(update(entries).where(entries.c.seq == seq).values(evidence=None))
        restored = Change(REGISTRY_RESTORED, by={"local": "cli"}, data={"first": seq, "last": seq})
        append(connection, int(registry.clock()), restored)
    unknown, told = monitor.look()
    assert (unknown.kind, unknown.entry and unknown.entry.kid) == ("unknown_key", kid_of(following))
    assert (told.kind, told.level) == ("registry_restored", "alert")
    assert f"entries {seq} to {seq}" in told.detail


def test_keys_that_the_owner_holds_are_asked_for_at_the_time(
    registry: Driver, fetcher: OverWsgi, tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "keys" / "billing"
    folder.mkdir(parents=True)
    watched = MonitorState("billing", pin=registry.pin)
    monitor = Monitor(fetcher, watched, own_keys=lambda: kids_in(tmp_path / "keys", "billing"), clock=clock)
    assert monitor.look() == []
    pair = registry.joined(key(), "billing")
    (folder / "keys.json").write_bytes(canonical_json({"keys": [{"kid": kid_of(pair)}]}))
    assert kinds(monitor.look()) == ["join_token_created"]


# evidence


def tampered_record(change: Callable[[dict[str, Any]], None]) -> Callable[[Answer], Answer]:
    def changed(answer: Answer) -> Answer:
        members = json.loads(answer.body)
        change(members)
        return Answer(200, canonical_json(members))

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.pop("evidence"),
        lambda members: members.update(evidence=None),
        lambda members: members.update(evidence={"token": "x"}),
        lambda members: members.update(evidence=[1]),
        lambda members: members["evidence"].pop("vouch"),
        lambda members: members["evidence"].update(vouch=members["evidence"]["proof"]),
        lambda members: members["evidence"].update(proof=members["evidence"]["vouch"]),
    ],
)
def test_a_voucher_whose_evidence_is_not_the_entrys_is_reported(
    registry: Driver, monitor: Monitor, fetcher: OverWsgi, mine: KeyPair, change: Callable[[dict[str, Any]], None]
) -> None:
    registry.rotate(mine, new := key(), "billing")
    fetcher.answers[f"/v1/services/billing/keys/{new.public.thumbprint}"] = tampered_record(change)
    assert kinds(monitor.look()) == ["unknown_key"]


@pytest.mark.parametrize("jwk", [None, {}, "x", dict(key().public.jwk)])
def test_a_voucher_whose_key_is_not_the_known_one_is_reported(
    registry: Driver, monitor: Monitor, fetcher: OverWsgi, mine: KeyPair, jwk: Any
) -> None:
    registry.rotate(mine, key(), "billing")
    path = f"/v1/services/billing/keys/{mine.public.thumbprint}"
    fetcher.answers[path] = tampered_record(lambda members: members.update(jwk=jwk))
    assert kinds(monitor.look()) == ["unknown_key"]


@pytest.mark.parametrize("forgery", ["another signer", "another body", "another method", "no voucher"])
def test_a_voucher_that_the_registry_made_up_is_reported(
    registry: Driver, monitor: Monitor, mine: KeyPair, forgery: str
) -> None:
    """The registry writes an admission with everything in its power: the proof is by the new key, the digest fits."""
    new, path = key(), "/v1/services/billing/keys"
    proof = registry.proof(new, "billing")
    body = canonical_json({"proof": proof if forgery != "another body" else registry.proof(key(), "billing")})
    signer, method = (
        (key() if forgery == "another signer" else mine),
        "DELETE" if forgery == "another method" else "POST",
    )
    vouch = registry.signed(signer, "billing", method, path, body)["Authorization"].removeprefix("Bearer ")
    evidence = {"proof": proof} if forgery == "no voucher" else {"proof": proof, "vouch": vouch}
    admit(registry, new, {"kid": kid_of(mine)}, evidence)
    assert kinds(monitor.look()) == ["unknown_key"]


def admit(registry: Driver, pair: KeyPair, by: dict[str, str], evidence: dict[str, str]) -> None:
    now, public = int(registry.clock()), pair.public
    data = {"alg": public.alg, "jwk": dict(public.jwk), "active_from": now, "expires_at": now + 1000}
    with registry.store.write() as connection:
        change = Change(KEY_ADMITTED, "billing", kid_of(pair), by, evidence, data)
        seq = append(connection, now, change).entry.seq
        record = KeyRecord(public.thumbprint, "billing", public.spki, seq, by, now, now + 1000, now + 1000)
        added = keys.addition(record, None)
        connection.execute(added.statement, dict(added.parameters))


def test_withheld_evidence_is_waited_for_and_then_reported(
    registry: Driver, monitor: Monitor, fetcher: OverWsgi, mine: KeyPair, clock: Clock
) -> None:
    registry.rotate(mine, new := key(), "billing")
    fetcher.answers[f"/v1/services/billing/keys/{new.public.thumbprint}"] = lambda _: Answer(503, b"")
    assert monitor.look() == []
    clock.forward(GRACE)
    assert kinds(monitor.look()) == ["unknown_key"]


# one history


def rewrite(registry: Driver, seq: int) -> None:
    """Another time in an entry, and the head as it follows from that: what an attacker does to hide a change."""
    with registry.store.write() as connection:
        bodies = list(connection.execute(select(entries.c.body).order_by(entries.c.seq)).scalars())
        bodies[seq - 1] = replace(Entry.decode(bodies[seq - 1]), time=1).encode()
        edge = Frontier()
        for body in bodies:
            edge = edge.appended(leaf_hash(body))
        changed = {"body": bodies[seq - 1], "leaf": leaf_hash(bodies[seq - 1])}
        connection.execute(update(entries).where(entries.c.seq == seq).values(**changed))
        connection.execute(update(ledger_head).values(size=edge.size, frontier=edge.encode()))


@pytest.mark.parametrize("grown", [False, True])
def test_a_rewritten_ledger_is_reported(registry: Driver, monitor: Monitor, grown: bool) -> None:
    rewrite(registry, 2)
    if grown:
        registry.forgetful_node().join_token("shipping")
    before = monitor.state
    assert kinds(registry_node(registry, monitor).look()) == ["inconsistent_ledger"]
    assert monitor.state == before, "it stays where it was"


def registry_node(registry: Driver, monitor: Monitor) -> Monitor:
    """A monitor in the same state that asks a fresh node: the old one keeps its last checkpoint while the size is the
    same."""
    return Monitor(OverWsgi(registry.forgetful_node()), monitor.state, clock=registry.clock)


def test_an_older_checkpoint_that_nothing_contradicts_counts_as_no_answer(
    registry: Driver, fetcher: OverWsgi, monitor: Monitor, clock: Clock
) -> None:
    while monitor.state.edge.size % 4 != 1:  # from here, no earlier edge determines the one before the next
        registry.join_token("shipping")
        monitor.look()
    early = registry.got("/ledger/checkpoint").encode()
    registry.join_token("shipping")
    assert monitor.look() == []
    before = monitor.state
    fetcher.answers["/ledger/checkpoint"] = lambda _: Answer(200, early)
    assert monitor.look() == [], "a mirror may have it that is late"
    clock.forward(GRACE)
    [alert] = monitor.look()
    assert (alert.kind, monitor.state) == ("unreachable", before)
    assert f"its checkpoint has {before.edge.size - 1} entries, and {before.edge.size} were seen" in alert.detail
    assert monitor.look() == [], "once until it is over"


def test_an_older_checkpoint_that_the_edge_proves_is_no_failure(
    registry: Driver, fetcher: OverWsgi, monitor: Monitor, clock: Clock
) -> None:
    while monitor.state.edge.size % 4:
        registry.join_token("shipping")
        monitor.look()
    early = registry.got("/ledger/checkpoint").encode()
    registry.join_token("shipping")
    assert monitor.look() == []
    fetcher.answers["/ledger/checkpoint"] = lambda _: Answer(200, early)
    for _ in range(3):
        assert monitor.look() == []
        clock.forward(GRACE)


def test_a_checkpoint_that_is_none_is_reported(registry: Driver, fetcher: OverWsgi, monitor: Monitor) -> None:
    stranger = sign_checkpoint(Checkpoint(DOMAIN, 0, bytes(32)), registry_key())
    for note in (b"", b"\xff", stranger.encode(), registry.got("/ledger/checkpoint").replace("acme", "evil").encode()):
        fetcher.answers["/ledger/checkpoint"] = lambda _, note=note: Answer(200, note)  # type: ignore[misc]
        assert kinds(monitor.look()) == ["bad_checkpoint"]
        fetcher.answers.clear()
        assert monitor.look() == []


def test_another_root_is_not_believed(registry: Driver, fetcher: OverWsgi, clock: Clock) -> None:
    pinned = MonitorState("billing", pin=key().public.thumbprint)
    assert kinds(Monitor(fetcher, pinned, clock=clock).look()) == ["bad_checkpoint"]


def registry_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def test_a_bundle_that_breaks_off_is_no_answer(
    registry: Driver, fetcher: OverWsgi, monitor: Monitor, clock: Clock
) -> None:
    registry.join_token("shipping")
    size = monitor.state.edge.size + 1
    path = f"/ledger/{checkpoint.tile_path('entries', 0, size)}"
    for body in (b"", b"\x00", encode_bundle([b"x"])):
        fetcher.answers[path] = lambda _, body=body: Answer(200, body)  # type: ignore[misc]
        assert monitor.look() == []
    clock.forward(GRACE)
    assert kinds(monitor.look()) == ["unreachable"]


def test_a_damaged_bundle_is_no_sign_of_another_ledger(
    registry: Driver, fetcher: OverWsgi, monitor: Monitor, clock: Clock
) -> None:
    registry.join_token("shipping")
    path = f"/ledger/{checkpoint.tile_path('entries', 0, monitor.state.edge.size + 1)}"
    for damage in (lambda body: body[:-1] + b"?", lambda body: body.replace(b"shipping", b"shipp1ng")):
        fetcher.answers[path] = lambda answer, damage=damage: Answer(200, damage(answer.body))  # type: ignore[misc]
        assert monitor.look() == []
    clock.forward(GRACE)
    [alert] = monitor.look()
    assert alert.kind == "unreachable"
    assert "do not lead to the checkpoint" in alert.detail
    fetcher.answers.clear()
    assert kinds(monitor.look()) == []


def test_damaged_tiles_are_no_sign_of_another_ledger(registry: Driver, fetcher: OverWsgi, monitor: Monitor) -> None:
    registry.join_token("shipping")
    size = monitor.state.edge.size + 1
    fetcher.answers[f"/ledger/{checkpoint.tile_path('entries', 0, size)}"] = lambda answer: Answer(
        200, answer.body[:-1] + b"?"
    )
    for tile in (lambda tile: bytes(len(tile)), lambda _: b"", lambda tile: tile[:-32], lambda tile: tile + b"?"):
        fetcher.answers[f"/ledger/{checkpoint.tile_path(0, 0, size)}"] = lambda answer, tile=tile: Answer(  # type: ignore[misc]
            200, tile(answer.body)
        )
        assert monitor.look() == []


def test_a_registry_that_is_away_is_reported_once_after_the_grace_time(
    fetcher: OverWsgi, monitor: Monitor, clock: Clock
) -> None:
    fetcher.down = True
    assert monitor.look() == []
    clock.forward(GRACE - 1)
    assert monitor.look() == []
    clock.forward(1)
    assert kinds(monitor.look()) == ["unreachable"]
    assert monitor.look() == []
    fetcher.down = False
    assert monitor.look() == []
    fetcher.down = True
    assert monitor.look() == [], "the grace time begins anew"


# what it costs


def test_looking_when_nothing_happened_fetches_the_checkpoint_alone(fetcher: OverWsgi, monitor: Monitor) -> None:
    fetcher.calls.clear()
    for _ in range(5):
        assert monitor.look() == []
    assert fetcher.calls == {"/ledger/checkpoint": 5}


def test_what_is_new_costs_one_bundle(registry: Driver, fetcher: OverWsgi, monitor: Monitor) -> None:
    registry.join_token("shipping")
    fetcher.calls.clear()
    monitor.look()
    assert sum(fetcher.calls.values()) == 2
    assert fetcher.calls["/ledger/checkpoint"] == 1


class MadeUp(Fetcher):
    """A ledger of arbitrary entries in place of a registry, at any size up to the whole."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies, self.size = bodies, 0
        self.root, self.ledger_key = key(), registry_key()

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        now, ours = int(Clock()()), registry_id(DOMAIN)
        if path == "/.well-known/peerseal-registry":
            keys = RegistryKeys(
                issuer=ours,
                subject=DOMAIN,
                issued_at=now,
                expires_at=now + REGISTRY_KEYS_LIFETIME,
                version=1,
                root=self.root.public,
                signing_keys=(key().public,),
                ledger_key=ledger_jwk(self.ledger_key.public_key()),
            )
            return Answer(200, sign_document(keys, self.root).encode())
        if path == "/ledger/checkpoint":
            edge = edge_of(self.bodies[: self.size])
            return Answer(200, sign_checkpoint(Checkpoint(DOMAIN, edge.size, edge.root), self.ledger_key).encode())
        level, _, place = path.removeprefix("/ledger/tile/").partition("/")
        number, _, width = place.partition(".p/")
        begin, end = int(number) * 256, int(number) * 256 + int(width or 256)
        if level == "entries":
            return Answer(200, encode_bundle(self.bodies[begin:end]))
        step = 256 ** int(level)
        tiles = [self.bodies[at * step : (at + 1) * step] for at in range(begin, end)]
        return Answer(200, b"".join(edge_of(below).root for below in tiles))


def edge_of(bodies: list[bytes]) -> Frontier:
    edge = Frontier()
    for body in bodies:
        edge = edge.appended(leaf_hash(body))
    return edge


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    services=st.lists(st.sampled_from(["billing", "shipping", None]), min_size=1, max_size=600),
    cuts=st.lists(st.integers(0, 600), max_size=5),
)
def test_every_entry_is_seen_once_wherever_the_looks_fall(services: list[str | None], cuts: list[int]) -> None:
    made = [Entry(seq, 1, "policy_set", service) for seq, service in enumerate(services, 1)]
    ledger = MadeUp([entry.encode() for entry in made])
    state, found = Frontier(), list[Entry]()
    for cut in sorted(min(cut, len(made)) for cut in (*cuts, len(made))):
        ledger.size = cut
        read = LedgerReader(ledger, ledger.root.public.thumbprint).read(state, lambda entry: entry.service == "billing")
        state = Frontier.decode(read.edge.size, read.edge.encode())  # as after a restart
        found += read.entries
    assert found == [entry for entry in made if entry.service == "billing"]
    assert state == edge_of(ledger.bodies)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.integers(2, 600), cut=st.integers(1, 600), changed=st.integers(0, 599), longer=st.integers(0, 300))
def test_no_other_history_follows_what_was_seen(size: int, cut: int, changed: int, longer: int) -> None:
    cut = min(cut, size)
    bodies = [Entry(seq, 1, "policy_set").encode() for seq in range(1, size + longer + 1)]
    ledger = MadeUp(bodies)
    ledger.size = cut
    follower = LedgerReader(ledger, None)
    seen = follower.read(Frontier(), lambda _: False).edge
    ledger.bodies = list(bodies)
    ledger.bodies[changed % cut] = Entry(changed % cut + 1, 2, "policy_set").encode()
    ledger.size = size + longer
    with pytest.raises(DocumentRefused, match="document_inconsistent"):
        follower.read(seen, lambda _: False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.integers(2, 600), cut=st.integers(1, 599), changed=st.integers(0, 599), held=st.booleans())
def test_an_older_checkpoint_is_another_ledger_only_where_what_is_known_contradicts_it(
    size: int, cut: int, changed: int, held: bool
) -> None:
    """A monitor knows the edge alone, a mirror all nodes."""
    cut, before = min(cut, size - 1), MadeUp([Entry(seq, 1, "policy_set").encode() for seq in range(1, size + 1)])
    before.size = size
    reader = LedgerReader(shown := MadeUp(list(before.bodies)), None)
    shown.size = size
    seen = reader.read(Frontier(), lambda _: False).edge
    shown.size, changed = cut, changed % cut
    nodes = nodes_from_tiles(before, size) if held else None
    known = cut if held else seen.within(cut).size
    assert refusal(reader, seen, nodes) == (None if known == cut else "document_rolled_back")
    shown.bodies[changed] = Entry(changed + 1, 2, "policy_set").encode()
    assert refusal(reader, seen, nodes) == ("document_inconsistent" if changed < known else "document_rolled_back")


def refusal(reader: LedgerReader, seen: Frontier, held: NodeReader | None) -> str | None:
    """The code of what the reader raises."""
    try:
        assert reader.read(seen, lambda _: False, held=held).edge == seen
    except DocumentRefused as error:
        return error.code
    return None


# its state


def test_the_state_goes_through_a_file(tmp_path: Path, monitor: Monitor) -> None:
    file = tmp_path / "state"
    assert load_state(file, "billing") is None
    save_state(file, monitor.state)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_state(file, "billing") == monitor.state
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(ConfigurationError):
        load_state(file, "shipping")


def test_what_an_earlier_release_saw_counts_as_seen_now(tmp_path: Path, monitor: Monitor) -> None:
    """No statement of the root from before can be about it."""
    file = tmp_path / "state"
    save_state(file, monitor.state)
    members = strict_json_object(file.read_bytes())
    before = int(time.time())
    del members["seen_at"]
    file.write_bytes(canonical_json(members))
    loaded = load_state(file, "billing")
    assert loaded is not None
    assert loaded.seen_at >= before
    assert replace(loaded, seen_at=monitor.state.seen_at) == monitor.state


@pytest.mark.parametrize("text", [b"", b"{}", b'{"size": 3, "frontier": "AA"}', b"\xff"])
def test_a_state_that_cannot_be_read_is_not_begun_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "state").write_bytes(text)
    with pytest.raises(ConfigurationError):
        load_state(tmp_path / "state", "billing")


# the webhook


class Hook:
    def __init__(self, *statuses: int | None) -> None:
        self.statuses, self.calls = list(statuses), list[tuple[str, bytes]]()

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        self.calls.append((f"{method} {path}", body))
        status = self.statuses.pop(0)
        if status is None:
            raise FetchError("no answer")
        return Answer(status, b"")


@pytest.mark.parametrize(("statuses", "taken"), [((204,), True), ((None, 500, 200), True), ((302, None, 404), False)])
def test_a_webhook_is_tried_three_times_at_most(statuses: tuple[int | None, ...], taken: bool) -> None:
    hook, pauses = Hook(*statuses), list[float]()
    assert Webhook("https://hooks.test/a?b=c", fetcher=hook, sleep=pauses.append).post({"event": "x"}) is taken
    assert hook.calls == [("POST /a?b=c", b'{"event":"x"}')] * len(statuses)
    assert pauses == list(PAUSES)[: len(statuses) - 1]


# the command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["monitor", "billing", "--once"],
        ["monitor", "billing", "--once", "--registry", "https://registry.test"],
        ["monitor", "No Name", "--registry", "http://127.0.0.1:1"],
        ["monitor", "billing", "--registry", "http://127.0.0.1:1", "--known", "x"],
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PEERSEAL_REGISTRY_URL", "PEERSEAL_REGISTRY_PIN", "PEERSEAL_KEY_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_a_registry_that_is_not_there_ends_a_single_look_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["monitor", "billing", "--once", "--registry", "http://127.0.0.1:1"]) == 3
    assert json.loads(capsys.readouterr().out)["event"] == "unreachable"


@pytest.mark.parametrize("command", [["monitor", "billing"], ["keep-ledger", "copy"]])
@pytest.mark.parametrize("pin", [["--pin", "-" + "A" * 42], ["--pin=-" + "A" * 42]])
def test_a_pin_may_begin_with_a_dash(
    command: list[str], pin: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--once", *pin, "--registry", "http://127.0.0.1:1"]) == 3, "not reached: it was read"
