"""Eight clients register keys with two registry processes on one database: one ledger, whole, that never goes back."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, pairwise

import pytest
import requests

from demo.processes import Server, free_port, gunicorn
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import Checkpoint, decode_proof, verify_checkpoint
from peerseal.protocol.ledger.merkle import check_consistency
from peerseal.protocol.names import registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLIENTS = 8
KEYS = 40  # of each client


class Watcher:
    """Looks at the nodes' checkpoints in turn, from another side than those who write."""

    def __init__(self, nodes: list[Server], pin: str) -> None:
        self.seen: list[Checkpoint] = []
        self._nodes, self._pin = nodes, pin
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        document = requests.get(f"{self._nodes[0].url}/.well-known/peerseal-registry", timeout=10).text
        keys = read_registry_keys(document, pin=self._pin, now=time.time())
        for node in cycle(self._nodes):
            if self._done.is_set():
                return
            answer = requests.get(f"{node.url}/ledger/checkpoint", timeout=10)
            answer.encoding = "utf-8"
            self.seen.append(verify_checkpoint(answer.text, keys.subject, keys.ledger_keys))

    def check_all(self) -> None:
        """Each checkpoint extends the one before."""
        for old, new in pairwise(self.seen):
            proof = ()
            if old.size != new.size:
                url = f"{self._nodes[1].url}/ledger/proof?from={old.size}&to={new.size}"
                proof = decode_proof(requests.get(url, timeout=10).json()["proof"])
            check_consistency(old.size, old.root, new.size, new.root, proof)


def register(nodes: list[Server], domain: str, service: str, token: JoinToken, number: int) -> list[int]:
    """What one client's registrations gave, at the one node and the other in turn."""
    session, statuses = requests.Session(), []
    owner = service_id(domain, service)
    for turn in range(KEYS):
        key = KeyPair.generate("ES256")
        proof = sign_proof(key, issuer=owner, audience=registry_id(domain), now=time.time())
        body = {"proof": proof, "join": {"id": token.id, "mac": join_mac(token.mac_key, proof)}}
        node = nodes[(number + turn) % len(nodes)]
        statuses.append(session.post(f"{node.url}/v1/services/{service}/keys", json=body, timeout=30).status_code)
    return statuses


def test_the_ledger_is_whole_and_its_sizes_never_go_back(stack: Stack) -> None:
    nodes = [stack.start_registry(), _second_node(stack)]
    services = [f"client-{number % 3}" for number in range(CLIENTS)]
    tokens = {service: JoinToken.parse(stack.join_token(service, uses=CLIENTS * KEYS)) for service in set(services)}
    before = stack.operate_json("verify")["size"]
    with Watcher(nodes, tokens[services[0]].pin) as watcher, ThreadPoolExecutor(CLIENTS) as pool:
        runs = [
            pool.submit(register, nodes, stack.domain, service, tokens[service], number)
            for number, service in enumerate(services)
        ]
        statuses = [status for run in runs for status in run.result()]
    assert statuses == [201] * CLIENTS * KEYS
    sizes = [checkpoint.size for checkpoint in watcher.seen]
    assert len(set(sizes)) > 10
    assert sizes == sorted(sizes)
    watcher.check_all()
    verified = stack.operate_json("verify")
    assert (verified["size"], verified["differences"]) == (before + CLIENTS * KEYS, [])


def _second_node(stack: Stack) -> Server:
    """Another process on the same database and with the same keys."""
    second = gunicorn(
        "registry-2",
        "registry.wsgi:app",
        port=free_port(),
        log=stack.log("registry-2"),
        settings=stack.registry_settings,
        workers=1,
        config="python:registry.gunicorn_conf",
    )
    return stack.keep(second).wait_until_answers(f"{second.url}/readyz")
