"""Clients that call a registry while a test does something to it. None of them tries a call again."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import requests

from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof
from tests.support.waiting import until

WAIT = 3
"""Seconds for which a watching client waits for a change."""
LONGEST = 1024 * 1024

Call = Callable[[requests.Session], requests.Response]


@dataclass(frozen=True)
class Kind:
    """A kind of call: the status of success, seconds between two calls, and how many clients make it."""

    name: str
    good: int
    pause: float
    clients: int


READ, WATCH, REGISTER = Kind("read", 200, 0.02, 3), Kind("watch", 200, 0.02, 3), Kind("register", 201, 0.2, 2)


class Traffic:
    """Readers, watchers, and newcomers who register keys of ``service`` with the join token, each over a session that
    keeps its connection. As a context manager it calls from the beginning to the end."""

    def __init__(self, url: str, domain: str, service: str, token: JoinToken) -> None:
        self.answers: Counter[tuple[Kind, object]] = Counter()
        self._url, self._domain, self._service, self._token = url, domain, service, token
        self._counting, self._done = threading.Lock(), threading.Event()
        calls: dict[Kind, Callable[[], Call]] = {
            READ: lambda: self._read,
            WATCH: lambda: Watcher(url).ask,
            REGISTER: lambda: self._register,
        }
        self._threads = [
            threading.Thread(target=self._run, args=(kind, call()))
            for kind, call in calls.items()
            for _ in range(kind.clients)
        ]

    def __enter__(self) -> Self:
        with requests.Session() as session:
            assert self._register(session).status_code == 201  # so that there is something to read
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Comes back once some more calls of each kind have succeeded."""
        before = self.answers.copy()
        until(lambda: all(self.answers[kind, kind.good] >= before[kind, kind.good] + 5 for kind in (READ, WATCH)), 60)
        until(lambda: self.answers[REGISTER, 201] >= before[REGISTER, 201] + 3, 60)

    @property
    def failed(self) -> dict[str, int]:
        """The calls that were answered with an error, or not at all."""
        return {
            f"{kind.name}: {answer}": times for (kind, answer), times in self.answers.items() if answer != kind.good
        }

    def _run(self, kind: Kind, call: Call) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._done.wait(kind.pause):
                try:
                    answer: object = call(session).status_code
                except requests.RequestException as error:
                    answer = repr(error)
                with self._counting:
                    self.answers[kind, answer] += 1

    def _read(self, session: requests.Session) -> requests.Response:
        return session.get(f"{self._url}/v1/services/{self._service}/jwks.jwt", timeout=30)

    def _register(self, session: requests.Session) -> requests.Response:
        owner = service_id(self._domain, self._service)
        proof = sign_proof(KeyPair.generate("ES256"), issuer=owner, audience=registry_id(self._domain), now=time.time())
        body: dict[str, Any] = {
            "proof": proof,
            "join": {"id": self._token.id, "mac": join_mac(self._token.mac_key, proof)},
        }
        return session.post(f"{self._url}/v1/services/{self._service}/keys", json=body, timeout=30)


class Watcher:
    """Waits for the first change after the newest entry that it has heard of, and comes again."""

    def __init__(self, url: str, wait: int = WAIT) -> None:
        self._url = url
        self._wait = wait
        self._seq = 0

    def ask(self, session: requests.Session) -> requests.Response:
        answer = session.get(f"{self._url}/v1/changes?since={self._seq}&wait={self._wait}", timeout=30)
        if answer.status_code == 200:
            self._seq = strict_json_object(jose.parse(answer.text, limit=LONGEST).payload)["seq"]
        return answer
