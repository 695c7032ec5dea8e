"""What a mirror reads from is late, damaged, stopped or shows another ledger; and its own disk is full."""

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.__main__ import main
from peerseal.audit.monitor import GRACE, Monitor
from peerseal.audit.monitor_state import MonitorState
from peerseal.audit.public_mirror import PublicMirror
from peerseal.audit.serving import served
from peerseal.errors import DocumentRefused, FetchError
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.merkle import HASH_SIZE
from peerseal.protocol.names import make_kid, service_id
from peerseal.transport.fetch import HttpFetcher
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.registry.in_process import InProcess
from tests.support.keys import key
from tests.support.misbehaving import refused
from tests.support.waiting import until

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)
ROOM = 1000
"""Bytes of a file that a process may write: messages, and no bundle."""


@pytest.fixture
def clock() -> Clock:
    """It stands, and the commands' clock runs: documents of now are valid for a minute."""
    return Clock(int(time.time()))


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home", clock)
    yield driver
    driver.close()


@pytest.fixture
def billing(registry: Driver) -> KeyPair:
    return registry.joined(key(), "billing")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def upstream(registry: Driver, billing: KeyPair, tmp_path: Path) -> Path:
    """The folder of a mirror that is up to date."""
    return mirrored(registry, tmp_path / "upstream")


@pytest.fixture
def url(upstream: Path, opened: ExitStack) -> str:
    return url_of(upstream, opened)


def mirrored(registry: Driver, folder: Path) -> Path:
    PublicMirror(folder, InProcess(registry), registry.pin, clock=registry.clock).update()
    return folder


def url_of(folder: Path, opened: ExitStack) -> str:
    return f"http://127.0.0.1:{opened.enter_context(served(folder, '127.0.0.1:0'))}"


def following(registry: Driver, folder: Path, *urls: str) -> PublicMirror:
    return PublicMirror(folder, HttpFetcher(urls), registry.pin, clock=registry.clock)


def entries_in(folder: Path) -> int:
    return int((folder / "ledger/checkpoint").read_text().splitlines()[1])


def newest_bundle(folder: Path) -> Path:
    return folder / f"ledger/tile/entries/000.p/{entries_in(folder)}"


def flip(file: Path, at: int = -2) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


# late


@pytest.mark.parametrize("command", ["mirror", "keep-ledger"])
@pytest.mark.parametrize("entries", range(1, 5))
def test_a_mirror_that_is_behind_ends_no_mirror_of_registry_and_mirror_while_the_registry_is_down(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, command: str, entries: int
) -> None:
    for _ in range(entries):
        registry.join_token("shipping")
    folder = mirrored(registry, tmp_path / "second")
    assert entries_in(folder) == entries_in(upstream) + entries
    options = ["--once", "--pin", registry.pin, "--registry", f"{refused()},{url}"]
    assert main([command, str(folder), *options]) == 0
    assert entries_in(folder) == entries_in(upstream) + entries


def test_the_newest_of_several_mirrors_is_read(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, opened: ExitStack, clock: Clock
) -> None:
    registry.joined(key(), "shipping")
    clock.forward(1)
    folder = mirrored(registry, tmp_path / "third")
    registry.joined(key(), "shipping")
    clock.forward(1)
    newer = mirrored(registry, tmp_path / "newer")
    assert entries_in(upstream) < entries_in(folder) < entries_in(newer)
    found = following(registry, folder, refused(), url, url_of(newer, opened)).update()
    assert found.entries == entries_in(folder) == entries_in(newer)


def test_a_mirror_that_is_behind_raises_no_alarm_while_the_registry_is_down(
    registry: Driver, billing: KeyPair, upstream: Path, url: str, clock: Clock
) -> None:
    for entries in range(8):
        watched = MonitorState("billing", known=frozenset((kid_of(billing),)), pin=registry.pin)
        seen = Monitor(InProcess(registry), watched, clock=clock)
        assert [alert.kind for alert in seen.look()] == ["join_token_created"]
        monitor = Monitor(HttpFetcher([refused(), url]), seen.state, clock=clock)
        assert monitor.look() == [], f"{entries} entries behind"
        registry.join_token("shipping")


def test_a_mirror_that_has_no_evidence_raises_no_alarm_while_the_registry_is_down(
    registry: Driver, billing: KeyPair, upstream: Path, url: str, clock: Clock
) -> None:
    watched = MonitorState("billing", known=frozenset((kid_of(billing),)), pin=registry.pin)
    registry.rotate(billing, key(), "billing")
    mirrored(registry, upstream)
    while_down = Monitor(HttpFetcher([refused(), url]), watched, clock=clock)
    assert while_down.look() == []
    later = Monitor(InProcess(registry), while_down.state, clock=clock)
    assert [alert.kind for alert in later.look()] == ["join_token_created"]
    clock.forward(GRACE)
    assert [alert.kind for alert in while_down.look()] == ["join_token_created", "unknown_key"], "withheld for too long"


# damaged


def test_a_damaged_bundle_is_read_from_the_next_url(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, opened: ExitStack
) -> None:
    shutil.copytree(upstream, tmp_path / "whole")
    flip(newest_bundle(upstream))
    found = following(registry, tmp_path / "third", url, url_of(tmp_path / "whole", opened)).update()
    assert found.entries == entries_in(tmp_path / "whole")
    assert newest_bundle(tmp_path / "third").read_bytes() == newest_bundle(tmp_path / "whole").read_bytes()


def test_a_damaged_bundle_alone_leaves_the_mirror_as_it_is_until_it_is_mended(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "third"
    mirror = following(registry, folder, url)
    mirror.update()
    before = entries_in(folder)
    registry.joined(key(), "shipping")
    clock.forward(1)
    mirrored(registry, upstream)
    flip(newest_bundle(upstream))
    with pytest.raises(DocumentRefused) as caught:
        mirror.update()
    assert (caught.value.code, entries_in(folder)) == ("document_not_in_ledger", before)
    flip(newest_bundle(upstream))
    assert mirror.update().entries == entries_in(upstream)


@pytest.mark.parametrize("command", ["mirror", "keep-ledger"])
def test_no_damaged_file_ends_a_mirror_for_good(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each byte of the files that a mirror reads first, in some steps."""
    options = ["--once", "--pin", registry.pin, "--registry", url]
    for name in (".well-known/peerseal-registry", "ledger/checkpoint", newest_bundle(upstream)):
        file = upstream / name
        for at in range(0, len(file.read_bytes()), 97):
            flip(file, at)
            assert main([command, str(tmp_path / "third"), *options]) in (1, 3), (name, at)
            flip(file, at)
    assert main([command, str(tmp_path / "third"), *options]) == 0


def test_a_root_s_document_that_is_damaged_anywhere_is_of_no_other_registry(registry: Driver, clock: Clock) -> None:
    jws = registry.client.get("/.well-known/peerseal-registry").get_data(as_text=True)
    for at, char in enumerate(jws):
        damaged = f"{jws[:at]}{'A' if char != 'A' else 'B'}{jws[at + 1 :]}"
        with pytest.raises(DocumentRefused) as caught:
            read_registry_keys(damaged, pin=registry.pin, now=clock())
        assert not caught.value.of_another_registry, (at, caught.value)


def test_damaged_tiles_of_a_mirror_end_no_mirror_that_follows_it(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, clock: Clock
) -> None:
    """A running mirror asks for tiles, to prove that a document's ledger continues the one before."""
    mirror = following(registry, tmp_path / "third", url)
    mirror.update()
    registry.joined(key(), "shipping")
    clock.forward(1)
    mirrored(registry, upstream)
    tile = upstream / f"ledger/tile/0/000.p/{entries_in(upstream)}"
    for at in range(0, tile.stat().st_size, HASH_SIZE):
        flip(tile, at)
    with pytest.raises(FetchError, match="contradicts the ledger"):
        mirror.update()


# stopped


def test_a_mirror_starts_from_one_that_stopped_minutes_ago_and_says_since_when(
    registry: Driver, billing: KeyPair, upstream: Path, url: str, tmp_path: Path, opened: ExitStack, clock: Clock
) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(clock()))
    clock.forward(600)
    mirror = following(registry, tmp_path / "third", url)
    for _ in range(2):
        with pytest.raises(DocumentRefused, match=f"the mirror upstream has not been updated since {since}"):
            mirror.update()
    store = trust_in(registry, url_of(tmp_path / "third", opened), opened)
    assert store.key(kid_of(billing)).kid == kid_of(billing)
    mirrored(registry, upstream)
    assert mirror.update().failed == 0


def test_a_mirror_that_stopped_longer_ago_than_peers_believe_is_not_copied(
    registry: Driver, url: str, tmp_path: Path, clock: Clock
) -> None:
    clock.forward(QUIET.offline_limit + 1)
    with pytest.raises(DocumentRefused, match="has not been updated since"):
        following(registry, tmp_path / "third", url).update()
    assert not (tmp_path / "third" / "v1").exists()


def trust_in(registry: Driver, url: str, opened: ExitStack) -> TrustStore:
    store = TrustStore(url, pin=registry.pin, limits=QUIET, clock=registry.clock)
    opened.callback(store.stop)
    return store


def kid_of(pair: KeyPair) -> str:
    return make_kid(service_id(DOMAIN, "billing"), pair.public.thumbprint)


# its own disk


@contextmanager
def running(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, as a process that ends well when it is told to."""
    with log.open("wb") as messages:
        process = subprocess.Popen([sys.executable, "-m", "peerseal", *arguments], stdout=messages, stderr=messages)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


@pytest.mark.parametrize("command", ["mirror", "keep-ledger"])
def test_a_full_disk_is_said_once_and_the_mirror_goes_on_when_there_is_room(
    registry: Driver, upstream: Path, url: str, tmp_path: Path, command: str
) -> None:
    """Each file that it writes from then on is longer than the process may write; its messages are not."""
    log, folder = tmp_path / "log", tmp_path / "third"
    with running(log, command, str(folder), "--interval=0.1", f"--pin={registry.pin}", "--registry", url) as process:
        until((folder / "v1/changes/recent.jwt" if command == "mirror" else folder / "ledger/checkpoint").exists, 60)
        before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (ROOM, before[1]))
        registry.joined(key(), "shipping")
        mirrored(registry, upstream)
        until(lambda: b"not updated" in log.read_bytes(), 60, what="the message")
        asked = entries_in(folder)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
        until(lambda: entries_in(folder) == entries_in(upstream), 60, what="the next update")
    assert asked < entries_in(upstream)
    said = [line for line in log.read_text().splitlines() if "File too large" in line]
    assert len(said) == 1, log.read_text()
    assert said[0].startswith(f"not updated: {folder}/ledger/")
