"""What a registry takes from others who saw a ledger: workers of its host, other nodes, kept copies, an operator; on
both databases. None of them makes it forget a fork, or see one where there is none."""

import json
from copy import copy
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest

from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.ledger.entries import HISTORY_DECLARED
from registry.app import create_app
from registry.domain.errors import LedgerForked, LedgerUnconfirmed
from registry.services.authority.ledger_memory import FILE, LedgerMemory
from registry.services.recovery.histories import HistoryRefused
from registry.storage.queries.ledger import Change, append
from tests.contracts.backups import Backup, keep
from tests.contracts.test_fork import Lost, key, lost, outcome, ready, served, shown
from tests.contracts.test_fork_recovery import declare, run
from tests.registry.driver import Clock, Driver, entries_of, settings_at

__all__ = ["lost"]


def head_of(registry: Driver) -> Head:
    """What the host remembers."""
    remembered = LedgerMemory(registry.home).read()
    assert remembered is not None
    assert remembered.head is not None
    return remembered.head


def look(registry: Driver) -> bool:
    """Whether the ledger passes, as the thread that looks once a second finds."""
    try:
        registry.registry.watch.look()
    except (LedgerForked, LedgerUnconfirmed):
        return False
    return True


# the workers of one host


@pytest.mark.parametrize("behind", [2, 3, 9])
def test_a_worker_that_missed_the_lost_entries_does_not_make_the_others_forget_them(
    registry: Driver, behind: int
) -> None:
    """It goes on with the branch, which soon is as long as what the other worker has seen, or longer."""
    registry.joined(key(), "billing")
    second = registry.node()
    assert look(registry)
    assert look(second)
    backup = Backup(registry.store)
    registry.joined(key(), "late")
    seen = registry.registry.fork_guard.known
    assert seen is not None
    backup.come_back(registry.store)
    for _ in range(behind):
        second.join_token("branch")
    assert look(second), "so far it cannot know"
    for worker in (registry, second, registry):
        look(worker)
    assert not look(second), "the file tells it"
    assert not look(registry)
    assert head_of(registry) == seen.head
    assert ready(registry) == ready(second) == (503, False)


def test_workers_that_append_in_turn_agree(registry: Driver) -> None:
    second = registry.node()
    for _ in range(4):
        for worker in (registry, second):
            worker.joined(key(), "billing")
            assert look(registry)
            assert look(second)
    assert head_of(registry).size == len(entries_of(registry.store))


def test_what_a_worker_has_in_memory_of_a_lost_history_goes_when_another_worker_tells_it(
    lost: Lost, clock: Clock
) -> None:
    registry, backup, _ = lost
    second = registry.node()
    warm = second.got("/v1/services/late/jwks.jwt")
    assert look(second)
    backup.come_back(registry.store)
    assert not look(second)
    assert second.got("/v1/services/late/jwks.jwt") == warm, "until it expires, or the root speaks"
    declare(registry)
    assert look(registry)
    second.registry.fork_guard.remember(second.registry.authority.in_force().checkpoint)
    assert look(second)
    assert second.client.get("/v1/services/late/jwks.jwt").status_code == 404


def test_what_a_worker_has_in_memory_is_served_when_another_worker_tells_it_of_the_loss(registry: Driver) -> None:
    registry.joined(key(), "billing")
    second = registry.node()
    assert look(second)
    warm = second.got("/v1/services/billing/jwks.jwt")
    backup = Backup(registry.store)
    registry.joined(key(), "late")
    assert look(registry)
    backup.come_back(registry.store)
    assert look(second), "the file tells it"
    assert not look(second)
    assert second.got("/v1/services/billing/jwks.jwt") == warm


# an operator's word


def test_a_node_that_waits_for_confirmation_takes_the_operators_word_without_a_restart(lost: Lost) -> None:
    registry, _, _ = lost
    with shown(lambda: None) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert outcome(node.client.get("/v1/changes?since=1")) == (503, "ledger_unconfirmed")
        assert run(registry, "remember").exit_code == 0
        assert ready(node) == (200, True)
        node.close()


@pytest.mark.parametrize("damage", [b"", b"{}", b"many", b'{"head":{"size":3}}', b"\xff" * 100])
def test_a_memory_that_is_damaged_stops_the_node_and_names_the_remedy(lost: Lost, damage: bytes) -> None:
    registry, _, _ = lost
    (registry.home / FILE).write_bytes(damage)
    node = restarted(registry)
    assert outcome(node.client.get("/v1/changes?since=1")) == (503, "ledger_unconfirmed")
    assert ready(node) == (503, False)
    told = run(registry, "status")
    assert told.exit_code != 0
    assert "peerseal-registry remember" in told.output
    assert run(registry, "remember").exit_code == 0
    assert run(registry, "status").exit_code == 0
    assert ready(node) == (200, True)


def test_an_operators_word_that_cannot_be_kept_is_no_success(lost: Lost) -> None:
    registry, _, _ = lost
    (registry.home / FILE).unlink()
    (registry.home / FILE).mkdir()
    refused = run(registry, "remember")
    assert refused.exit_code != 0
    assert FILE in refused.output or str(registry.home) in refused.output
    assert "remembered:" not in refused.output


def restarted(registry: Driver, **changes: Any) -> Driver:
    """Another process of the node, which has not looked at the ledger yet."""
    node = copy(registry)
    node.settings = settings_at(registry.url, registry.home, **changes)
    node.app = create_app(node.settings, registry.clock)
    node.client = node.app.test_client()
    node.registry = node.app.extensions["peerseal-registry"]
    return node


# those outside


def test_nothing_is_signed_before_all_who_were_asked_had_their_say(lost: Lost) -> None:
    """The first one may be a copy from before the loss."""
    registry, backup, _ = lost
    newest = registry.got("/ledger/checkpoint")
    backup.come_back(registry.store)
    older = registry.forgetful_node().got("/ledger/checkpoint")
    said: list[Any] = []
    nodes: list[Driver] = []

    def second(path: str) -> bytes | None:
        if path == "/ledger/checkpoint":
            said.append(outcome(nodes[0].client.get("/v1/changes?since=1")))
            return newest.encode()
        return None

    with shown(lambda: older) as first_url, served(second) as second_url:
        nodes.append(registry.fresh_node(checkpoint_urls=(first_url, second_url)))
        nodes[0].registry.watch.ask()
        assert said == [(503, "ledger_unconfirmed")]
        assert outcome(nodes[0].client.get("/v1/changes?since=1")) == (503, "ledger_contradicted")
        nodes[0].close()


def test_what_others_saw_counts_from_then_on(lost: Lost) -> None:
    """The database loses it before this node has looked at it."""
    registry, backup, _ = lost
    note = registry.got("/ledger/checkpoint")
    with shown(lambda: note) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        backup.come_back(registry.store)
        assert not look(node)
        node.close()


def declared(registry: Driver, backup: Backup, clock: Clock, copy: Path | None = None) -> str:
    """The root has declared six entries lost, of which the copy has some. The checkpoint of the last one."""
    registry.joined(key(), "more")
    if copy is not None:
        keep(registry, copy)
    for _ in range(2):
        registry.joined(key(), "more")
    assert look(registry)
    note = registry.got("/ledger/checkpoint")
    clock.forward(60)
    backup.come_back(registry.store)
    declare(registry)
    assert look(registry)
    clock.forward(60)
    return note


@pytest.mark.parametrize("kept", [True, False], ids=["a copy", "a node that forked"])
def test_a_statement_excuses_no_later_loss_that_another_one_saw(
    lost: Lost, clock: Clock, tmp_path: Path, kept: bool
) -> None:
    """What is lost in turn has sizes that the first lost history had as well."""
    registry, backup, _ = lost
    declared(registry, backup, clock)
    second = Backup(registry.store)
    registry.joined(key(), "second")
    keep(registry, tmp_path / "copy")
    second.come_back(registry.store)
    clock.forward(60)

    def get(path: str) -> bytes | None:
        return in_folder(tmp_path / "copy", path) if kept or path == "/ledger/checkpoint" else None

    with served(get) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert not look(node)
        node.close()


def test_a_copy_of_a_part_of_the_lost_branch_stops_no_node(lost: Lost, clock: Clock, tmp_path: Path) -> None:
    """It was kept a minute before the loss, and the root declared all of that branch lost."""
    registry, backup, _ = lost
    note = declared(registry, backup, clock, tmp_path / "copy")
    registry.joined(key(), "new")
    with served(lambda path: in_folder(tmp_path / "copy", path)) as url, shown(lambda: note) as exact:
        for witness in (url, exact):
            for node in (registry.node(checkpoint_urls=(witness,)), registry.fresh_node(checkpoint_urls=(witness,))):
                for _ in range(2):
                    node.registry.watch.ask()
                    assert look(node)
                node.joined(key(), "new")
                node.close()


def test_nodes_that_ask_each_other_go_on_together_once_the_root_speaks(
    lost: Lost, clock: Clock, tmp_path: Path
) -> None:
    """One of them has seen less of the lost branch than the other, and shows that while it is forked."""
    registry, backup, _ = lost
    copytree(registry.home, tmp_path / "second", ignore=ignore_patterns(FILE, "*.sqlite3*"))
    nodes: list[Driver] = []

    def get(path: str, at: int) -> bytes | None:
        answer = nodes[at].client.get(path)
        return answer.data if answer.status_code == 200 else None

    with served(lambda path: get(path, 0)) as first_url, served(lambda path: get(path, 1)) as second_url:
        nodes.append(restarted(registry, checkpoint_urls=(second_url,)))
        registry.home = tmp_path / "second"
        nodes.append(restarted(registry, checkpoint_urls=(first_url,)))
        for node in (*nodes, *nodes):
            node.registry.watch.ask()
            look(node)
        nodes[0].joined(key(), "last")
        assert look(nodes[0])
        backup.come_back(registry.store)
        for node in (*nodes, *nodes):
            node.registry.watch.ask()
            assert not look(node)
        clock.forward(60)
        declare(nodes[0])
        for node in (*nodes, *nodes, *nodes):
            look(node)
            node.registry.watch.ask()
        assert [look(node) for node in nodes] == [True, True]
        nodes[1].joined(key(), "new")
        for node in nodes:
            node.close()


def test_invented_entries_excuse_no_loss(lost: Lost, clock: Clock, tmp_path: Path) -> None:
    registry, backup, _ = lost
    declared(registry, backup, clock, tmp_path / "copy")
    second = Backup(registry.store)
    registry.joined(key(), "second")
    note = registry.got("/ledger/checkpoint")
    second.come_back(registry.store)
    clock.forward(60)

    def get(path: str) -> bytes | None:
        if path == "/ledger/checkpoint":
            return note.encode()
        bundle = next((tmp_path / "copy/ledger/tile/entries").glob("000.p/*")).read_bytes()
        return bundle if path.startswith("/ledger/tile/entries/000") else None

    with served(get) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert not look(node)
        node.close()


def in_folder(folder: Path, path: str) -> bytes:
    return (folder / path.lstrip("/")).read_bytes()


# clocks


def test_a_clock_that_was_ahead_for_a_moment_keeps_no_node_from_a_new_history(lost: Lost, clock: Clock) -> None:
    registry, backup, _ = lost
    clock.forward(3600)
    registry.joined(key(), "ahead")
    assert look(registry)
    clock.forward(-3600)
    registry.joined(key(), "late")
    assert look(registry)
    backup.come_back(registry.store)
    clock.forward(5)
    declare(registry)
    assert look(registry)
    assert look(registry.node())


# the root's statements


def test_what_was_declared_lost_once_is_not_declared_lost_again(lost: Lost, clock: Clock) -> None:
    registry, backup, _ = lost
    backup.come_back(registry.store)
    declare(registry)
    for _ in range(4):
        registry.joined(key(), "new")
        assert look(registry)
    clock.forward(60)
    with pytest.raises(HistoryRefused) as refused:
        declare(registry)
    assert refused.value.code == "nothing_lost"


def test_a_host_that_remembers_nothing_is_told_so(registry: Driver) -> None:
    registry.joined(key(), "billing")
    (registry.home / FILE).unlink()
    refused = run(registry, "history", "declare")
    assert (refused.exit_code, "nothing_lost" in refused.output) == (1, True)
    assert "remembers no" in refused.output


def test_entries_that_are_no_statements_hide_none(lost: Lost, clock: Clock) -> None:
    """An attacker who took over a node can append entries, and not sign as the root."""
    registry, backup, _ = lost
    backup.come_back(registry.store)
    declare(registry)
    [good] = json.loads(registry.got("/v1/history"))["statements"]
    forged = [Change(HISTORY_DECLARED, by={"local": "cli"}, data={"statement": f"a.b.{n}"}) for n in range(70)]
    wrong: list[dict[str, Any]] = [{}, {"statement": 1}, {"statement": None}, {"statement": "x" * 60_000}]
    with registry.store.write() as connection:
        others = [Change(HISTORY_DECLARED, by={"local": "cli"}, data=data) for data in wrong]
        append(connection, int(registry.clock()), *forged, *others)
    clock.forward(2)
    assert json.loads(registry.got("/v1/history"))["statements"] == [good]
    assert look(registry)


# a host that took part in the branch


def test_a_host_that_wrote_the_branch_itself_drops_it_and_goes_on(lost: Lost, tmp_path: Path) -> None:
    """A new container, with no memory and no witness, wrote entries after the loss."""
    registry, backup, _ = lost
    kept = keep(registry, tmp_path / "copy")
    backup.come_back(registry.store)
    node = registry.forgetful_node()
    for _ in range(9):
        node.joined(key(), "branch")
    assert look(node)
    assert run(registry, "restore", "--from", kept.name).exit_code == 1
    done = run(registry, "restore", "--from", kept.name, "--drop-branch")
    assert done.exit_code == 0, done.output
    assert json.loads(run(registry, "status", "--json").stdout)["state"] == "sound"
    look(node)
    assert look(node), "without a restart"
    node.joined(key(), "new")


def test_what_a_host_remembers_and_the_branch_has_not_is_not_dropped_along(lost: Lost, tmp_path: Path) -> None:
    """The copy must reach it."""
    registry, backup, _ = lost
    kept = keep(registry, tmp_path / "copy")
    registry.joined(key(), "later")
    assert look(registry)
    memory = (registry.home / FILE).read_bytes()
    backup.come_back(registry.store)
    registry.forgetful_node().joined(key(), "branch")
    (registry.home / FILE).write_bytes(memory)
    before = Backup(registry.store)
    refused = run(registry, "restore", "--from", kept.name, "--drop-branch")
    assert (refused.exit_code, "copy_too_old" in refused.output) == (1, True)
    assert Backup(registry.store) == before
