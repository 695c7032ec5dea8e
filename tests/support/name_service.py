"""Names of this process's own, for tests of where a name leads."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

Answer = str | Callable[[], str]
"""An address, or what gives another one each time it is asked."""


def resolve(monkeypatch: pytest.MonkeyPatch, names: dict[str, Answer]) -> None:
    """Have those names lead to those addresses; everything else is looked up as before."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        found = names.get(name, name)
        return look_up(found() if callable(found) else found, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def own_address() -> str:
    """An address of this machine that is not loopback: the one that a route to elsewhere begins at. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])
