"""Six services compare their checkpoints by calling each other, in real processes.

A registry that shows two histories is exposed by ordinary calls. An honest one raises no alarm, whatever happens to it.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import peerseal
from demo.processes import BIN, LOOPBACK, Process, environment, free_port
from peerseal.protocol.join import JoinToken
from tests.e2e.test_restore import back_up, come_back, keep, restore
from tests.support.load import get
from tests.support.stack import Stack
from tests.support.two_faced import two_faced
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e]

NAMES: Final = tuple(f"service-{number}" for number in range(6))
DECEIVED: Final = NAMES[4:]
SECONDS: Final = float(os.environ.get("PEERSEAL_SPLIT_VIEW_SOAK", "30"))
"""How long the honest registry is watched: 600 by hand."""
PATIENCE: Final = 60.0


def address_of(name: str) -> str:
    return f"127.0.0.{10 + NAMES.index(name)}"


class Six:
    """The services, which have joined, and run from `running` on."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.ports = {name: free_port() for name in NAMES}
        self.settings = {name: stack.service_settings(name) for name in NAMES}
        self.pin = JoinToken.parse(stack.join_token("service-0")).pin
        for settings in self.settings.values():
            peerseal.Identity.from_env(settings).start().stop()
            shutil.rmtree(settings["PEERSEAL_CACHE_DIR"], ignore_errors=True)

    @contextmanager
    def running(self, urls: str) -> Iterator[None]:
        """Each calls all others; ``urls`` are the registry's and its mirrors'."""
        with ExitStack() as stopped:
            for name in NAMES:
                peers = {other: f"http://{LOOPBACK}:{self.ports[other]}" for other in NAMES if other != name}
                settings = self.settings[name] | {
                    "PEERSEAL_REGISTRY_URL": urls,
                    "PEERSEAL_REGISTRY_PIN": self.pin,
                    "PEERSEAL_SHARE_CHECKPOINTS": "on",
                    "GOSSIP_PORT": str(self.ports[name]),
                    "GOSSIP_ADDRESS": address_of(name),
                    "GOSSIP_PEERS": json.dumps(peers),
                }
                del settings["PEERSEAL_JOIN_TOKEN_FILE"]
                command = [str(BIN / "python"), "-m", "tests.support.gossiping"]
                stopped.enter_context(Process(name, command, log=self.stack.log(name), settings=settings))
            for name in NAMES:
                until(lambda name=name: self.answers(name), PATIENCE, what=f"the start of {name}")  # type: ignore[misc]
            yield

    def answers(self, name: str) -> bool:
        try:
            return get(f"http://{LOOPBACK}:{self.ports[name]}/state")[0] == 200
        except OSError:
            return False

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(get(f"http://{LOOPBACK}:{self.ports[name]}/state")[1])
        return state

    def agreed(self, name: str) -> float:
        """How many checkpoints the service heard and found to be of its history."""
        return float(self.state(name)["heard"].get("agreed", 0))

    def states(self) -> dict[str, dict[str, Any]]:
        return {name: self.state(name) for name in NAMES}

    def evidence(self) -> list[Path]:
        return sorted(self.stack.root.glob("service-*/host/cache/split-views/split-view-*.json"))


def verified(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "peerseal"), "evidence", "verify", str(file), *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment({}), timeout=60)


def test_a_registry_that_shows_two_histories_is_exposed_by_ordinary_calls(tmp_path: Path) -> None:
    with Stack(tmp_path / "true") as true, Stack(tmp_path / "false") as false:
        registry = true.start_registry(workers=1)
        six = Six(true)
        registry.stop()
        shutil.copytree(tmp_path / "true/registry", tmp_path / "false/registry")
        for stack, entries in ((true, 1), (false, 2)):
            stack.start_registry(workers=1)
            for _ in range(entries):
                stack.join_token("intruder" if stack is false else "guest")  # an entry of its own
        deceived = {address_of(name) for name in DECEIVED}
        with two_faced(true.registry_port, false.registry_port, deceived) as url, six.running(url):
            took = until(lambda: bool(six.evidence()), PATIENCE, what="the evidence")
            states = six.states()
        for file in six.evidence():
            found = verified(file, "--pin", six.pin)
            assert found.returncode == 0, found.stdout + found.stderr
            assert found.stdout.startswith("PROVEN")
        answers = {answer for state in states.values() for answer in state["answers"]}
        assert answers <= {"200", "ConnectionError"}, "no call is refused for what it tells"
        assert sum(state["split_views"] for state in states.values()) >= 1
        print(
            f"exposed after {took:.1f} s and {sum(sum(state['answers'].values()) for state in states.values())} calls"
        )


class Honest:
    """A registry to which everything happens that may happen to an honest one."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._database = stack.root / "registry/registry.sqlite3"
        self._registry = stack.start_registry(workers=1)
        self.acts = (self._admits, self._is_killed, self._rolls_its_ledger_key, self._is_restored, self._drops_old_keys)

    def _admits(self) -> None:
        for guest in ("guest", "other-guest"):
            self._stack.join_token(guest)

    def _is_killed(self) -> None:
        self._registry.kill()
        self._registry = self._stack.start_registry(workers=1)

    def _rolls_its_ledger_key(self) -> None:
        self._stack.operate("root", "roll", "ledger")

    def _drops_old_keys(self) -> None:
        self._stack.operate("root", "drop")

    def _is_restored(self) -> None:
        """From a backup, and a copy of the ledger that is newer."""
        backup, copy = self._stack.root / "backup", self._stack.root / "copy"
        back_up(self._database, backup)
        self._admits()
        assert keep(self._stack.registry_url, copy).returncode == 0
        self._registry.kill()
        come_back(backup, self._database)
        restore(self._stack, str(copy))
        self._registry = self._stack.start_registry(workers=1)


@pytest.mark.thorough
def test_an_honest_registry_raises_no_alarm(tmp_path: Path) -> None:
    """It admits, is killed, rolls its ledger key over, comes back from a backup and a copy of its ledger, and has a
    late mirror; six services call each other all the time."""
    with Stack(tmp_path) as stack:
        registry = Honest(stack)
        six = Six(stack)
        mirror, port = tmp_path / "mirror", free_port()
        command = [str(BIN / "peerseal"), "mirror", str(mirror), "--serve", f"{LOOPBACK}:{port}", "--interval", "3"]
        options = ["--registry", stack.registry_url, "--pin", six.pin]
        stack.keep(Process("mirror", [*command, *options], log=stack.log("mirror")))
        until(lambda: (mirror / "ledger/checkpoint").exists(), PATIENCE, what="the mirror")
        with six.running(f"{stack.registry_url},http://{LOOPBACK}:{port}"):
            ends, acts = time.monotonic() + SECONDS, 0
            while time.monotonic() < ends or acts < len(registry.acts):
                registry.acts[acts % len(registry.acts)]()
                acts += 1
                time.sleep(1)  # under load meanwhile
            agreed = {name: six.agreed(name) for name in NAMES}
            registry.acts[0]()
            what = "the comparison after the last change"
            until(lambda: all(agreed[name] < six.agreed(name) for name in NAMES), PATIENCE, what=what, every=0.5)
            states = six.states()
    assert not six.evidence()
    assert not any(state["split_views"] for state in states.values()), states
    assert not any("contradicted" in state["heard"] for state in states.values()), states
