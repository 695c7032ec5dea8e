"""A service that calls its peers all the time and tells them of its checkpoints: ``python -m tests.support.gossiping``.

``GOSSIP_PORT`` is its port, ``GOSSIP_PEERS`` maps the peers' names to their URLs, and ``GOSSIP_ADDRESS`` is the address
on loopback from which it calls: a registry may tell its clients apart by it. ``GET /state`` says what happened.
"""

import json
import os
import socket
import threading
import time
from collections import Counter
from itertools import cycle
from typing import Any, Final

import requests
from flask import Flask
from werkzeug.serving import make_server

import peerseal
import peerseal.flask
from peerseal.identity.environment import options_in

PAUSE: Final = 0.05
"""Seconds between two calls."""
LIMITS: Final = peerseal.TrustLimits(wait=2.0, cooldown=1.0, refresh_interval=10.0)


class Service:
    """One service: what it answers, and the calls that it makes."""

    def __init__(self, identity: peerseal.Identity, peers: dict[str, str]) -> None:
        self._identity = identity
        self._peers = peers
        self._answers: Counter[str] = Counter()

    def app(self) -> Flask:
        app = Flask(__name__)
        auth = peerseal.flask.PeerAuth(app, self._identity, allow={name: ["read"] for name in self._peers})

        @app.get("/state")
        @auth.public
        def state() -> dict[str, Any]:
            return {"answers": self._answers, **self._told()}

        @app.get("/work")
        @auth.require(scope="read")
        def work() -> dict[str, str]:
            return {"caller": peerseal.flask.current_peer.service}

        return app

    def call_on(self) -> None:
        """Call one peer after the other, without an end."""
        sessions = {name: self._identity.session(name, url, retries=0) for name, url in self._peers.items()}
        for name in cycle(sessions):
            try:
                answer = sessions[name].get("/work")
                self._answers[str(answer.status_code) if answer.ok else f"{answer.status_code} {answer.text}"] += 1
            except (requests.RequestException, peerseal.PeersealError) as error:
                self._answers[type(error).__name__] += 1
            time.sleep(PAUSE)

    def _told(self) -> dict[str, Any]:
        found = {metric.name: metric for metric in self._identity.trust.collect_checkpoints()}
        heard = found.get("peerseal_checkpoints_heard_total")
        return {
            "heard": {} if heard is None else {labels["result"]: number for labels, number in heard.samples},
            "sent": sum(number for _, number in found["peerseal_checkpoints_sent_total"].samples),
            "split_views": sum(number for _, number in found["peerseal_split_views_total"].samples),
        }


def call_from(address: str) -> None:
    """Have each connection of this process come from that address on loopback."""
    connect = socket.socket.connect

    def from_address(self: socket.socket, target: Any) -> None:
        if self.family == socket.AF_INET and self.getsockname()[0] == "0.0.0.0":
            self.bind((address, 0))
        connect(self, target)

    socket.socket.connect = from_address  # type: ignore[method-assign, assignment] # no client library takes an address from us


def main() -> None:
    """Runs until the process is stopped."""
    call_from(os.environ["GOSSIP_ADDRESS"])
    identity = peerseal.Identity(**{**options_in(os.environ), "limits": LIMITS}).start()
    service = Service(identity, json.loads(os.environ["GOSSIP_PEERS"]))
    server = make_server("127.0.0.1", int(os.environ["GOSSIP_PORT"]), service.app(), threaded=True)
    threading.Thread(target=service.call_on, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
