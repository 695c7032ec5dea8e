"""Many services in one process that call each other without end, and are attacked all the time: the soak's load.

``python -m tests.support.soaking FOLDER`` reads its `Plan` from ``plan.json`` there, writes ``ready`` once all services
have called each other, and ``report.json`` at the end. Calls go from the caller's `Identity` to the callee's `Verifier`
directly; all that the registry has a part in goes over HTTP.
"""

import json
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import requests

from peerseal import Identity, RotationSchedule, Verifier
from peerseal.errors import PeersealError
from peerseal.protocol import jose
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, canonical_json, digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, qualify, split_kid, split_service_id
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.request import REQUEST_TYP, RequestToken
from peerseal.trust.store import TrustStore

DOOMED = "doomed"
"""The service whose keys are revoked one after the other."""
PAUSE = 0.02
"""Seconds between two calls of one thread."""
THREADS = 6
DOOM_EVERY = 15.0
"""Seconds between two keys that are made to be revoked."""


@dataclass(frozen=True)
class Plan:
    """What is to be done. ``grace`` is the time in seconds in which a revocation may still be on its way."""

    registry_url: str
    operator_token: str
    seconds: float
    services: int
    hosts: int
    every: float
    lead: float
    overlap: float
    grace: float


@dataclass
class Report:
    """What happened: ``refused`` are good calls, by code, and ``accepted`` bad ones, by sort; ``rss`` is the memory in
    bytes, once a second. ``longest_stall`` is for how many seconds this process was kept from running, at most.
    ``examples`` holds some of what should not have been."""

    good: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    revoked: int = 0
    keys: int = 0
    rss: list[int] = field(default_factory=list)
    longest_stall: float = 0.0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Doomed:
    """An identity whose key was revoked, a token that it signed before that, and when it was (monotonic seconds)."""

    identity: Identity
    before: str
    callee: str
    revoked_at: float


class Soak:
    """All services of one process. Those of one host share a trust store, as those of one process would."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.report = Report()
        self._folder = folder
        self._names = [f"service-{number}" for number in range(plan.services)]
        self._identities: dict[str, Identity] = {}
        self._verifiers: dict[str, Verifier] = {}
        self._doomed: list[Doomed] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._strangers = [KeyPair.generate("ES256") for _ in range(20)]

    def start(self) -> None:
        """Have every service registered, and known to every host."""
        with ThreadPoolExecutor(8) as pool:
            for identity in pool.map(self._started, self._names):
                self._identities[identity.service] = identity
        hosts = [self._identities[name].trust for name in self._names[: self.plan.hosts]]
        for number, name in enumerate(self._names):
            self._verifiers[name] = self._verifier(name, hosts[number % len(hosts)])
        for caller in self._names:
            for callee in self._names:
                self._good(caller, callee)

    def run(self) -> None:
        """Until the time is over."""
        threads = [threading.Thread(target=self._call_on) for _ in range(THREADS)]
        threads += [threading.Thread(target=self._doom_on)]
        for thread in threads:
            thread.start()
        looked = time.monotonic()
        end = looked + self.plan.seconds
        while looked < end:
            time.sleep(1)
            before, looked = looked, time.monotonic()
            self.report.longest_stall = max(self.report.longest_stall, looked - before - 1)
            self.report.rss.append(resident())
        self._stopping.set()
        for thread in threads:
            thread.join()

    def count_keys(self) -> None:
        """Of one service, those that it had in all."""
        path = f"/v1/services/{self._names[0]}/keys?limit=1000"
        self.report.keys = len(self._operate("GET", path, None, 200).json()["keys"])

    # ---- services

    def _started(self, name: str) -> Identity:
        plan = self.plan
        schedule = RotationSchedule(plan.every, plan.lead, plan.overlap)
        return self._join(name, self._folder / "hosts" / name, schedule)

    def _join(self, name: str, folder: Path, schedule: RotationSchedule) -> Identity:
        token = self._operate("POST", "/v1/join-tokens", {"service": name}, 201).json()["token"]
        identity = Identity(
            name,
            registry=self.plan.registry_url,
            join_token=token,
            key_dir=folder,
            alg="ES256",
            rotation=schedule,
            retire_at_exit=False,
        )
        return identity.start()

    def _verifier(self, name: str, trust: TrustStore) -> Verifier:
        allow = dict.fromkeys([*self._names, DOOMED], ())
        return Verifier(trust, audience=name, allow=allow, replay=self._identities[name].replay_guard())

    def _operate(self, method: str, path: str, body: dict[str, str] | None, status: int) -> requests.Response:
        """An operator's call, made until it succeeds: the registry is killed again and again."""
        headers = {"Authorization": f"Bearer {self.plan.operator_token}"}
        while True:
            try:
                answer = requests.request(method, self.plan.registry_url + path, json=body, headers=headers, timeout=5)
                if answer.status_code == status:
                    return answer
            except requests.RequestException:
                pass
            time.sleep(0.2)

    # ---- calls

    def _call_on(self) -> None:
        rng = random.Random()
        kinds: list[Callable[[random.Random], None]] = [
            self._replayed, self._for_another, self._by_a_stranger, self._by_a_revoked_key, self._before_revocation,
        ]  # fmt: skip
        number = 0
        while not self._stopping.wait(PAUSE):
            caller, callee = rng.choice(self._names), rng.choice(self._names)
            self._good(caller, callee)
            number += 1
            if number % 4 == 0:
                rng.choice(kinds)(rng)

    def _good(self, caller: str, callee: str) -> str:
        token = self._sign(self._identities[caller], callee)
        code = self._verify(callee, token)
        with self._lock:
            self.report.good += 1
            if code is not None:
                self.report.refused[code] += 1
                self._example(f"good call by {caller} to {callee} refused: {code}")
        return token

    def _replayed(self, rng: random.Random) -> None:
        callee = rng.choice(self._names)
        self._bad("replayed", callee, self._good(rng.choice(self._names), callee))

    def _for_another(self, rng: random.Random) -> None:
        meant, callee = rng.sample(self._names, 2)
        self._bad("another audience", callee, self._sign(self._identities[rng.choice(self._names)], meant))

    def _by_a_stranger(self, rng: random.Random) -> None:
        """A key that is not registered, in a service's name: a few of them, for each is looked for."""
        if rng.random() < 0.1:
            caller, callee = self._identities[rng.choice(self._names)], rng.choice(self._names)
            self._bad("unknown key", callee, forged(rng.choice(self._strangers), caller.id, callee))

    def _by_a_revoked_key(self, rng: random.Random) -> None:
        doomed = self._long_revoked(rng)
        if doomed is not None:
            callee = rng.choice(self._names)
            self._bad("revoked key", callee, self._sign(doomed.identity, callee))

    def _before_revocation(self, rng: random.Random) -> None:
        doomed = self._long_revoked(rng)
        if doomed is not None:
            self._bad("signed before its key was revoked", doomed.callee, doomed.before)

    def _bad(self, sort: str, callee: str, token: str) -> None:
        code = self._verify(callee, token)
        with self._lock:
            self.report.bad[sort] += 1
            if code is None:
                self.report.accepted[sort] += 1
                self._example(f"{sort}: accepted by {callee}")

    @staticmethod
    def _sign(identity: Identity, callee: str) -> str:
        return identity.sign_request(callee, method="GET", target="/")

    def _verify(self, callee: str, token: str) -> str | None:
        """None where it was accepted, else the code."""
        try:
            self._verifiers[callee].verify(token, method="GET", target="/")
        except PeersealError as error:
            return error.code
        return None

    def _example(self, what: str) -> None:
        if len(self.report.examples) < 20:
            self.report.examples.append(f"{time.strftime('%X')} {what}")

    # ---- revocations

    def _doom_on(self) -> None:
        while not self._stopping.wait(DOOM_EVERY):
            self._doom()

    def _doom(self) -> None:
        """Have a key registered, used and revoked."""
        folder = self._folder / "hosts" / f"{DOOMED}-{self.report.revoked}"
        identity = self._join(DOOMED, folder, RotationSchedule(every=24 * 3600.0))
        callee = random.choice(self._names)
        before = self._sign(identity, callee)
        self._verify(callee, self._sign(identity, callee))
        thumbprint = split_kid(identity.credentials.key_id)[1]
        self._operate("DELETE", f"/v1/services/{DOOMED}/keys/{thumbprint}?reason=compromised", None, 204)
        self.report.revoked += 1
        forgotten, kept = self._doomed[:-2], self._doomed[-2:]
        self._doomed = [*kept, Doomed(identity, before, callee, time.monotonic())]
        for doomed in forgotten:
            doomed.identity.stop()

    def _long_revoked(self, rng: random.Random) -> Doomed | None:
        long_ago = time.monotonic() - self.plan.grace
        found = [doomed for doomed in self._doomed if doomed.revoked_at < long_ago]
        return rng.choice(found) if found else None


def forged(pair: KeyPair, owner: str, callee: str) -> str:
    """A good token in all but this: its key is not registered for the service with that id."""
    now = int(time.time())
    token = RequestToken(
        issuer=owner,
        audience=qualify(callee, split_service_id(owner)[0]),
        issued_at=now,
        not_before=now,
        expires_at=now + 60,
        jti=new_jti(),
        method="GET",
        target_digest=digest_header(b"/"),
        content_digest=DIGEST_OF_NOTHING,
        headers={},
    )
    header = jose.Header(pair.public.alg, make_kid(owner, pair.public.thumbprint), REQUEST_TYP)
    return jose.compact(jose.encode_header(header), canonical_json(token.claims()), pair.sign)


def resident() -> int:
    """The memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(folder: Path) -> None:
    """See the module."""
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.WARNING)
    plan = Plan(**json.loads((folder / "plan.json").read_text()))
    soak = Soak(plan, folder)
    soak.start()
    (folder / "ready").touch()
    soak.run()
    soak.count_keys()
    (folder / "report.json").write_text(json.dumps(vars(soak.report)))
    os._exit(0)  # nothing is retired: the registry would get many calls at once


if __name__ == "__main__":
    main(Path(sys.argv[1]))
