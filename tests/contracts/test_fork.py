"""The database lost or replaced entries that were signed: a registry notices, signs nothing and appends nothing, and
goes on where an operator mends it; on both databases."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, event, make_url, update

from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.tokens.claims import new_jti
from registry.domain.errors import LedgerContradicted, LedgerForked, LedgerUnconfirmed
from registry.services.authority.ledger_memory import EARLIER_FILE, FILE, LedgerMemory
from registry.services.setup.ceremony import Ceremony, signed, written
from registry.storage.queries import ledger
from registry.storage.queries.ledger import Change, append
from registry.storage.tables import ledger_head
from tests.contracts.backups import Backup
from tests.registry.driver import BY, Clock, Driver, entries_of, outcome
from tests.support.keys import key


def grow(registry: Driver, entries: int) -> None:
    """So many entries more, which another program appended: no process here knows of them."""
    changes = [Change("operator_revoked", by=BY, data={"id": new_jti()}) for _ in range(entries)]
    with registry.store.write() as connection:
        append(connection, int(registry.clock()), *changes)


def renewed(registry: Driver) -> str:
    """The next document of the root."""
    request = Ceremony(registry.settings, registry.store, registry.clock).requested([], drop_past=False)
    return signed(written(request), registry.settings.root_key_file)


def forked_metric(registry: Driver) -> float:
    families = text_string_to_metric_families(registry.client.get("/metrics").text)
    [sample] = [one for family in families for one in family.samples if one.name == "registry_ledger_forked"]
    return sample.value


def ready(registry: Driver) -> tuple[int, bool]:
    answer = registry.client.get("/readyz?for=write")
    return answer.status_code, answer.get_json()["ledger"]


def assert_signs_nothing(registry: Driver, token: Any) -> None:
    before = Backup(registry.store)
    assert outcome(registry.join(key(), "billing", token)) == (503, "ledger_contradicted")
    assert outcome(registry.client.get("/v1/changes?since=1")) == (503, "ledger_contradicted")
    assert outcome(registry.client.get("/v1/services/late/jwks.jwt")) == (503, "ledger_contradicted")
    assert outcome(registry.client.get("/ledger/tile/0/000.p/1")) == (503, "ledger_contradicted")
    assert ready(registry) == (503, False)
    assert forked_metric(registry) == 1
    assert Backup(registry.store) == before


@pytest.fixture
def lost(registry: Driver) -> tuple[Driver, Backup, Any]:
    """A registry of which the database is that of a moment ago: the service ``late`` was registered since."""
    token = registry.join_token("billing", uses=9)
    registry.joined(key(), "billing")
    registry.client.get("/v1/services/billing/jwks.jwt")
    backup = Backup(registry.store)
    registry.joined(key(), "late")
    registry.got("/ledger/checkpoint")
    registry.registry.watch.look()
    return registry, backup, token


Lost = tuple[Driver, Backup, Any]


def test_many_callers_at_once_are_told_of_a_ledger_that_became_shorter(lost: Lost) -> None:
    """Each looks at the ledger a second time, while it holds a connection: more callers than there are connections."""
    registry, backup, _ = lost
    backup.come_back(registry.store)

    def told(number: int) -> tuple[int, str]:
        return outcome(registry.app.test_client().get(f"/v1/services/late-{number}/policy.jwt"))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(told, range(24))) == {(503, "ledger_contradicted")}


def test_a_ledger_that_became_shorter_gets_no_signature_and_no_entry(
    lost: Lost, caplog: pytest.LogCaptureFixture
) -> None:
    registry, backup, token = lost
    seen = registry.got("/ledger/checkpoint")
    backup.come_back(registry.store)
    with caplog.at_level(logging.ERROR):
        assert_signs_nothing(registry, token)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1, "said once, however often it is asked"
    assert "LEDGER FORKED" in said[0]
    assert "peerseal-registry status" in said[0]
    assert seen.split("\n")[1] + " entries" in said[0]
    assert registry.got("/ledger/checkpoint") == seen, "what was signed before tells others which ledger was seen"


@pytest.mark.parametrize("behind", [1, 2, 300])
def test_a_ledger_that_grew_past_the_old_size_on_another_branch_gets_none_either(lost: Lost, behind: int) -> None:
    registry, backup, token = lost
    backup.come_back(registry.store)
    grow(registry, behind)
    assert_signs_nothing(registry, token)


def test_a_ledger_of_the_same_size_with_another_root_is_no_continuation(lost: Lost) -> None:
    registry, backup, token = lost
    size = len(entries_of(registry.store))
    backup.come_back(registry.store)
    grow(registry, size - len(entries_of(registry.store)))
    assert_signs_nothing(registry, token)


def test_nor_is_one_after_a_restart(lost: Lost) -> None:
    registry, backup, _ = lost
    backup.come_back(registry.store)
    grow(registry, 5)
    with pytest.raises(LedgerForked, match="this node saw"):
        registry.node()  # as `init` and `serve` begin


def test_the_very_last_entry_that_was_acknowledged_counts(lost: Lost) -> None:
    """It is the one that a replica is most likely to lack."""
    registry, _, token = lost
    backup = Backup(registry.store)
    assert registry.join(key(), "billing", token).status_code == 201
    backup.come_back(registry.store)
    assert_signs_nothing(registry, token)


def test_nor_is_it_forgotten_by_a_host_that_had_not_written_it_down_when_it_was_lost(lost: Lost) -> None:
    """Clients have seen it, and what the root declares lost must reach as far."""
    registry, _, token = lost
    backup = Backup(registry.store)
    assert registry.join(key(), "billing", token).status_code == 201
    size = len(entries_of(registry.store))
    backup.come_back(registry.store)
    with pytest.raises(LedgerForked):
        registry.registry.watch.look()
    remembered = LedgerMemory(registry.home).read()
    assert remembered is not None
    assert remembered.size == size


def test_a_size_that_an_earlier_release_remembered_is_taken_over(lost: Lost) -> None:
    registry, backup, token = lost
    size = registry.registry.fork_guard.known
    assert size is not None
    (registry.home / FILE).unlink()
    (registry.home / EARLIER_FILE).write_text(f"{size.size}\n")
    node = registry.node()
    assert node.join(key(), "billing", token).status_code == 201
    assert (registry.home / FILE).exists()
    backup.come_back(registry.store)
    (registry.home / FILE).unlink()
    with pytest.raises(LedgerForked):
        registry.node()


def test_documents_in_memory_are_served_until_they_expire(lost: Lost, clock: Clock) -> None:
    registry, backup, token = lost
    warm = registry.got("/v1/services/billing/jwks.jwt")
    backup.come_back(registry.store)
    assert_signs_nothing(registry, token)
    clock.forward(3600)
    assert registry.got("/v1/services/billing/jwks.jwt") == warm
    clock.forward(23 * 3600)
    assert outcome(registry.client.get("/v1/services/billing/jwks.jwt")) == (503, "ledger_contradicted")


def test_a_registry_signs_again_when_the_database_has_the_old_ledger_again(lost: Lost) -> None:
    registry, backup, token = lost
    whole = Backup(registry.store)
    backup.come_back(registry.store)
    assert_signs_nothing(registry, token)
    whole.come_back(registry.store)
    assert ready(registry) == (200, True)
    assert forked_metric(registry) == 0
    assert registry.join(key(), "billing", token).status_code == 201


def test_commands_append_nothing_either(lost: Lost) -> None:
    registry, backup, _ = lost
    backup.come_back(registry.store)
    grow(registry, 5)
    before = Backup(registry.store)
    with pytest.raises(LedgerContradicted):
        registry.registry.join_tokens.create("shop", 60, 1, BY)
    with pytest.raises(LedgerContradicted):
        Ceremony(registry.settings, registry.registry.store, registry.clock).publish(renewed(registry))
    assert Backup(registry.store) == before


# what is no fork


@pytest.mark.parametrize("entries", [1, 7, 256, 257, 700])
def test_what_other_nodes_append_is_a_continuation(registry: Driver, entries: int) -> None:
    token = registry.join_token("billing", uses=9)
    registry.joined(key(), "billing")
    grow(registry, entries)
    assert registry.join(key(), "billing", token).status_code == 201
    assert ready(registry) == (200, True)
    grow(registry, entries)
    node = registry.node()
    assert node.join(key(), "billing", token).status_code == 201


def test_an_entry_whose_transaction_failed_is_not_remembered(registry: Driver) -> None:
    before = Backup(registry.store)
    for _ in range(3):
        with registry.registry.store.write() as connection:
            append(connection, int(registry.clock()), Change("operator_revoked", by=BY, data={"id": new_jti()}))
            connection.rollback()
    assert Backup(registry.store) == before
    registry.joined(key(), "billing")
    assert ready(registry) == (200, True)


def test_a_reader_that_began_a_moment_ago_sees_no_fork(registry: Driver) -> None:
    """Its transaction sees a ledger that is shorter than the one that this process has seen since."""
    store = registry.registry.store
    with store.read() as connection:
        ledger.head(connection)  # the moment of which all is seen
        joining = threading.Thread(target=lambda: registry.joined(key(), "billing"))
        joining.start()
        joining.join()
        known = registry.registry.fork_guard.known
        assert known is not None
        assert ledger.frontier(connection).size < known.size
    assert ready(registry) == (200, True)


def test_an_altered_head_is_not_signed(registry: Driver) -> None:
    registry.joined(key(), "billing")
    with registry.store.write() as connection:
        edge = ledger.frontier(connection)
        altered = edge.appended(bytes(32))
        connection.execute(update(ledger_head).values(size=altered.size, frontier=altered.encode()))
    assert outcome(registry.client.get("/v1/changes?since=1")) == (503, "ledger_contradicted")


class Statements:
    """What the registry asks its database."""

    def __init__(self, registry: Driver) -> None:
        self._engine = registry.registry.store.engine
        self.said: list[str] = []

    def __enter__(self) -> "Statements":
        event.listen(self._engine, "before_cursor_execute", self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._heard)

    def _heard(self, _c: Connection, _d: Any, statement: str, *_: Any) -> None:
        self.said.append(statement)


def test_an_append_that_follows_its_own_reads_nothing_of_the_tree(registry: Driver) -> None:
    tokens = [registry.join_token("billing") for _ in range(3)]
    registry.joined(key(), "billing")
    counts = []
    for token in tokens:
        with Statements(registry) as statements:
            assert registry.join(key(), "billing", token).status_code == 201
        assert not [one for one in statements.said if "leaf" in one and "SELECT" in one.upper().split("INSERT")[0]]
        counts.append(len(statements.said))
    grow(registry, 1)
    token = registry.join_token("billing")
    grow(registry, 1)
    with Statements(registry) as statements:
        assert registry.join(key(), "billing", token).status_code == 201
    assert len(statements.said) == counts[-1] + 1, "one query for the leaves that others appended"


def test_a_warm_answer_asks_no_more_than_before(registry: Driver) -> None:
    registry.joined(key(), "billing")
    registry.got("/v1/services/billing/jwks.jwt")
    with Statements(registry) as statements:
        registry.got("/v1/services/billing/jwks.jwt")
    assert statements.said == []


# who else may have seen it


@contextmanager
def served(get: Callable[[str], bytes | None]) -> Iterator[str]:
    """The URL of a web server that has what ``get`` finds under a path, and for None 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                found, missing = get(self.path), 503
            except OSError:
                found, missing = None, 404
            self.send_response(missing if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def shown(note: Callable[[], str | None]) -> Iterator[str]:
    """A URL under which a checkpoint is shown, as by a mirror; None: it does not answer."""

    def get(path: str) -> bytes | None:
        found = note() if path == "/ledger/checkpoint" else None
        return None if found is None else found.encode()

    with served(get) as url:
        yield url


def test_a_host_that_remembers_nothing_waits_for_the_word_of_others(lost: Lost) -> None:
    registry, _, token = lost
    answers: list[str | None] = [None, registry.got("/ledger/checkpoint")]
    with shown(lambda: answers[0]) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert outcome(node.client.get("/v1/changes?since=1")) == (503, "ledger_unconfirmed")
        assert outcome(node.join(key(), "billing", token)) == (503, "ledger_unconfirmed")
        assert ready(node) == (503, False)
        with pytest.raises(LedgerUnconfirmed):
            node.registry.authority.current()  # as what signs tokens asks for it
        answers.pop(0)
        node.registry.watch.ask()
        assert ready(node) == (200, True)
        assert node.join(key(), "billing", token).status_code == 201
        node.close()


def test_a_host_that_remembers_nothing_learns_of_a_fork_from_others(
    lost: Lost, caplog: pytest.LogCaptureFixture
) -> None:
    registry, backup, token = lost
    note = registry.got("/ledger/checkpoint")
    backup.come_back(registry.store)
    grow(registry, 5)
    with shown(lambda: note) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert_signs_nothing(node, token)
        assert url in caplog.text
        node.close()


def test_a_checkpoint_that_no_ledger_key_signed_is_no_word(lost: Lost, tmp_path: Path) -> None:
    registry, _, _ = lost
    other = Driver(f"sqlite:///{tmp_path / 'other.sqlite3'}", tmp_path / "other")
    forged = other.got("/ledger/checkpoint")
    other.close()
    with shown(lambda: forged) as url:
        node = registry.fresh_node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert outcome(node.client.get("/v1/changes?since=1")) == (503, "ledger_unconfirmed")
        node.close()


def test_others_who_do_not_answer_stop_no_host_that_remembers(lost: Lost) -> None:
    registry, _, token = lost
    with shown(lambda: None) as url:
        node = registry.node(checkpoint_urls=(url,))
        node.registry.watch.ask()
        assert node.join(key(), "billing", token).status_code == 201
        node.close()


def test_the_memory_names_the_newest_head_and_earlier_ones(lost: Lost) -> None:
    registry, _, _ = lost
    for _ in range(5):
        registry.joined(key(), "billing")
        registry.registry.watch.look()
    members = strict_json_object((registry.home / FILE).read_bytes())
    note = registry.got("/ledger/checkpoint")
    assert members["checkpoint"].split("\n")[:3] == note.split("\n")[:3]
    sizes = [one["size"] for one in members["before"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] < members["head"]["size"]


def test_a_copy_of_the_database_that_went_its_own_way_is_a_fork(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> None:
    """As after the promotion of a replica: another database at the same address."""
    postgres = request.getfixturevalue("postgres")
    first = Driver(postgres.new_database(), tmp_path / "home", clock)
    first.joined(key(), "billing")
    first.registry.store.engine.dispose()
    first.store.engine.dispose()
    name, copied = make_url(first.url).database, f"test_{new_jti()[:20].replace('-', '_').lower()}"
    postgres.execute(f'CREATE DATABASE "{copied}" TEMPLATE "{name}"')
    first.joined(key(), "late")
    first.registry.watch.look()
    promoted = make_url(first.url).set(database=copied).render_as_string(hide_password=False)
    with pytest.raises(LedgerForked):
        Driver(promoted, tmp_path / "home", clock)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (tmp_path / "home").iterdir():
        if file.is_file() and file.name != FILE:
            (elsewhere / file.name).write_bytes(file.read_bytes())
            (elsewhere / file.name).chmod(0o600)
    older = Driver(promoted, elsewhere, clock)  # a node with no memory goes on there
    for _ in range(5):
        older.joined(key(), "branch")
    older.close()
    with pytest.raises(LedgerForked):
        Driver(promoted, tmp_path / "home", clock)
    first.close()
