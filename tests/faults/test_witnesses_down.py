"""A registry, three witnesses and a service, over HTTP: with one witness down all goes on, and with two down the
service refuses what is new, as it was told to."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from demo.processes import free_port
from peerseal import TrustLimits, TrustStore
from peerseal.audit.public_mirror import PublicMirror
from peerseal.audit.serving import served
from peerseal.audit.witness import Witness
from peerseal.audit.witness_server import witnessing
from peerseal.errors import TrustUnavailable
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import ledger_public_key
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.names import make_kid, service_id
from peerseal.transport.fetch import HttpFetcher
from registry.services.setup.ceremony import Ceremony, signed, written
from registry.witness_addresses import WitnessAddress
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.support.waiting import until

NAMES = "a.example", "b.example", "c.example"
DELAY = 300.0
LIMITS = TrustLimits(witness_delay=DELAY, poll_interval=3600.0, cooldown=0.0)


class Domain:
    """The registry and its witnesses. A test can stop and start each witness."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        home = folder / "home"
        home.mkdir(mode=0o700)
        self.clock = clock
        self.first = Driver(f"sqlite:///{home / 'registry.sqlite3'}", home, clock)
        jwk = self.first.registry.authority.in_force().keys.ledger_key
        log = NoteKey.of(DOMAIN, LOG_KEY, ledger_public_key(jwk))
        self._witnesses = {name: Witness(folder / name, name, [log], clock) for name in NAMES}
        self._ports = {name: free_port() for name in NAMES}
        self._running = {name: ExitStack() for name in NAMES}
        addresses = (
            WitnessAddress(witness.key, f"http://127.0.0.1:{self._ports[name]}")
            for name, witness in self._witnesses.items()
        )
        self.node = self.first.node(witnesses=tuple(addresses))

    def name_witnesses(self) -> None:
        """The root asks for two of the three."""
        ceremony = Ceremony(self.first.settings, self.first.store, self.clock)
        quorum = Quorum.of([str(witness.key) for witness in self._witnesses.values()], 2)
        document = replace(ceremony.requested([], drop_past=False), witnesses=quorum)
        ceremony.publish(signed(written(document), self.first.settings.root_key_file))

    def start(self, *names: str) -> None:
        for name in names:
            address = f"127.0.0.1:{self._ports[name]}"
            self._running[name].enter_context(witnessing(self._witnesses[name], address))

    def stop(self, *names: str) -> None:
        for name in names:
            self._running[name].close()

    def close(self) -> None:
        self.stop(*NAMES)
        self.node.registry.cosigning.stop()
        self.node.close()
        self.first.close()

    def admitted(self, service: str) -> str:
        """The kid of a new key of that service."""
        key = self.node.joined(KeyPair.generate("ES256"), service)
        return make_kid(service_id(DOMAIN, service), key.public.thumbprint)


@contextmanager
def served_registry(node: Driver) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, node.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    domain = Domain(tmp_path, Clock())
    yield domain
    domain.close()


def is_cosigned(domain: Domain) -> bool:
    """Whether the registry serves its newest checkpoint with two cosignatures. Witnesses that failed are due again."""
    domain.clock.forward(1)
    found, newest = (domain.node.client.get(f"/ledger/checkpoint{end}").text for end in (".cosigned", ""))
    return found.startswith(newest.partition("\n\n")[0]) and found.count("\n— ") > 2


def test_one_witness_may_be_down_and_two_may_not(domain: Domain) -> None:
    domain.start(*NAMES)
    domain.name_witnesses()
    domain.node.registry.cosigning.start()
    with served_registry(domain.node) as url:
        first = domain.admitted("billing")
        until(lambda: is_cosigned(domain), what="all three cosign")
        trust = TrustStore(url, pin=domain.first.pin, limits=LIMITS, clock=domain.clock)
        assert trust.key(first).kid == first

        domain.stop("c.example")
        second = domain.admitted("shop")
        until(lambda: is_cosigned(domain), what="two of three cosign")
        domain.clock.forward(DELAY)
        assert trust.key(second).kid == second, "one may be down for as long as it likes"

        domain.stop("b.example")
        third = domain.admitted("stock")
        assert trust.key(third).kid == third, "two may be down for the delay"
        domain.clock.forward(DELAY)
        with pytest.raises(TrustUnavailable, match=r"cosigned by 2 of 3 witnesses"):
            trust.key(third)
        assert trust.key(first).kid == first, "what was cosigned goes on"
        assert trust.key(second).kid == second

        domain.start("b.example")
        until(lambda: is_cosigned(domain), what="two of three cosign again")
        assert trust.key(third).kid == third
        trust.stop()


def test_a_mirror_brings_the_cosignatures_and_needs_none_itself(domain: Domain, tmp_path: Path) -> None:
    domain.start(*NAMES)
    domain.name_witnesses()
    first = domain.admitted("billing")
    with served_registry(domain.node) as url:
        mirror = PublicMirror(tmp_path / "mirror", HttpFetcher([url]), domain.first.pin, clock=domain.clock)
        assert mirror.update().failed == 0, "nothing is cosigned yet"
        with served(tmp_path / "mirror", "127.0.0.1:0") as port:
            trust = TrustStore(f"http://127.0.0.1:{port}", pin=domain.first.pin, limits=LIMITS, clock=domain.clock)
            with pytest.raises(TrustUnavailable, match="no checkpoint is known"):
                trust.key(first)
            domain.node.registry.cosigning.start()
            until(lambda: is_cosigned(domain), what="the witnesses cosign")
            assert mirror.update().failed == 0
            assert trust.key(first).kid == first
            trust.stop()
