"""The metrics of a service: what they say, that Prometheus reads them, and that workers' counts are added up."""

import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from peerseal import CallLimits, Identity, Metric, TrustLimits, User, metrics
from peerseal.errors import ConfigurationError, MessageRefused
from peerseal.flask import PeerAuth
from peerseal.messaging import EventConsumer
from peerseal.prometheus import PeersealCollector
from peerseal.runtime.files import Folder
from peerseal.runtime.metrics import MOST, Tally
from peerseal.runtime.worker_counters import WorkerCounters
from peerseal.testing import Clock, MemoryRegistry
from tests.peerseal.verify.test_audit_log import Messages, event_headers, verifier_of
from tests.support.asgi import Callee, signed
from tests.support.wire import raw_server

QUIET = TrustLimits(poll_interval=3600)
NOWHERE = "http://127.0.0.1:1"
Read = dict[str, dict[tuple[tuple[str, str], ...], float]]


def read(text: str) -> Read:
    """What Prometheus' own parser makes of it: samples by name and labels."""
    found: Read = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge"), family
        assert family.documentation, family
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), sample
            found[sample.name][labels] = sample.value
    return found


def one(text: str, name: str, **labels: str) -> float:
    """The value of one sample."""
    return read(text)[name][tuple(sorted(labels.items()))]


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    registry.set_domain(minters=["client"])
    return registry.identity("client")


def callee_app(identity: Identity) -> Flask:
    app = Flask(__name__)
    auth = PeerAuth(app, identity, allow={"client": {"read", "write"}})
    app.add_url_rule("/read", view_func=auth.require(scope="read")(lambda: "read"), endpoint="read")
    app.add_url_rule("/any", view_func=lambda: "any", endpoint="any")
    return app


def call(app: Flask, client: Identity, target: str, *, good: bool = True) -> int:
    token = client.sign_request("callee", method="GET", target=target if good else "/another")
    return app.test_client().get(target, headers={"Authorization": f"Bearer {token}"}).status_code


# ---- what an identity tells


def test_calls_are_counted_by_caller_and_scope_and_refusals_by_code(registry: MemoryRegistry, client: Identity) -> None:
    identity = registry.identity("callee")
    app = callee_app(identity)
    assert [call(app, client, target) for target in ("/read", "/read", "/any")] == [200] * 3
    assert call(app, client, "/read", good=False) == 401
    text = identity.metrics()
    caller = "test.internal/client"
    assert one(text, "peerseal_calls_accepted_total", caller=caller, scope="read") == 2
    assert one(text, "peerseal_calls_accepted_total", caller=caller, scope="") == 1
    assert one(text, "peerseal_calls_refused_total", code="wrong_binding") == 1


def test_two_adapters_of_one_identity_are_added_up(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry)
    app = callee_app(callee.identity)
    assert call(app, client, "/any") == 200
    assert callee.call(headers=signed(client)).status == 200
    assert callee.call().status == 401
    assert one(callee.identity.metrics(), "peerseal_calls_accepted_total", caller="test.internal/client", scope="") == 2
    assert one(callee.identity.metrics(), "peerseal_calls_refused_total", code="missing_token") == 1


def test_the_key_s_age_and_what_is_left_of_it(client: Identity, clock: Clock) -> None:
    clock.advance(3600)
    text = client.metrics()
    assert one(text, "peerseal_key_age_seconds") == 3600
    assert 0 < one(text, "peerseal_key_good_for_seconds") <= 7 * 24 * 3600
    assert one(text, "peerseal_identity_info", service="test.internal/client") == 1


def test_the_trust_store_tells_ages_fetches_and_failures(
    registry: MemoryRegistry, client: Identity, clock: Clock
) -> None:
    identity = registry.identity("callee", limits=QUIET)
    identity.trust.key(client.credentials.key_id)
    clock.advance(400)
    registry.down = True
    identity.trust.refresh()
    text = identity.metrics()
    assert one(text, "peerseal_trust_ready") == 1
    assert one(text, "peerseal_trust_age_seconds", service="test.internal/client") == 400
    assert one(text, "peerseal_trust_keys", service="test.internal/client") == 1
    assert one(text, "peerseal_trust_renewal_failures", service="test.internal/client") == 1
    assert one(text, "peerseal_trust_fetch_failures_total", document="key_set") == 1
    assert one(text, "peerseal_trust_fetches_total", document="key_set") == 2


def test_a_service_without_a_key_tells_the_rest(registry: MemoryRegistry) -> None:
    identity = Identity("callee", registry="http://127.0.0.1:1", fetcher=registry)
    text = identity.metrics()
    assert one(text, "peerseal_trust_ready") == 0
    assert "peerseal_key_age_seconds" not in read(text)


def test_collecting_metrics_makes_no_call(registry: MemoryRegistry) -> None:
    identity = Identity("callee", registry="http://127.0.0.1:1", fetcher=registry)
    registry.calls.clear()
    for _ in range(3):
        identity.metrics()
    assert not registry.calls


def test_minted_transactions_are_counted(client: Identity) -> None:
    user = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    for _ in range(3):
        client.mint_transaction(user, scope=["read"])
    assert one(client.metrics(), "peerseal_transactions_minted_total") == 3


def test_a_consumer_tells_what_it_accepted_handled_refused_and_tried_again(
    registry: MemoryRegistry, client: Identity
) -> None:
    identity, messages = registry.identity("invoicing"), Messages()
    consumer = EventConsumer(identity, verifier_of(identity), messages, messages, pauses=[0.0])
    attempts: Counter[str] = Counter()

    def handle(event: Any) -> None:
        attempts[event.id] += 1
        if event.id == "e-2" and attempts[event.id] < 3:
            raise OSError("away")
        if event.id == "e-3":
            raise MessageRefused("malformed_order", "no order")

    for event_id in ("e-1", "e-2", "e-3"):
        messages.put(b"{}", event_headers(client, event_id))
    messages.put(b"{}", {})
    for _ in range(4):
        consumer.run_once(handle)
    text = identity.metrics()
    caller = {"caller": "test.internal/client", "scope": "trigger_invoicing"}
    assert one(text, "peerseal_events_accepted_total", **caller) == 3
    assert one(text, "peerseal_events_handled_total") == 2
    assert one(text, "peerseal_events_refused_total", code="malformed_order") == 1
    assert one(text, "peerseal_events_refused_total", code="missing_token") == 1
    assert one(text, "peerseal_events_retried_total", code="OSError") == 2


def test_a_service_is_ready_once_it_has_a_key_and_knows_the_registry_s(registry: MemoryRegistry, clock: Clock) -> None:
    token = registry.join_token("late")
    late = Identity("late", registry="http://127.0.0.1:1", fetcher=registry, join_token=token, clock=clock)
    assert not late.is_ready()
    late.start()
    try:
        assert late.is_ready()
        clock.advance(10 * 365 * 24 * 3600)
        assert not late.is_ready()
    finally:
        late.stop()


# ---- what others add


def test_a_source_of_the_application_is_told_as_well(client: Identity) -> None:
    client.add_metrics(lambda: [Metric("shop_outbox_waiting", "gauge", "Events that wait.", (({"topic": "A"}, 7),))])
    assert one(client.metrics(), "shop_outbox_waiting", topic="A") == 7


def test_a_source_that_fails_takes_nothing_from_the_others(client: Identity, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Metric]:
        raise OSError("the database is away")

    client.add_metrics(broken)
    client.metrics()
    text = client.metrics()
    assert one(text, "peerseal_key_age_seconds") >= 0
    assert one(text, "peerseal_metrics_failures_total") == 2
    assert "the database is away" in caplog.text


def test_what_is_no_function_is_no_source(client: Identity) -> None:
    source: Any = "metrics"
    with pytest.raises(ConfigurationError, match="source of metrics"):
        client.add_metrics(source)


def test_circuits_are_told_by_origin(client: Identity) -> None:
    limits = CallLimits(failures=2)
    with raw_server() as server, client.session("callee", server.url, limits=limits) as session:
        session.get("/answered")
    with client.session("callee", NOWHERE, limits=limits, retries=0) as session:
        for _ in range(3):
            with pytest.raises(requests.ConnectionError):
                session.get("/refused")
    text = client.metrics()
    assert one(text, "peerseal_circuit_state", origin=server.url, state="closed") == 1
    assert one(text, "peerseal_circuit_failures", origin=server.url) == 0
    assert one(text, "peerseal_circuit_state", origin=NOWHERE, state="open") == 1
    assert one(text, "peerseal_circuit_failures", origin=NOWHERE) == 2
    assert one(text, "peerseal_circuit_refused", origin=NOWHERE) == 1


def test_prometheus_client_tells_the_same(registry: MemoryRegistry, client: Identity) -> None:
    identity = registry.identity("callee")
    call(callee_app(identity), client, "/read")
    collectors = CollectorRegistry()
    collectors.register(PeersealCollector(identity))
    ours, theirs = read(identity.metrics()), read(generate_latest(collectors).decode())
    changing = {name for name in ours if name.startswith("peerseal_process_")}
    assert ours.keys() == theirs.keys()
    assert [ours[name] for name in ours.keys() - changing] == [theirs[name] for name in ours.keys() - changing]


def test_prometheus_client_gets_one_family_of_two_applications_of_one_identity(
    registry: MemoryRegistry, client: Identity
) -> None:
    identity = registry.identity("callee")
    for app in (callee_app(identity), callee_app(identity)):
        call(app, client, "/read")
    collectors = CollectorRegistry()
    collectors.register(PeersealCollector(identity))
    told = [line for line in generate_latest(collectors).decode().splitlines() if "calls_accepted_total{" in line]
    assert [line.rpartition(" ")[2] for line in told] == ["2.0"]


# ---- the format


@given(st.text(max_size=30), st.floats())
def test_whatever_a_label_or_a_number_is_prometheus_reads_it_back(text: str, number: float) -> None:
    label = text.encode("utf-8", "replace").decode()
    (value,) = read(metrics(lambda: [Metric("a_b", "gauge", "Help\\ \n me.", (({"label": label}, number),))]))[
        "a_b"
    ].items()
    assert value[0] == (("label", label),)
    assert value[1] == number or math.isnan(number)


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        ("no name", "gauge", {}),
        ("1st", "gauge", {}),
        ("a", "counter", {}),
        ("a_total", "gauge", {}),
        ("a", "histogram", {}),
        ("a", "gauge", {"a-b": "c"}),
        ("a", "gauge", {'a"} 1\nb{x="': "c"}),
    ],
)
def test_what_prometheus_cannot_read_is_a_mistake(name: str, kind: Any, labels: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Metric(name, kind, "help", ((labels, 1),))


def test_one_name_is_not_a_counter_here_and_a_gauge_there() -> None:
    made = [Metric("a_total", "counter", "A.", (({}, 1),)), Metric("a_total", "counter", "A.", (({}, 2),))]
    assert read(metrics(lambda: made)) == {"a_total": {(): 3}}


def test_callers_that_are_too_many_are_counted_together() -> None:
    tally = Tally("calls_total", "Calls.", "caller", "scope")
    for number in range(MOST + 50):
        tally.add(f"s{number}", "read")
        tally.add("s0", "read")
    samples = read(metrics(lambda: [tally.metric()]))["calls_total"]
    assert len(samples) == MOST + 1
    assert samples[("caller", "other"), ("scope", "other")] == 50
    assert samples[("caller", "s0"), ("scope", "read")] == MOST + 51


# ---- several workers

WORKER = """
import sys
from pathlib import Path
from peerseal.runtime.metrics import Metric
from peerseal.runtime.worker_counters import WorkerCounters
from peerseal.runtime.files import Folder

shared = WorkerCounters(Folder(sys.argv[1]))
for line in sys.stdin:
    counted = int(line)
    shared.publish([
        Metric("calls_total", "counter", "Calls.", (({"code": 'a"b'}, counted),)),
        Metric("age", "gauge", "Age.", (({}, counted),)),
    ])
    print("published", flush=True)
"""


class Worker:
    """Another process with the same parent as this test's own `WorkerCounters` has to seem to have."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def count(self, number: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "published\n"

    def end(self, how: int | None = None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if how is None:
            self.process.stdin.close()
        else:
            self.process.send_signal(how)
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerCounters:
    """This process as one more worker with its children: as if their parent were its own."""
    monkeypatch.setattr(os, "getppid", os.getpid)
    return WorkerCounters(Folder(tmp_path / "counts"))


def calls(number: float) -> Metric:
    return Metric("calls_total", "counter", "Calls.", (({"code": 'a"b'}, number),))


def total(shared: WorkerCounters, own: float) -> float:
    text = metrics(lambda: shared.total([calls(own)]))
    assert "age" not in read(text)  # a gauge of another process
    return one(text, "calls_total", code='a"b')


def test_counters_of_all_workers_are_added_up_and_never_go_back(tmp_path: Path, shared: WorkerCounters) -> None:
    first, second = Worker(tmp_path / "counts"), Worker(tmp_path / "counts")
    first.count(1)
    first.count(3)
    second.count(10)
    assert total(shared, 100) == 113
    first.end()
    assert total(shared, 100) == 113
    second.end(signal.SIGKILL)
    assert total(shared, 100) == 113
    third = Worker(tmp_path / "counts")
    third.count(1000)
    assert total(shared, 100) == 1113
    third.end()
    assert total(shared, 100) == 1113


def test_files_of_workers_that_have_ended_become_one(tmp_path: Path, shared: WorkerCounters) -> None:
    for number in range(1, 6):
        worker = Worker(tmp_path / "counts")
        worker.count(number)
        worker.end()
    shared.publish([calls(100)])
    names = sorted(name for name in os.listdir(tmp_path / "counts") if name.endswith(".json"))
    assert len(names) == 2
    assert any(name.endswith("-ended.json") for name in names)
    assert total(shared, 100) == 115
    for path in (tmp_path / "counts").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"metrics": [["calls_total"]]}', b'{"metrics": {}, "folded": 7}']
)
def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path, shared: WorkerCounters, content: bytes) -> None:
    worker = Worker(tmp_path / "counts")
    worker.count(5)
    (file,) = (tmp_path / "counts").glob("*.json")
    file.write_bytes(content)
    assert total(shared, 1) == 1
    worker.count(6)
    assert total(shared, 1) == 7
    worker.end()


def test_where_nothing_can_be_written_each_worker_tells_its_own_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "counts").write_text("a file, and no folder")
    shared = WorkerCounters(Folder(tmp_path / "counts"))
    for number in range(3):
        shared.publish([calls(number)])
        assert total(shared, number) == number
    assert len(caplog.messages) == 1
    assert "cannot be added up" in caplog.text


def test_what_another_server_left_long_ago_is_removed(tmp_path: Path, shared: WorkerCounters) -> None:
    folder = tmp_path / "counts"
    folder.mkdir(mode=0o700)
    old, new = folder / "gone-1-2-00000000.json", folder / "there-1-2-00000000.json"
    for file in (old, new):
        file.write_text("{}")
        file.chmod(0o600)
    os.utime(old, (0, time.time() - 30 * 24 * 3600))
    shared.publish([calls(1)])
    assert not old.exists()
    assert new.exists()


def test_a_forked_child_counts_from_nothing(tmp_path: Path) -> None:
    tally = Tally("calls_total", "Calls.")
    tally.add()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        tally.add()
        os.write(write_end, metrics(lambda: [tally.metric()]).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as pipe:
        assert one(pipe.read(), "calls_total") == 1
    assert one(metrics(lambda: [tally.metric()]), "calls_total") == 1
