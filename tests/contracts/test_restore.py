"""A database that was lost and came back from a backup, brought up to the public copies of its ledger; on both
databases."""

import json
import shutil
from binascii import a2b_base64
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, select, update

from peerseal import TrustStore
from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.mirror import LedgerMirror
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, RevokedKey, TrustUnavailable
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import Checkpoint, sign_checkpoint
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, REGISTRY_RESTORED
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.tokens.claims import new_jti
from registry.__main__ import main
from registry.domain.errors import LedgerContradicted
from registry.domain.rebuild import PublicState
from registry.services.access.operators import Role
from registry.services.authority.ledger_memory import LedgerMemory, Remembered
from registry.services.recovery.public_copy import RestoreRefused, Source
from registry.services.recovery.restore import CLOSED_FOR, Restored, restore
from registry.services.recovery.verify import verify
from registry.services.setup import keyfiles
from registry.services.setup.ceremony import SETTLED_AFTER, Ceremony, Rolled, signed, written
from registry.storage.queries.ledger import Change, append
from registry.storage.tables import entries, ledger_head, tiles
from tests.contracts.backups import Backup, keep
from tests.contracts.conftest import QUIET
from tests.registry.driver import BY, DOMAIN, Clock, Driver, entries_of, outcome, tables_of
from tests.registry.in_process import InProcess
from tests.support.keys import key

SEEN = Remembered(5, Head(5, bytes(32)), None, 1)
ALLOW = {"allow": {"client": ["read"]}}
RESTRICTED = "/v1/services/billing/policy.jwt"


def kid(pair: KeyPair, service: str) -> str:
    return make_kid(service_id(DOMAIN, service), pair.public.thumbprint)


def restored(registry: Driver, *sources: Source, **options: Any) -> Restored:
    return restore(registry.store, registry.settings.limits, sources, clock=registry.clock, **options)


def checked(registry: Driver) -> tuple[bool, int]:
    """Whether it is whole, and how many entries are unproven."""
    found = verify(registry.store, registry.settings.limits, clock=registry.clock)
    return not found.differences, found.unproven


def put(registry: Driver, path: str, body: Any, seen: int = 0) -> int:
    """The entry that laid the setting down."""
    answer = registry.client.put(path, json=body, headers={**registry.operator, "If-Match": f'"{seen}"'})
    assert answer.status_code == 200, answer.data
    return int(answer.headers["ETag"].strip('"'))


@dataclass
class Life:
    """What there was before the database was lost: the parts that the tests ask after."""

    backup: Backup
    copy: Source
    size: int
    state: PublicState
    bodies: list[bytes]
    revoked: KeyPair
    child: KeyPair
    current: KeyPair
    spent: JoinToken
    unspent: JoinToken
    accepted: Mapping[str, str]
    operator: str
    dismissed: str
    restricted: int
    cache: Path


@pytest.fixture
def life(registry: Driver, clock: Clock, tmp_path: Path) -> Life:
    """A registry in which something of every kind happened after the backup, which has just come back."""
    revoked, spent = registry.joined(key(), "client"), registry.join_token("client")
    registry.joined(key(), "billing")
    before = put(registry, "/v1/services/orders/policy", ALLOW)
    put(registry, "/v1/services/billing/policy", {**ALLOW, "restricted": True})
    dismissed, dismissed_text = registry.registry.operators.create(Role.OPERATOR, 600)
    backup = Backup(registry.store)

    clock.forward(5)
    child, current = key(), key()
    registry.rotate(revoked, child, "client")
    assert registry.join(current, "client", spent).status_code == 201
    accepted = registry.signed(current, "client", "GET", RESTRICTED)
    registry.operator_ends(revoked, "client")
    unspent = registry.join_token("client", uses=2)
    registry.registry.operators.revoke(dismissed.id)
    _, operator = registry.registry.operators.create(Role.OPERATOR, 600)
    put(registry, "/v1/services/orders/policy", {"allow": None}, before)
    put(registry, "/v1/services/shipping/policy", ALLOW)
    restricted = put(registry, "/v1/services/payments/policy", {**ALLOW, "restricted": True})
    put(registry, "/v1/domain", {"minters": ["client"], "issuers": []})
    roll(registry, clock)
    assert registry.client.get(RESTRICTED, headers=accepted).status_code == 200

    cache = tmp_path / "cache"
    with watching(registry, cache) as trust:
        trust.key(kid(current, "client"))
    with registry.store.read() as connection:
        bodies = list(connection.execute(select(entries.c.body).order_by(entries.c.seq)).scalars())
    found = tables_of(registry.store)
    copy = keep(registry, tmp_path / "copy")
    backup.come_back(registry.store)
    parts = (revoked, child, current, spent, unspent, accepted, operator, dismissed_text, restricted, cache)
    return Life(backup, copy, found.size, found, bodies, *parts)


def roll(registry: Driver, clock: Clock) -> None:
    """Another ledger key, and the one before dropped."""
    ceremony = Ceremony(registry.settings, registry.store, clock)
    rolled: tuple[list[Rolled], ...] = ([Rolled.LEDGER], [])
    for what in rolled:
        jws = signed(written(ceremony.requested(what, drop_past=not what)), registry.settings.root_key_file)
        ceremony.put_in_place(ceremony.publish(jws))
        clock.forward(SETTLED_AFTER)


@contextmanager
def watching(registry: Driver, cache: Path) -> Iterator[TrustStore]:
    """A client with a cache folder, of whatever node is there."""
    options: dict[str, Any] = {"limits": QUIET, "clock": registry.clock, "fetcher": InProcess(registry)}
    trust = TrustStore("http://registry.test", pin=registry.pin, cache_dir=cache, **options)
    yield trust
    trust.stop()


@pytest.fixture
def node(registry: Driver, life: Life) -> Iterator[Driver]:
    """A node that is started once everything was restored."""
    assert restored(registry, life.copy).anything
    node = registry.node()
    node.operator = registry.operator
    yield node
    node.close()


# what comes back


def follow(registry: Driver, copy: LedgerMirror, pin: str | None = None) -> int:
    """What ``peerseal keep-ledger`` does at each look."""
    return copy.update(LedgerReader(InProcess(registry), pin or registry.pin, registry.clock))


def files_in(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def grow(registry: Driver, entries: int) -> int:
    with registry.store.write() as connection:
        changes = [Change("operator_revoked", by=BY, data={"id": new_jti()}) for _ in range(entries)]
        return append(connection, int(registry.clock()), *changes).after.size if changes else 0


@pytest.fixture
def kept_in(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir()
    return folder


def test_the_kept_copy_is_what_the_registry_publishes(registry: Driver, kept_in: Path, tmp_path: Path) -> None:
    copy, published = LedgerMirror(kept_in), tmp_path / "published"
    for more in (0, 1, 0, 253, 1, 300):  # up to the end of a bundle, and over two
        grow(registry, more)
        shutil.rmtree(published, ignore_errors=True)
        keep(registry, published)
        assert follow(registry, copy) == follow(registry, LedgerMirror(kept_in))
        assert files_in(published).items() <= files_in(kept_in).items()
        tiles = {name: body for name, body in files_in(kept_in).items() if name.startswith("ledger/tile/")}
        assert [name for name, body in tiles.items() if registry.client.get(f"/{name}").data != body] == []


def test_a_copy_takes_over_nothing_that_it_cannot_verify(registry: Driver, kept_in: Path) -> None:
    backup = Backup(registry.store)
    grow(registry, 2)
    copy = LedgerMirror(kept_in)
    size = follow(registry, copy)
    kept = files_in(kept_in)
    backup.come_back(registry.store)
    other = grow(registry, 3)
    assert other > size, "another history, and a longer one"
    liar = registry.forgetful_node()
    for again in (copy, LedgerMirror(kept_in)):
        with pytest.raises(DocumentRefused, match="rewritten"):
            follow(liar, again)
        with pytest.raises(DocumentRefused):
            follow(liar, again, pin="A" * 43)
        assert files_in(kept_in) == kept


def test_a_copy_that_was_damaged_is_not_gone_on_with(registry: Driver, kept_in: Path) -> None:
    follow(registry, LedgerMirror(kept_in))
    note = kept_in / "ledger/checkpoint"
    lines = note.read_text().split("\n")
    note.write_text("\n".join([lines[0], "x[$(id)]", *lines[2:]]))
    with pytest.raises(DocumentRefused, match="not a checkpoint"):
        follow(registry, LedgerMirror(kept_in))


def test_a_copy_that_lacks_what_this_host_has_seen_is_not_gone_on_from(
    registry: Driver, clock: Clock, tmp_path: Path
) -> None:
    backup = Backup(registry.store)
    registry.joined(key(), "client")
    copy = keep(registry, tmp_path / "copy")
    registry.joined(key(), "client")
    reached = len(entries_of(registry.store))
    backup.come_back(registry.store)
    with pytest.raises(RestoreRefused, match=f"had {reached}") as refused:
        restored(registry, copy, reached=reached)
    assert refused.value.code == "copy_too_old"
    assert Backup(registry.store) == backup


def test_the_refusal_of_a_copy_that_is_shorter_than_the_database_names_the_size_of_the_copy(
    registry: Driver, tmp_path: Path
) -> None:
    copy = keep(registry, tmp_path / "copy")
    copied = len(entries_of(registry.store))
    registry.joined(key(), "client")
    reached = len(entries_of(registry.store)) + 1
    with pytest.raises(RestoreRefused, match=f"has {copied} entries, and the ledger had {reached}"):
        restored(registry, copy, reached=reached)


def test_a_restore_with_nothing_to_do_forgets_no_call_either(registry: Driver, tmp_path: Path) -> None:
    mine = registry.joined(key(), "billing")
    accepted = registry.signed(mine, "billing", "GET", RESTRICTED)
    copy = keep(registry, tmp_path / "copy")
    assert restored(registry, copy, dry_run=True).closed_until is None
    assert restored(registry, copy).closed_until == int(registry.clock()) + CLOSED_FOR
    put(registry, "/v1/services/billing/policy", {**ALLOW, "restricted": True})
    assert outcome(registry.client.get(RESTRICTED, headers=accepted)) == (503, "trust_unavailable")


def test_nothing_is_signed_or_appended_over_a_ledger_that_is_shorter_than_it_was(
    registry: Driver, clock: Clock, tmp_path: Path
) -> None:
    token, backup = registry.join_token("client", uses=2), Backup(registry.store)
    assert registry.join(key(), "client", token).status_code == 201
    clock.forward(registry.settings.limits.registry_keys_cached)
    copy = keep(registry, tmp_path / "copy")
    backup.come_back(registry.store)
    clock.forward(registry.settings.limits.registry_keys_cached)
    assert outcome(registry.join(key(), "client", token)) == (503, "ledger_contradicted")
    with pytest.raises(LedgerContradicted, match="status"):
        registry.node()  # as `init` does it
    assert Backup(registry.store) == backup
    restored(registry, copy)
    assert registry.node().join(key(), "client", token).status_code == 201


def test_a_host_that_cannot_remember_the_ledger_goes_without(tmp_path: Path) -> None:
    memory = LedgerMemory(tmp_path / "not there")
    memory.write(SEEN)
    assert memory.read() is None


def test_a_full_disk_is_not_filled_with_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    LedgerMemory(tmp_path).write(SEEN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ledger-head", "ledger-size"])
def test_a_memory_that_cannot_be_read_is_no_reason_to_forget_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("many")
    with pytest.raises(ConfigurationError, match=name):
        LedgerMemory(tmp_path).read()


def test_everything_public_is_as_it_was_and_one_entry_says_so(registry: Driver, life: Life) -> None:
    done = restored(registry, life.copy)
    with registry.store.read() as connection:
        bodies = list(connection.execute(select(entries.c.body).order_by(entries.c.seq)).scalars())
    assert bodies[: life.size] == life.bodies, "byte for byte"
    last = entries_of(registry.store)[-1]
    assert (last.seq, last.type, last.by) == (life.size + 1, REGISTRY_RESTORED, {"local": "cli"})
    assert last.data == {"first": done.before + 1, "last": life.size}
    assert replace(tables_of(registry.store), size=life.size) == life.state
    assert checked(registry) == (True, done.lost.evidence)
    assert done.lost.evidence == 3, "of the rotation, of the token's key, and of the restricted policy"
    assert done.lost.join_tokens == [(life.unspent.id, "client")]
    assert done.lost.policies == [("payments", life.restricted)]


def test_clients_go_on_and_believe_what_they_believed(life: Life, node: Driver) -> None:
    """One that remembers the lost registry's last checkpoint on disk."""
    with watching(node, life.cache) as trust:
        assert trust.key(kid(life.current, "client")).service_id == service_id(DOMAIN, "client")
        with pytest.raises(RevokedKey):
            trust.key(kid(life.revoked, "client"))
        newcomer = node.joined(key(), "newcomer")
        assert entries_of(node.store)[-1].seq == life.size + 3, "its token's and its own, behind the restore's"
        trust.refresh()
        assert trust.key(kid(newcomer, "newcomer"))
        assert node.changes(life.size).services


def test_without_it_the_same_clients_believe_nothing_new(registry: Driver, life: Life) -> None:
    node = registry.forgetful_node()
    newcomer = node.joined(key(), "newcomer")
    with watching(node, life.cache) as trust, pytest.raises(TrustUnavailable):
        trust.key(kid(newcomer, "newcomer"))


def test_a_revoked_key_and_what_it_vouched_for_stay_revoked(life: Life, node: Driver, clock: Clock) -> None:
    clock.forward(CLOSED_FOR)
    for pair in (life.revoked, life.child):
        assert outcome(node.rotate(pair, key(), "client")) == (401, "revoked_key")
        assert outcome(node.join(pair, "client", node.join_token("client"))) == (409, "key_revoked")


def test_a_spent_join_token_stays_spent_and_one_with_a_lost_key_admits_no_key(life: Life, node: Driver) -> None:
    for token in (life.spent, life.unspent):
        assert outcome(node.join(key(), "client", token)) == (401, "join_refused")
    node.registry.join_tokens.withdraw(life.unspent.id, BY)
    assert checked(node)[0]


def test_operators_tokens_are_as_they_were(life: Life, node: Driver) -> None:
    def asks(token: str) -> int:
        return node.client.get("/v1/services", headers={"Authorization": f"Bearer {token}"}).status_code

    assert (asks(life.operator), asks(life.dismissed)) == (200, 401)


def test_a_lost_restricted_policy_is_not_signed_until_it_is_set_again(life: Life, node: Driver) -> None:
    path = "/v1/services/payments/policy"
    assert outcome(node.client.get(f"{path}.jwt", headers=node.operator)) == (503, "ledger_contradicted")
    with pytest.raises(LedgerContradicted):
        node.registry.policies.policy("payments")
    put(node, path, {**ALLOW, "restricted": True}, life.restricted)
    answer = node.client.get(f"{path}.jwt", headers=node.operator)
    found = node.read(PolicyDocument, answer.text).policy
    assert found is not None
    assert found.restricted
    assert checked(node)[0]


def test_other_policies_and_the_domains_settings_are_signed_as_they_were(life: Life, node: Driver) -> None:
    def allowed(service: str) -> object:
        answer = node.client.get(f"/v1/services/{service}/policy.jwt", headers=node.operator)
        policy = node.read(PolicyDocument, answer.text).policy
        return None if policy is None else dict(policy.allow)

    here = {f"{DOMAIN}/client": frozenset(("read",))}
    assert [allowed(name) for name in ("orders", "shipping", "billing")] == [None, here, here]
    assert node.read(DomainDocument, node.got("/v1/domain.jwt")).settings.minters == {f"{DOMAIN}/client"}


def test_no_call_that_was_accepted_before_is_accepted_again(life: Life, node: Driver, clock: Clock) -> None:
    """The guard's rows are lost with the database, so it is closed until all of these tokens are past."""
    replayed = node.client.get(RESTRICTED, headers=life.accepted)
    assert outcome(replayed) == (503, "trust_unavailable")
    assert int(replayed.headers["Retry-After"]) == CLOSED_FOR + 1
    assert outcome(node.rotate(life.current, key(), "client")) == (503, "trust_unavailable")
    clock.forward(CLOSED_FOR + 1)
    assert outcome(node.client.get(RESTRICTED, headers=life.accepted)) == (401, "expired")
    assert node.rotate(life.current, key(), "client").status_code == 201


def test_sessions_that_were_ended_after_the_backup_stay_ended(registry: Driver, tmp_path: Path, clock: Clock) -> None:
    sessions = registry.registry.console_sessions
    secret = sessions.begin(registry.registry.operators.create(Role.VIEWER, 3_600)[1])
    copy = keep(registry, tmp_path / "copy")
    assert sessions.find(secret) is not None
    assert not restored(registry, copy).anything
    assert sessions.find(secret) is None


def test_applicants_of_the_backup_are_let_go(registry_database: str, tmp_path: Path, clock: Clock) -> None:
    """Some were admitted since, some rejected: no copy tells which."""
    registry = Driver(registry_database, tmp_path / "home", clock, applicants=True)
    assert registry.post_key("waiting", {"proof": registry.proof(key(), "waiting")}).status_code == 202
    backup = Backup(registry.store)
    registry.join_token("client")
    copy = keep(registry, tmp_path / "copy")
    backup.come_back(registry.store)
    assert restored(registry, copy).lost.applicants == 1
    assert registry.registry.applicants.page()["applicants"] == []
    registry.close()


def test_tiles_are_completed_over_what_comes_back(registry: Driver, clock: Clock, tmp_path: Path) -> None:
    backup, many = Backup(registry.store), 600
    data = [{"id": f"{number:022d}", "expires_at": int(clock()) + 60, "uses": 1} for number in range(many)]
    with registry.store.write() as connection:
        append(connection, int(clock()), *(Change(JOIN_TOKEN_CREATED, "client", by=BY, data=each) for each in data))
    copy = keep(registry, tmp_path / "copy")
    backup.come_back(registry.store)
    assert restored(registry, copy).rows == {"join_tokens": many}
    with registry.store.read() as connection:
        assert connection.execute(select(tiles.c.level, tiles.c.number)).all() == [(0, 0), (0, 1)]
    assert checked(registry) == (True, 0)


# honest afterwards


def test_only_what_the_restore_said_is_unproven(registry: Driver, life: Life) -> None:
    """Evidence that is missing elsewhere, or altered, is a difference as ever."""
    done = restored(registry, life.copy)
    first = next(entry.seq for entry in entries_of(registry.store) if entry.evidence is not None)
    later = next(entry.seq for entry in entries_of(registry.store)[done.before :] if entry.evidence is not None)
    with registry.store.write() as connection:
        connection.execute(update(entries).where(entries.c.seq == first).values(evidence=None))
        connection.execute(update(entries).where(entries.c.seq == later).values(evidence=b'{"proof":"x"}'))
    found = verify(registry.store, registry.settings.limits, clock=registry.clock)
    assert {(each.key, each.column) for each in found.differences} == {
        (str(first), "evidence"),
        (str(later), "evidence"),
    }


@pytest.mark.parametrize("data", [{"first": 1, "last": 1}, {"first": 0, "last": 3}, {"first": 3}])
def test_an_entry_that_says_more_than_a_restore_can_know_is_named(registry: Driver, data: dict[str, int]) -> None:
    registry.join_token("client")
    with registry.store.write() as connection:
        seq = append(connection, int(registry.clock()), Change(REGISTRY_RESTORED, by=BY, data=data)).entry.seq
    found = verify(registry.store, registry.settings.limits, clock=registry.clock)
    assert [(each.key, each.column) for each in found.differences] == [(str(seq), "body")]


def test_a_second_time_there_is_nothing_to_do(registry: Driver, life: Life) -> None:
    restored(registry, life.copy)
    after = Backup(registry.store)
    again = restored(registry, life.copy)
    assert (again.anything, again.size) == (False, life.size + 1)
    assert Backup(registry.store) == after


def test_a_dry_run_says_the_same_and_writes_nothing(registry: Driver, life: Life) -> None:
    said = restored(registry, life.copy, dry_run=True)
    assert Backup(registry.store) == life.backup
    assert replace(restored(registry, life.copy), dry_run=True) == said


# what is refused


@dataclass
class Short:
    """A backup that has come back, and a copy that has one key more."""

    registry: Driver
    backup: Backup
    folder: Path
    note: str

    said: str = ""

    @property
    def copy(self) -> Source:
        return Source.of(str(self.folder))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "ledger/checkpoint"

    def code(self, *sources: Source, **options: Any) -> str:
        """Of the refusal, with which nothing was written."""
        before = Backup(self.registry.store)
        with pytest.raises(RestoreRefused) as refused:
            restored(self.registry, *(sources or (self.copy,)), **options)
        assert Backup(self.registry.store) == before
        self.said = str(refused.value)
        return refused.value.code

    def bundle(self) -> Path:
        [bundle] = (self.folder / "ledger/tile/entries/000.p").iterdir()
        return bundle


@pytest.fixture
def short(registry: Driver, tmp_path: Path) -> Short:
    registry.joined(key(), "client")
    backup = Backup(registry.store)
    registry.joined(key(), "client")
    note, folder = registry.got("/ledger/checkpoint"), tmp_path / "copy"
    keep(registry, folder)
    backup.come_back(registry.store)
    return Short(registry, backup, folder, note)


def alter(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def resigned(note: str, signer: Ed25519PrivateKey, **changes: Any) -> str:
    """The checkpoint with another signature, perhaps of another head."""
    _, size, root = note.split("\n")[:3]
    return sign_checkpoint(replace(Checkpoint(DOMAIN, int(size), a2b_base64(root)), **changes), signer)


def test_a_copy_that_no_ledger_key_of_this_root_signed_is_refused(short: Short, tmp_path: Path) -> None:
    other = Driver(f"sqlite:///{tmp_path / 'other.sqlite3'}", tmp_path / "other")
    stranger = keyfiles.read_ledger_key(other.settings.ledger_key_file)
    for _ in range(5):
        other.join_token("client")
    assert short.code(keep(other, tmp_path / "others")) == "copy_forked", "a whole ledger, of another root"
    other.close()
    short.checkpoint.write_text(resigned(short.note, stranger))
    assert short.code() == "copy_not_signed"
    for text in ("", "nonsense", short.note.replace(DOMAIN, "other.internal"), short.note[:-20]):
        short.checkpoint.write_text(text)
        assert short.code() == "copy_not_signed"


def test_a_copy_signed_by_a_ledger_key_that_the_root_dropped_is_refused(
    short: Short, clock: Clock, tmp_path: Path
) -> None:
    """A thief of the key could show any ledger. That the root dropped it is said by an entry after the backup."""
    stolen = keyfiles.read_ledger_key(short.registry.settings.ledger_key_file)
    short.registry = short.registry.forgetful_node()
    roll(short.registry, clock)
    copy, note = keep(short.registry, tmp_path / "rolled"), tmp_path / "rolled/ledger/checkpoint"
    short.backup.come_back(short.registry.store)
    good = note.read_text()
    note.write_text(resigned(good, stolen))
    assert short.code(copy) == "copy_not_signed"
    note.write_text(good)
    assert restored(short.registry, copy).anything


def test_entries_that_do_not_lead_to_the_checkpoint_are_refused(short: Short) -> None:
    bundle, whole = short.bundle(), short.bundle().read_bytes()
    place = whole.rindex(b'"expires_at":') + 13
    alter(bundle, lambda found: found[:place] + b"9" + found[place + 1 :])
    assert short.code() == "copy_altered"
    alter(bundle, lambda _: whole[:-1] + b"x")
    assert short.code() == "copy_altered", "what cannot be read is no other case"
    alter(bundle, lambda _: whole[:-1])
    assert short.code() == "copy_incomplete"
    bundle.unlink()
    assert short.code() == "copy_incomplete"


def test_a_bundle_that_has_become_full_since_will_do(short: Short) -> None:
    bundle = short.bundle()
    full = bundle.read_bytes() + bundle.read_bytes() * 60
    bundle.unlink()
    (short.folder / "ledger/tile/entries/000").write_bytes(full)
    assert restored(short.registry, short.copy).anything


def test_a_registry_that_went_on_by_itself_has_two_histories(short: Short, tmp_path: Path) -> None:
    short.registry = short.registry.forgetful_node()
    short.registry.join_token("client")
    ours = short.registry.got("/ledger/checkpoint").split("\n")
    assert short.code() == "copy_forked"
    for size, root in (ours[1:3], short.note.split("\n")[1:3]):
        assert f"{size} entries, root hash {root}" in short.said, "both heads are named"
    for _ in range(5):
        short.registry.join_token("client")
    assert short.code() == "copy_forked", "the longer one, too"
    mine = keep(short.registry, tmp_path / "mine")
    assert not restored(short.registry, mine).anything
    short.backup.come_back(short.registry.store)
    assert short.code(mine, short.copy) == "checkpoint_contradicted", "two copies of two histories"


def test_a_copy_that_is_older_than_a_kept_checkpoint_is_refused(short: Short, tmp_path: Path) -> None:
    restored(short.registry, short.copy)
    later = keep(short.registry, tmp_path / "later")
    remembered = {"client": short.registry.got("/ledger/checkpoint")}
    short.backup.come_back(short.registry.store)
    assert short.code(kept=remembered) == "copy_too_old"
    assert restored(short.registry, short.copy, later, kept=remembered).source == later.name, "the longest is taken"


def test_a_copy_that_contradicts_a_kept_checkpoint_is_refused(short: Short) -> None:
    ours = keyfiles.read_ledger_key(short.registry.settings.ledger_key_file)
    another = resigned(short.note, ours, root=bytes(32))
    assert short.code(kept={"client": another}) == "checkpoint_contradicted"
    assert short.code(kept={"client": resigned(short.note, Ed25519PrivateKey.generate())}) == "checkpoint_not_signed"
    assert restored(short.registry, short.copy, kept={"client": short.note}).anything


def test_an_entry_that_comes_in_meanwhile_has_it_refused(short: Short) -> None:
    node = short.registry.forgetful_node()

    def get(path: str) -> bytes:
        if "entries" in path:
            node.join_token("client")
        return short.copy.get(path)

    with pytest.raises(RestoreRefused) as refused:
        restored(short.registry, Source("slow", get))
    assert refused.value.code == "ledger_moved"


def test_what_was_checked_is_what_is_written_whatever_the_copy_says_later(short: Short) -> None:
    """Each path is read once: a mirror that is slow, down or false later changes nothing."""
    asked: Counter[str] = Counter()

    def get(path: str) -> bytes:
        asked[path] += 1
        if asked[path] > 1 and "entries" in path:
            raise FetchError(f"{path}: gone", 503)
        return short.copy.get(path)

    assert restored(short.registry, Source("changing", get)).anything
    assert verify(short.registry.store, short.registry.settings.limits, clock=short.registry.clock).whole


def test_a_database_with_no_entry_names_no_root_to_believe(short: Short) -> None:
    with short.registry.store.write() as connection:
        connection.execute(delete(entries))
        connection.execute(update(ledger_head).values(size=0, frontier=b""))
    assert short.code() == "not_initialised"


def test_a_copy_that_is_not_there_is_no_refusal(short: Short, tmp_path: Path) -> None:
    with pytest.raises(FetchError):
        restored(short.registry, Source.of(str(tmp_path / "nowhere")))


# the command


def test_the_command_names_what_is_lost_and_ends_with_a_code(
    registry: Driver, life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_HOME", str(registry.home))
    monkeypatch.setenv("REGISTRY_DATABASE_URL", registry.url)

    def run(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(main, [command, *arguments])

    copy = life.copy.name
    said = run("restore", "--from", copy, "--dry-run", "--json")
    assert (said.exit_code, json.loads(said.stdout)["restored"]) == (0, False)
    done = run("restore", "--from", copy, "--checkpoint", f"{copy}/ledger/checkpoint")
    assert done.exit_code == 0
    for lost in (
        "the evidence of 3 entries",
        f"join token {life.unspent.id} for client",
        f"policy set payments --if-match {life.restricted} --file",
        "the audit trail",
    ):
        assert lost in done.stdout
    assert "nothing to do" in run("restore", "--from", copy).stdout
    verified = run("verify")
    assert (verified.exit_code, "3 entries are unproven" in verified.stdout) == (0, True)
    refused = run("restore", "--from", copy, "--checkpoint", str(registry.settings.root_key_file))
    assert (refused.exit_code, "checkpoint_not_signed" in refused.stderr) == (1, True)
    assert run("restore", "--from", str(tmp_path / "nowhere")).exit_code == 3
    assert run("restore").exit_code == 2
