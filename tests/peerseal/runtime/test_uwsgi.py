"""What a process does that finds the module of uWSGI, which only processes of that server have."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from peerseal.runtime.forks import left_to_workers, warn_of_uwsgi_options
from peerseal.testing import MemoryRegistry


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, as a master finds it."""
    found: Any = ModuleType("uwsgi")
    pid = os.getpid()
    found.masterpid, found.worker_id, found.numproc = (lambda: pid), (lambda: 0), 2
    found.opt = {"enable-threads": True, "master": True}
    monkeypatch.setitem(sys.modules, "uwsgi", found)
    return found


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that were to be started."""
    found: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", found.append)
    return found


def test_a_service_that_starts_in_the_master_starts_no_thread(
    server: ModuleType, registry: MemoryRegistry, started: list[threading.Thread]
) -> None:
    identity = registry.identity("billing").start()
    assert identity.sign_request("shop", method="GET", target="/")
    identity.trust.refresh()
    assert started == []
    identity.stop()


def test_the_hook_of_the_application_is_called_too(server: Any) -> None:
    calls: list[int] = []
    server.post_fork_hook = lambda: calls.append(1)
    assert left_to_workers()
    assert left_to_workers()
    server.post_fork_hook()
    assert calls == [1]


@pytest.mark.parametrize("masterpid", [lambda: 0, lambda: os.getppid()])
def test_another_process_than_the_master_starts_its_threads(server: Any, masterpid: Callable[[], int]) -> None:
    server.masterpid = masterpid
    assert not left_to_workers()


def test_a_module_of_the_application_with_that_name_is_no_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", ModuleType("uwsgi"))
    warn_of_uwsgi_options()
    assert not left_to_workers()
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({"enable-threads", "master"}, {}, None),
        ({"master"}, {}, "without --enable-threads"),
        ({"threads"}, {"masterpid": lambda: 0}, "without --master"),
        ({"threads", "py-call-uwsgi-fork-hooks"}, {"masterpid": lambda: 0}, None),
        ({"threads"}, {"masterpid": lambda: 0, "worker_id": lambda: 1}, None),
        ({"threads"}, {"masterpid": lambda: 0, "numproc": 1}, None),
    ],
)
def test_the_log_names_the_option_that_is_missing(
    server: Any, caplog: pytest.LogCaptureFixture, options: set[str], changes: dict[str, Any], said: str | None
) -> None:
    server.opt = {name.encode(): True for name in options}
    vars(server).update(changes)
    with caplog.at_level(logging.WARNING):
        warn_of_uwsgi_options()
    assert (said in caplog.text) if said else not caplog.records
