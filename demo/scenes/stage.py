"""The tools of every scene."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import peerseal
from demo.httpie import http
from demo.show import Show
from demo.stack import RESOURCE, Stack

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Stage:
    """The running processes, and ``client``, which signs like client-service's host."""

    show: Show
    stack: Stack
    client_url: str
    resource_url: str
    cases_url: str
    client: peerseal.Identity
    operator_secret: str
    password: str
    broker_url: str

    def token(self, method: str, target: str, body: str = "", *, audience: str = RESOURCE) -> str:
        """A new request token of client-service for the ``audience``; a body is sent as JSON."""
        headers = {"content-type": JSON} if body else {}
        return self.client.sign_request(audience, method=method, target=target, body=body.encode(), headers=headers)

    def user_token(self, user: str) -> str:
        """The token of a new login."""
        login = http("POST", f"{self.client_url}/authenticate", f"user={user}", f"password={self.password}")
        return str(login.json["access_token"])


def wait_until(holds: Callable[[], bool], timeout: float = 30) -> float:
    """Waits until ``holds`` is true and returns the seconds. Raises TimeoutError."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"not within {timeout} s")
        time.sleep(0.1)
    return time.monotonic() - began
