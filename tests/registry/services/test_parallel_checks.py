"""Evidence is checked in processes: every fault is found, in order, whatever befalls a process."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof
from registry.domain.evidence_checks import AdmissionCheck, Checked, EvidenceCheck
from registry.services.recovery.parallel_checks import ALONE, BATCH, ParallelChecks
from tests.support.processes import Process
from tests.support.waiting import until

DOMAIN, NOW = "test.internal", 1_790_000_000
MANY = (ALONE + 6) * BATCH
"""Checks for which other processes are started."""


HANGS = f"""
import time
from registry.domain.evidence_checks import EndingCheck, TokenSigner
from registry.services.recovery.parallel_checks import ParallelChecks

if __name__ == "__main__":
    with ParallelChecks(2, lambda _: None) as parallel:
        for _ in range({MANY}):
            parallel.submit(EndingCheck(1, 1, "", b"", TokenSigner("", b"")))
        print("checking", flush=True)
        time.sleep(600)
"""
"""A program that gives checks to processes, and then hangs."""


@pytest.fixture(scope="module")
def good() -> AdmissionCheck:
    key, registry, owner = KeyPair.generate("ES256"), registry_id(DOMAIN), service_id(DOMAIN, "client")
    evidence = canonical_json({"proof": sign_proof(key, issuer=owner, audience=registry, now=NOW)})
    kid, public = make_kid(owner, key.public.thumbprint), key.public
    return AdmissionCheck(1, NOW, registry, evidence, kid, dict(public.jwk), public.alg, False, None)


def faults(checks: Iterator[EvidenceCheck], processes: int) -> list[int]:
    """The numbers of the entries with a fault, in the order in which they are told."""
    found: list[Checked] = []
    with ParallelChecks(processes, found.append) as parallel:
        for check in checks:
            parallel.submit(check)
    assert all(checked.difference is not None for checked in found)
    return [checked.seq for checked in found]


def numbered(good: AdmissionCheck, late: frozenset[int]) -> Iterator[EvidenceCheck]:
    """Many checks, of which those with the numbers ``late`` have a proof that was entered too late."""
    for seq in range(1, MANY + 1):
        yield replace(good, seq=seq, time=NOW + 3600 if seq in late else NOW)


LATE = frozenset({1, BATCH, ALONE * BATCH, ALONE * BATCH + 1, MANY - 1, MANY})


@pytest.mark.parametrize("processes", [1, 2])
def test_every_fault_is_found_in_order(good: AdmissionCheck, processes: int) -> None:
    assert faults(numbered(good, LATE), processes) == sorted(LATE)


def test_few_checks_start_no_process(good: AdmissionCheck) -> None:
    with ParallelChecks(2, lambda _: None) as parallel:
        for _ in range(ALONE * BATCH):
            parallel.submit(good)
        assert multiprocessing.active_children() == []


@dataclass(frozen=True, slots=True)
class KillsItsProcess(EvidenceCheck):
    """As if the system had ended the process that makes this check. In the test's own process it does nothing."""

    spared: int

    def checked(self) -> Checked:
        if os.getpid() != self.spared:
            os.kill(os.getpid(), signal.SIGKILL)
        return Checked(self.seq)


def test_the_checks_of_a_process_that_was_killed_are_made_all_the_same(good: AdmissionCheck) -> None:
    def checks() -> Iterator[EvidenceCheck]:
        for number, check in enumerate(numbered(good, LATE)):
            yield check
            if number == MANY - BATCH // 2:
                yield KillsItsProcess(0, NOW, good.registry, b"", os.getpid())

    assert faults(checks(), 2) == sorted(LATE)


def test_an_error_of_the_caller_ends_the_processes(good: AdmissionCheck) -> None:
    def checks() -> Iterator[EvidenceCheck]:
        yield from numbered(good, frozenset())
        assert multiprocessing.active_children()
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        faults(checks(), 2)
    assert multiprocessing.active_children() == []


def test_checks_that_come_after_a_process_was_killed_are_made_all_the_same(good: AdmissionCheck) -> None:
    def checks() -> Iterator[EvidenceCheck]:
        yield from numbered(good, LATE)
        yield KillsItsProcess(0, NOW, good.registry, b"", os.getpid())
        for _ in range(2):
            yield from numbered(good, LATE)

    assert faults(checks(), 2) == [*sorted(LATE)] * 3


def test_the_processes_end_with_a_parent_that_is_ended_by_a_signal(tmp_path: Path) -> None:
    """As by ``timeout``, systemd or cron: SIGTERM leaves a Python program no time to tidy up."""
    program = tmp_path / "program.py"
    program.write_text(HANGS)
    with Process("parent", [sys.executable, str(program)], log=tmp_path / "log") as process:
        process.wait_until_prints("checking")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        os.kill(process.pid, signal.SIGTERM)
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
