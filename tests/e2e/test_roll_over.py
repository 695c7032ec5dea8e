"""The registry's signing key is rolled over and dropped while services call each other and new ones join."""

import itertools
import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import peerseal
from peerseal.errors import DocumentRefused
from peerseal.protocol import jose
from peerseal.protocol.documents.frame import MAX_DOCUMENT
from tests.support.load import get
from tests.support.processes import Server
from tests.support.stack import CLIENT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.thorough]

PATIENCE = 20.0


class Load:
    """Calls of a known caller without a pause, and a newcomer that joins and calls again and again."""

    def __init__(self, stack: Stack, callee: Server) -> None:
        self.answers: Counter[tuple[str, int, str | None]] = Counter()
        self._stack, self._callee = stack, callee
        self._done = threading.Event()
        self._known = peerseal.Identity.from_env(stack.service_settings(CLIENT)).start()
        self._threads = [threading.Thread(target=run) for run in (self._go_on, self._join)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._known.stop()

    def _go_on(self) -> None:
        while not self._done.is_set():
            self._call("known", self._known)

    def _join(self) -> None:
        for number in itertools.count():
            if self._done.is_set():
                return
            settings = self._stack.service_settings("second-service", host=f"host-{number}")
            newcomer = peerseal.Identity.from_env(settings).start()
            try:
                self._call("newcomer", newcomer)
            finally:
                newcomer.stop()

    def _call(self, who: str, caller: peerseal.Identity) -> None:
        token = caller.sign_request("callee", method="GET", target="/x")
        status, body = get(f"{self._callee.url}/x", {"Authorization": f"Bearer {token}"})
        self.answers[who, status, json.loads(body).get("code")] += 1


def signer(registry: Server) -> str:
    """The kid that signed the caller's set as it is served now."""
    status, jws = get(f"{registry.url}/v1/services/{CLIENT}/jwks.jwt")
    assert status == 200, jws
    return jose.parse(jws.decode("ascii"), limit=MAX_DOCUMENT).header.kid


def signed_by_another(registry: Server, before: str) -> str:
    """The kid that signs instead, on both workers, once it does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        now = {signer(registry) for _ in range(8)}
        if before not in now and len(now) == 1:
            return now.pop()
        time.sleep(0.1)
    raise AssertionError("the key before still signs")


def test_no_request_is_refused_while_keys_roll_over_and_what_was_dropped_is_refused(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        registry = stack.start_registry()
        callee = stack.start_service("callee", "tests.support.callee:create_app()", workers=2)
        with Load(stack, callee) as load:
            old = signer(registry)
            kid = next(iter(json.loads(get(f"{registry.url}/v1/services/{CLIENT}/jwks.json")[1])["keys"]))["kid"]
            status, statement = get(f"{registry.url}/v1/services/{CLIENT}/keys/{kid.rpartition('/')[2]}.jwt")
            assert status == 200
            stack.operate("root", "roll", "signing", "ledger")
            new = signed_by_another(registry, old)
            stack.operate("root", "drop")
            time.sleep(3)  # under load with the old keys dropped: what this is about
        assert signer(registry) == new
        assert set(load.answers) == {("known", 200, None), ("newcomer", 200, None)}, load.answers
        assert load.answers["known", 200, None] > 100
        assert load.answers["newcomer", 200, None] >= 3

        trust = peerseal.TrustStore(registry.url)
        with pytest.raises(DocumentRefused) as refused:
            trust.read_statement(statement.decode("ascii"))
        assert refused.value.code == "document_unknown_signer"
