"""After a fork: the lost entries come back from a copy, or the root declares them lost; clients come back by
themselves, without a restart. On both databases."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from peerseal import TrustLimits, TrustStore
from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.mirror import LedgerMirror
from peerseal.audit.monitor import Monitor
from peerseal.audit.monitor_state import MonitorState
from peerseal.audit.public_mirror import PublicMirror
from peerseal.errors import PeersealError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, decode_statements, sign_history
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import HISTORY_DECLARED, REGISTRY_RESTORED
from peerseal.protocol.names import make_kid, service_id
from registry.__main__ import main
from registry.domain.errors import LedgerForked
from registry.services.authority.ledger_memory import FILE, LedgerMemory
from registry.services.recovery.histories import HistoryDeclarations, HistoryRefused
from registry.services.recovery.public_copy import RestoreRefused, Source
from registry.services.recovery.restore import restore
from registry.services.recovery.verify import verify
from registry.services.setup import keyfiles
from registry.storage.queries.ledger import Change, append
from tests.contracts.backups import Backup, keep
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of, tables_of
from tests.registry.in_process import InProcess
from tests.support.keys import key

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)


def kid(pair: KeyPair, service: str) -> str:
    return make_kid(service_id(DOMAIN, service), pair.public.thumbprint)


def client_of(registry: Driver, cache: Path | None = None) -> TrustStore:
    options: dict[str, Any] = {"limits": QUIET, "clock": registry.clock, "fetcher": InProcess(registry)}
    return TrustStore("http://registry.test", pin=registry.pin, cache_dir=cache, **options)


def run(registry: Driver, *arguments: str) -> Result:
    env = {"REGISTRY_HOME": str(registry.home), "REGISTRY_DATABASE_URL": registry.url}
    return CliRunner().invoke(main, list(arguments), env=env)


def declare(registry: Driver, *notes: str) -> HistoryStatement:
    """What the command does, by the registry's clock."""
    histories = HistoryDeclarations(registry.store, registry.clock)
    found = histories.requested(LedgerMemory(registry.home).read(), {note: note for note in notes})
    [statement] = histories.publish([sign_history(found, root_of(registry))])
    return statement


def root_of(registry: Driver) -> KeyPair:
    return keyfiles.read_key_pair(registry.settings.root_key_file, "root key")


def whole(registry: Driver) -> bool:
    return verify(registry.store, registry.settings.limits, clock=registry.clock).whole


@dataclass
class Loss:
    """What was before the database went back to where it was a moment ago: since then ``late`` was registered, the
    first key of ``billing`` revoked and the one of ``shop`` retired. ``client`` has seen all of that."""

    registry: Driver
    before: Backup
    copy: Source
    note: str
    client: TrustStore
    cache: Path
    billing: KeyPair
    revoked: KeyPair
    retired: KeyPair
    late: KeyPair

    def lose(self) -> None:
        """The database is that of a moment ago."""
        self.before.come_back(self.registry.store)

    def believes(self, pair: KeyPair, service: str, client: TrustStore | None = None) -> str:
        """What the client says of the key: ``good``, or the code of its refusal."""
        try:
            (client or self.client).key(kid(pair, service))
        except PeersealError as error:
            return error.code
        return "good"


@pytest.fixture
def loss(registry: Driver, clock: Clock, tmp_path: Path) -> Iterator[Loss]:
    billing, revoked, retired, late = (key() for _ in range(4))
    registry.joined(billing, "billing")
    registry.joined(revoked, "billing")
    registry.joined(retired, "shop")
    registry.registry.watch.look()
    clock.forward(5)
    before = Backup(registry.store)
    registry.operator_ends(revoked, "billing")
    registry.end(retired, "shop", "retired")
    registry.joined(late, "late")
    registry.registry.watch.look()
    copy, cache = keep(registry, tmp_path / "copy"), tmp_path / "cache"
    client = client_of(registry, cache)
    found = Loss(
        registry,
        before,
        copy,
        registry.got("/ledger/checkpoint"),
        client,
        cache,
        billing,
        revoked,
        retired,
        late,
    )
    for pair, service, says in ((billing, "billing", "good"), (revoked, "billing", "revoked_key")):
        assert found.believes(pair, service) == says
    assert found.believes(late, "late") == found.believes(retired, "shop") == "good"
    yield found
    client.stop()


def come_back(loss: Loss, clock: Clock) -> None:
    """Some time passes, in which the client works on in the background."""
    for _ in range(3):
        clock.forward(loss.registry.settings.limits.registry_keys_cached + 6)
        loss.client.refresh()


# the lost entries can be had


def test_a_branch_is_named_and_dropped_only_where_the_operator_says_so(loss: Loss) -> None:
    loss.lose()
    older = loss.registry.forgetful_node()
    older.joined(key(), "branch")
    with pytest.raises(RestoreRefused) as refused:
        restore(older.store, older.settings.limits, [loss.copy], clock=older.clock)
    assert refused.value.code == "copy_forked"
    for named in ("join_token_created branch", "key_admitted branch", "--drop-branch"):
        assert named in str(refused.value)
    done = restore(older.store, older.settings.limits, [loss.copy], drop_branch=True, dry_run=True, clock=older.clock)
    assert len(done.dropped) == 2
    assert len(entries_of(older.store)) == done.before + 2, "a dry run drops nothing"


@pytest.mark.parametrize("branch", [0, 1, 4, 300])
def test_the_old_history_goes_on_and_clients_with_it(loss: Loss, clock: Clock, branch: int) -> None:
    registry, bodies = loss.registry, entries_of(loss.registry.store)
    loss.lose()
    if branch:
        older = registry.forgetful_node()
        token = older.join_token("branch", uses=branch)
        for _ in range(branch):
            older.join(key(), "branch", token)
    done = restore(registry.store, registry.settings.limits, [loss.copy], drop_branch=True, clock=clock)
    assert len(done.dropped) == (branch + 1 if branch else 0)
    assert entries_of(registry.store)[:-1] == bodies
    assert entries_of(registry.store)[-1].type == REGISTRY_RESTORED
    assert whole(registry)
    assert "branch" not in tables_of(registry.store).services
    newcomer = registry.joined(key(), "newcomer")  # the node that saw the fork signs again, without a restart
    come_back(loss, clock)
    said = [loss.believes(*one) for one in ((loss.late, "late"), (newcomer, "newcomer"), (loss.revoked, "billing"))]
    assert said == ["good", "good", "revoked_key"]


def test_the_command_restores_by_what_the_host_remembers(loss: Loss) -> None:
    loss.lose()
    registry = loss.registry
    memory = (registry.home / FILE).read_bytes()
    registry.forgetful_node().joined(key(), "branch")
    (registry.home / FILE).write_bytes(memory)
    found = run(registry, "status", "--json")
    assert (found.exit_code, json.loads(found.stdout)["state"]) == (1, "forked")
    assert run(registry, "restore", "--from", loss.copy.name).exit_code == 1
    done = run(registry, "restore", "--from", loss.copy.name, "--drop-branch")
    assert done.exit_code == 0, done.output
    assert "dropped: entry" in done.stdout
    found = run(registry, "status", "--json")
    assert (found.exit_code, json.loads(found.stdout)["state"]) == (0, "sound")


# they cannot be had


def test_the_registry_goes_on_from_another_head_once_the_root_says_so(loss: Loss, clock: Clock) -> None:
    loss.lose()
    registry = loss.registry
    with pytest.raises(LedgerForked):
        registry.registry.join_tokens.create("shop", 60, 1, {"local": "test"})
    done = run(registry, "history", "declare", "--json")
    assert done.exit_code == 0, done.output
    [statement] = json.loads(done.stdout)["statements"]
    assert statement["lost"]["size"] == int(loss.note.split("\n")[1])
    assert statement["common"]["size"] == statement["new"]["size"] == len(entries_of(registry.store)) - 1
    assert entries_of(registry.store)[-1].type == HISTORY_DECLARED
    assert registry.client.get("/readyz").get_json()["ledger"], "without a restart"
    registry.joined(key(), "newcomer")
    assert whole(registry)
    assert json.loads(run(registry, "status", "--json").stdout)["state"] == "sound"


def test_clients_come_back_by_themselves_and_what_they_knew_as_ended_stays_ended(loss: Loss, clock: Clock) -> None:
    loss.lose()
    registry = loss.registry
    come_back(loss, clock)
    newcomer, second = key(), key()
    assert loss.believes(newcomer, "newcomer") == "trust_unavailable"
    declare(registry)
    registry.joined(newcomer, "newcomer")
    registry.joined(second, "billing")
    come_back(loss, clock)
    assert loss.believes(newcomer, "newcomer") == loss.believes(second, "billing") == "good"
    assert loss.believes(loss.billing, "billing") == "good"
    assert loss.believes(loss.revoked, "billing") == "revoked_key", "the entry that revoked it is lost"
    assert loss.believes(loss.late, "late") == "unknown_key", "so is the one that admitted this one"
    assert loss.client.key(kid(loss.retired, "shop")).active_until <= clock(), "and the one that retired that"
    with pytest.raises(RevokedKey):
        loss.client.recorded_key(kid(loss.revoked, "billing"))
    again = client_of(registry, loss.cache)
    assert loss.believes(loss.revoked, "billing", again) == "revoked_key", "after a restart, too"
    assert loss.believes(newcomer, "newcomer", again) == "good"
    stranger = client_of(registry)
    assert loss.believes(loss.revoked, "billing", stranger) == "good", "who never knew cannot know"
    again.stop()
    stranger.stop()


def test_a_client_that_was_away_comes_back_when_it_is_asked(loss: Loss, clock: Clock) -> None:
    """A process that starts later, and remembers the lost head by its folder alone."""
    loss.client.stop()
    loss.lose()
    declare(loss.registry)
    newcomer = loss.registry.joined(key(), "newcomer")
    clock.forward(7 * 24 * 3600 - 3600)
    again = client_of(loss.registry, loss.cache)
    assert loss.believes(newcomer, "newcomer", again) == "good"
    again.stop()


def test_a_client_that_saw_none_of_the_lost_entries_notices_nothing(loss: Loss, clock: Clock, tmp_path: Path) -> None:
    loss.lose()
    registry = loss.registry
    declared = client_of(registry.forgetful_node(), tmp_path / "other")
    assert loss.believes(loss.billing, "billing", declared) == "good"
    declare(registry, loss.note)
    newcomer = registry.forgetful_node().joined(key(), "newcomer")
    clock.forward(60)
    declared.refresh()
    assert loss.believes(newcomer, "newcomer", declared) == "good"
    declared.stop()


def written(folder: Path, note: str) -> Path:
    file = folder / f"note-{len(list(folder.iterdir()))}"
    file.write_text(note)
    return file


@pytest.mark.parametrize("growth", [0, 1, 40])
def test_the_history_may_be_lost_again(loss: Loss, clock: Clock, growth: int) -> None:
    """A client that slept through both statements goes by both."""
    loss.lose()
    registry = loss.registry
    declare(registry)
    registry.joined(key(), "second")
    registry.registry.watch.look()
    clock.forward(60)
    second = Backup(registry.store)
    for _ in range(3 + growth):
        registry.joined(key(), "third")
    clock.forward(60)
    registry.registry.watch.look()
    awake = client_of(registry)
    assert loss.believes(loss.billing, "billing", awake) == "good"
    second.come_back(registry.store)
    assert not registry.client.get("/readyz").get_json()["ledger"]
    clock.forward(60)
    declare(registry)
    assert len(decode_statements(registry.client.get("/v1/history").data)) == 2
    newcomer = registry.joined(key(), "newcomer")
    come_back(loss, clock)
    awake.refresh()
    assert loss.believes(newcomer, "newcomer") == loss.believes(newcomer, "newcomer", awake) == "good"
    assert whole(registry)
    awake.stop()


def test_a_statement_excuses_no_later_fork(loss: Loss) -> None:
    """Not even a moment after it was made: heads of the new history have the sizes of lost ones."""
    loss.lose()
    registry = loss.registry
    statement = declare(registry)
    assert registry.client.get("/readyz").get_json()["ledger"]
    second = Backup(registry.store)
    registry.join_token("shop")
    known = registry.registry.fork_guard.known
    assert known is not None
    assert known.size in range(statement.common.size + 1, statement.lost.size)
    second.come_back(registry.store)
    assert not registry.client.get("/readyz").get_json()["ledger"]


def test_with_the_root_key_offline_there_are_three_steps(loss: Loss, tmp_path: Path) -> None:
    loss.lose()
    registry, root = loss.registry, tmp_path / "offline.pem"
    registry.settings.root_key_file.rename(root)
    request, statement = tmp_path / "request", tmp_path / "statement"
    assert run(registry, "history", "declare").exit_code == 1, "no root key is here"
    assert run(registry, "history", "request", "--out", str(request)).exit_code == 0
    assert {"common", "lost", "new"} < strict_json_object(request.read_bytes()).keys()
    signed = CliRunner().invoke(
        main, ["history", "sign", str(request), "--root-key", str(root), "--out", str(statement)]
    )
    assert signed.exit_code == 0, signed.output
    for _ in range(2):
        assert run(registry, "history", "publish", str(statement)).exit_code == 0, "doing it again changes nothing"
    assert len(decode_statements(registry.client.get("/v1/history").data)) == 1
    assert registry.client.get("/readyz").get_json()["ledger"]


def test_nothing_is_declared_lost_that_is_there(loss: Loss) -> None:
    refused = run(loss.registry, "history", "declare")
    assert (refused.exit_code, "nothing_lost" in refused.output) == (1, True)


def test_a_host_that_remembers_nothing_needs_the_notes_of_others(loss: Loss, tmp_path: Path) -> None:
    loss.lose()
    registry = loss.registry
    (registry.home / FILE).unlink()
    kept = written(tmp_path, loss.note)
    refused = run(registry, "history", "declare", "--checkpoint", str(kept))
    assert (refused.exit_code, "no_common_head" in refused.output) == (1, True)
    common = written(tmp_path, registry.forgetful_node().got("/ledger/checkpoint"))
    (registry.home / FILE).unlink()
    done = run(registry, "history", "declare", "--checkpoint", str(kept), "--checkpoint", str(common))
    assert done.exit_code == 0, done.output


def test_a_host_that_remembers_a_dropped_branch_is_told_what_to_remember(loss: Loss) -> None:
    loss.lose()
    registry = loss.registry
    branched = registry.forgetful_node()
    branched.joined(key(), "branch")
    branched.registry.watch.look()
    restore(registry.store, registry.settings.limits, [loss.copy], drop_branch=True, clock=registry.clock)
    assert json.loads(run(registry, "status", "--json").stdout)["state"] == "forked"
    assert run(registry, "remember").exit_code == 0
    assert json.loads(run(registry, "status", "--json").stdout)["state"] == "sound"


# who watches from outside


def watching(registry: Driver, watched: MonitorState) -> Monitor:
    return Monitor(InProcess(registry), replace(watched, pin=registry.pin), clock=registry.clock)


def test_a_monitor_goes_on_and_says_loudly_that_the_root_gave_up_what_it_saw(loss: Loss, clock: Clock) -> None:
    registry = loss.registry
    first = watching(registry, MonitorState("billing", known=frozenset({kid(loss.billing, "billing")})))
    assert {alert.kind for alert in first.look()} == {"join_token_created", "unknown_key", "key_ended"}
    late, size = first.state, first.state.edge.size
    clock.forward(60)
    loss.lose()
    declare(registry)
    stranger = registry.joined(key(), "billing")
    found = watching(registry, late)
    said = found.look()
    told = [alert for alert in said if alert.kind == "history_declared"]
    assert [alert.level for alert in told] == ["alert", "alert"], "what it saw is given up; and an entry says so"
    assert f"{size} entries" in told[0].detail
    assert [alert.entry.kid for alert in said if alert.kind == "unknown_key" and alert.entry] == [
        kid(stranger, "billing")
    ]
    assert kid(loss.revoked, "billing") in found.state.revoked, "what was revoked stays so"
    assert found.look() == []
    registry.join_token("billing")
    assert [alert.kind for alert in found.look()] == ["join_token_created"]


def test_a_monitor_that_saw_no_lost_entry_reports_the_statement_too(loss: Loss, clock: Clock) -> None:
    loss.lose()
    young = watching(loss.registry.forgetful_node(), MonitorState("billing"))
    young.look()
    clock.forward(60)
    declare(loss.registry, loss.note)
    assert [alert.kind for alert in young.look()] == ["history_declared"]


def test_a_monitor_follows_no_statement_that_is_not_about_what_it_saw(loss: Loss, clock: Clock) -> None:
    """It was made before that: such as one that is shown again after a later loss."""
    registry = loss.registry
    first = watching(registry, MonitorState("billing"))
    first.look()
    loss.lose()
    declare(registry)
    registry.joined(key(), "new")
    later = replace(first.state, seen_at=int(clock()) + 60)
    monitor = watching(registry, later)
    assert monitor.look() == [], "shorter than what it saw, as a mirror that is late shows it"
    while int(registry.got("/ledger/checkpoint").splitlines()[1]) < later.edge.size:
        registry.joined(key(), "newer")
    assert [alert.kind for alert in monitor.look()] == ["inconsistent_ledger"]


def test_a_kept_copy_begins_again_and_what_is_lost_is_put_aside(loss: Loss, clock: Clock, tmp_path: Path) -> None:
    registry, folder = loss.registry, tmp_path / "kept"

    def follow(kept: LedgerMirror) -> int:
        return kept.update(LedgerReader(InProcess(registry), registry.pin, clock))

    kept = LedgerMirror(folder)
    lost = follow(kept)
    before = {file.name: file.read_bytes() for file in (folder / "ledger").rglob("*") if file.is_file()}
    clock.forward(60)
    loss.lose()
    declare(registry)
    registry.joined(key(), "new")
    assert follow(kept) == follow(LedgerMirror(folder)) == len(entries_of(registry.store))
    [aside] = folder.glob(f"lost-{lost}-*")
    assert Source.of(str(aside)).note() == loss.note, "a copy like any other"
    assert {file.name: file.read_bytes() for file in aside.rglob("*") if file.is_file()} == before
    registry.joined(key(), "newer")
    assert follow(kept) == len(entries_of(registry.store))


@pytest.mark.parametrize("again", [False, True], ids=["the same process", "another process"])
def test_a_mirror_begins_again_and_its_documents_are_those_of_the_new_history(
    loss: Loss, clock: Clock, tmp_path: Path, again: bool
) -> None:
    registry, folder = loss.registry, tmp_path / "mirror"

    def mirror() -> PublicMirror:
        return PublicMirror(folder, InProcess(registry), registry.pin, clock=clock)

    first = mirror()
    assert first.update().failed == 0
    clock.forward(60)
    loss.lose()
    declare(registry)
    registry.joined(key(), "new")
    found = (mirror() if again else first).update()
    assert (found.entries, found.failed) == (len(entries_of(registry.store)), 0)
    for file in (folder / "v1" / "services").rglob("*.jwt"):
        path = f"/{file.relative_to(folder)}"
        assert file.read_bytes() == registry.client.get(path).data, path
    assert list(folder.glob("lost-*/v1/services")), "what was lost is put aside"


# attacks


def statement_of(loss: Loss, **changes: Any) -> HistoryStatement:
    """As the root would sign it, but for the changes."""
    remembered = LedgerMemory(loss.registry.home).read()
    found = HistoryDeclarations(loss.registry.store, loss.registry.clock).requested(remembered, {})
    members: dict[str, Any] = {name: getattr(found, name) for name in ("domain", "issued_at", "common", "lost", "new")}
    return HistoryStatement(**members | changes)


def test_a_statement_that_the_root_did_not_sign_is_not_published(loss: Loss) -> None:
    """Above all the registry itself, which holds its signing key and not the root's, can make none."""
    loss.lose()
    registry = loss.registry
    signing = keyfiles.read_key_pair(registry.settings.signing_key_file, "signing key")
    histories = HistoryDeclarations(registry.store, registry.clock)
    for signer in (signing, key()):
        with pytest.raises(HistoryRefused) as refused:
            histories.publish([sign_history(statement_of(loss), signer)])
        assert refused.value.code == "statement_refused"
    foreign = sign_history(statement_of(loss, domain="other.internal"), root_of(registry))
    with pytest.raises(HistoryRefused):
        histories.publish([foreign])


def test_a_statement_that_this_ledger_does_not_bear_out_is_not_published(loss: Loss) -> None:
    loss.lose()
    registry, good = loss.registry, statement_of(loss)
    wrong = {
        "another common head": {"common": Head(good.common.size, bytes(32)), "new": Head(good.new.size + 1, bytes(32))},
        "another new head": {"new": Head(good.new.size + 1, bytes(32))},
    }
    for changes in wrong.values():
        jws = sign_history(statement_of(loss, **changes), root_of(registry))
        with pytest.raises(HistoryRefused) as refused:
            HistoryDeclarations(registry.store, registry.clock).publish([jws])
        assert refused.value.code == "statement_contradicted"


def test_an_entry_with_a_statement_of_another_key_lets_no_node_go_on(loss: Loss) -> None:
    """An attacker who can write the database can put it there."""
    loss.lose()
    registry = loss.registry
    jws = sign_history(statement_of(loss), key())
    with registry.store.write() as connection:
        append(
            connection,
            int(registry.clock()),
            Change(HISTORY_DECLARED, by={"local": "cli"}, data={"statement": jws}),
        )
    assert not registry.client.get("/readyz").get_json()["ledger"]
    assert not whole(registry), "and verify names it"


def test_without_a_statement_clients_stay_away(loss: Loss, clock: Clock) -> None:
    loss.lose()
    registry = loss.registry
    older = registry.forgetful_node()
    newcomer = older.joined(key(), "newcomer")
    liar = client_of(older, loss.cache)
    for _ in range(3):
        clock.forward(60)
        with pytest.raises(TrustUnavailable):
            liar.key(kid(newcomer, "newcomer"))
    liar.stop()
    with pytest.raises((UnknownKey, TrustUnavailable)):
        loss.client.key(kid(newcomer, "newcomer"))
