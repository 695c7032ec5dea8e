"""Thousands of peers that watch a registry through nginx's cache, while a key is revoked each second.

Each peer asks for the list of recent changes once a second, over a connection of its own and at times of its own, as a
trust store does. Some are trust stores; the others, coroutines of a few processes, do nothing else. They check each
distinct list once in a process: what its check costs a peer is measured elsewhere.
"""

import asyncio
import multiprocessing
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import requests

from benchmarks import cores
from benchmarks.figures import Figure, Goal
from benchmarks.operators import Operator
from benchmarks.spread import percentile
from peerseal import TrustLimits, TrustStore
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.frame import read_document
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, read_registry_keys
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.names import make_kid
from peerseal.trust.changes import RECENT
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.revoked import is_revoked

PROCESSES = 2
TRUST_STORES = 20
"""Of all peers."""
SETTLE = 3.0
"""Seconds until the peers, which connected one after the other, ask at times of their own."""
_POLL = TrustLimits().poll_interval
_CACHE = """
    proxy_cache_path {folder}/cache keys_zone=registry:10m max_size=1g inactive=1h;
    map $msec $second {{ ~^(\\d+) $1; }}
    server {{
        listen {address} backlog=16384;
        keepalive_timeout 120;
        keepalive_requests 100000;
        proxy_http_version 1.1;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_cache registry;
        proxy_cache_lock on;
        proxy_cache_revalidate on;
        proxy_cache_use_stale error timeout updating http_502 http_504;
        location / {{ proxy_pass {url}; }}
        location = /v1/changes/recent.jwt {{
            proxy_pass {url};
            proxy_cache_key "$uri $second";
        }}
    }}
"""
"""As docs/how-to/mirrors.md has it."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Reads lists of recent changes, each distinct one once. ``kids`` are those that will be revoked, in order."""

    domain: str
    keys: dict[str, PublicKey]
    kids: Sequence[str]
    _read: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, kids: Sequence[str]) -> "Lists":
        """Of the registry at that URL, whose root key is believed."""
        root = read_registry_keys(requests.get(url + REGISTRY_KEYS_PATH, timeout=10).text, pin=None, now=time.time())
        keys = {make_kid(root.issuer, key.thumbprint): key for key in root.signing_keys}
        return cls(root.subject, keys, kids)

    def revoked(self, body: bytes) -> int:
        """How many of the kids the list, and those before it, called revoked."""
        if body not in self._read:
            document = read_document(Changes, body.decode("ascii"), self.keys, now=time.time(), domain=self.domain)
            named = [at for at, kid in enumerate(self.kids, 1) if kid in document.revoked]
            self._read[body] = max(named, default=0)
        return self._read[body]


class Watcher(asyncio.Protocol):
    """One peer. ``told`` has an item for each kid: the times at which peers learned of its revocation."""

    def __init__(self, lists: Lists, told: Sequence[list[float]], request: bytes) -> None:
        self._lists, self._told, self._request = lists, told, request
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._known = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. The answer has a Content-Length."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        assert head.startswith(b"HTTP/1.1 200 "), head
        self._received.clear()
        self._learn(self._lists.revoked(bytes(body)))
        pause = _POLL * (1 - 0.3 * random.random())  # noqa: S311 - as `peerseal.runtime.backoff`
        asyncio.get_running_loop().call_later(pause, self._ask)

    def _learn(self, revoked: int) -> None:
        now = time.monotonic()
        for number in range(self._known, revoked):
            self._told[number].append(now)
        self._known = max(self._known, revoked)

    def _ask(self) -> None:
        assert self._transport is not None
        self._transport.write(self._request)


def watch(url: str, peers: int, kids: Sequence[str], parent: Connection) -> None:
    """Lets that many peers watch in this process until the parent says stop, and sends the times of `Watcher`."""
    told: list[list[float]] = [[] for _ in kids]
    asyncio.run(_watch(url, peers, (Lists.of(url, kids), told), parent))
    parent.send(told)


async def _watch(url: str, peers: int, has: tuple[Lists, list[list[float]]], parent: Connection) -> None:
    loop, place = asyncio.get_running_loop(), urlsplit(url)
    request = f"GET {RECENT} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode()
    for _ in range(peers):
        await loop.create_connection(lambda: Watcher(*has, request), LOOPBACK, place.port or 80)
    parent.send(None)  # all have connected
    await loop.run_in_executor(None, parent.recv)


@contextmanager
def cache_of(url: str, folder: Path, connections: int) -> Iterator[tuple[str, int]]:
    """The URL and the pid of an nginx that caches the answers of the registry at that URL."""
    folder.mkdir()
    address = f"{LOOPBACK}:{free_port()}"
    http = _CACHE.format(folder=folder, address=address, url=url)
    with Process("nginx", nginx_command(folder, http, connections), log=folder / "log") as process:
        process.wait_until_answers(f"http://{address}/ledger/checkpoint")
        yield f"http://{address}", process.pid


def measured(
    registry: tuple[str, int], operator: Operator, kids: Sequence[str], peers: int, folder: Path
) -> Iterator[Figure]:
    """Revokes one of the kids each second. ``registry`` is the URL and the pid of a node."""
    with (
        cache_of(registry[0], folder, 3 * peers + 1_000) as (url, cache),
        _watching(url, peers - TRUST_STORES, kids) as watching,
        _trust_stores(url, kids) as stores,
    ):
        time.sleep(SETTLE)
        before = [cores.processor_seconds(pid) for pid in (registry[1], cache)]
        began, sent = time.monotonic(), []
        for number, kid in enumerate(kids):
            time.sleep(max(0.0, began + number - time.monotonic()))
            sent.append(time.monotonic())
            operator.revoke(kid)
        time.sleep(max(0.0, began + len(kids) - time.monotonic()))
        seconds = time.monotonic() - began
        after = [cores.processor_seconds(pid) for pid in (registry[1], cache)]
        time.sleep(3 * _POLL)
        told = [_joined(at) for at in zip(*(_stopped(one) for one in watching), stores.times(), strict=True)]
    yield from _figures(peers, sent, told, [100 * (b - a) / seconds for a, b in zip(before, after, strict=True)])


def _figures(peers: int, sent: Sequence[float], told: Sequence[list[float]], busy: Sequence[float]) -> Iterator[Figure]:
    missing = sum(peers - len(times) for times in told)
    assert not missing, f"{missing} peers never learned of a revocation"
    waited = [at - began for began, times in zip(sent, told, strict=True) for at in times]
    name = f"{peers:,} peers through nginx's cache, a revocation each second"
    yield Figure(f"{name}: until refused, p50", percentile(waited, 50), "s")
    yield Figure(f"{name}: until refused, p99", percentile(waited, 99), "s", goal=Goal("<", 2.5, "s"))
    yield Figure(f"{name}: the registry's CPU, of a core", busy[0], "%", goal=Goal("<", 10, "%"))
    yield Figure(f"{name}: nginx's CPU, of a core", busy[1], "%")


def _joined(times: Sequence[list[float]]) -> list[float]:
    return [at for one in times for at in one]


@contextmanager
def _watching(url: str, peers: int, kids: Sequence[str]) -> Iterator[list[Connection]]:
    context, ends = multiprocessing.get_context("spawn"), []
    processes = []
    for number in range(PROCESSES):
        mine, theirs = context.Pipe()
        share = peers // PROCESSES + (number < peers % PROCESSES)
        process = context.Process(target=watch, args=(url, share, kids, theirs), daemon=True)
        process.start()
        ends.append(mine)
        processes.append(process)
    try:
        for end in ends:
            end.recv()
        yield ends
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _stopped(peer: Connection) -> list[list[float]]:
    peer.send(None)
    told: list[list[float]] = peer.recv()
    return told


class _TrustStores:
    """Trust stores that know the service of the kids, and are asked again and again for the next kid to be revoked."""

    def __init__(self, url: str, kids: Sequence[str]) -> None:
        self._stores = [TrustStore(url, limits=TrustLimits(wait=0)) for _ in range(TRUST_STORES)]
        self._kids = kids
        self._times: list[list[float]] = [[] for _ in kids]
        for store in self._stores:
            store.key(kids[0])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        next_kid = [0] * len(self._stores)
        while not self._stopping.wait(0.02):
            for at, store in enumerate(self._stores):
                while next_kid[at] < len(self._kids) and is_revoked(store, self._kids[next_kid[at]]):
                    self._times[next_kid[at]].append(time.monotonic())
                    next_kid[at] += 1

    def times(self) -> list[list[float]]:
        """For each kid, when the stores refused it."""
        return self._times

    def stop(self) -> None:
        """Ends all threads."""
        self._stopping.set()
        self._thread.join()
        for store in self._stores:
            store.stop()


@contextmanager
def _trust_stores(url: str, kids: Sequence[str]) -> Iterator[_TrustStores]:
    stores = _TrustStores(url, kids)
    try:
        yield stores
    finally:
        stores.stop()
