"""Counts that cannot be kept change no answer: the folder is removed, cannot be written to, or the disk is full."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from registry.web import metrics
from tests.registry.driver import Driver
from tests.support.processes import Server, free_port, gunicorn
from tests.support.stack import Stack
from tests.support.waiting import until


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home")
    yield driver
    driver.close()


@pytest.fixture
def counts(registry: Driver, tmp_path: Path) -> Path:
    """The folder of this server's counts, with something in it."""
    answers_as_ever(registry)
    (folder,) = (tmp_path / "home/counts").iterdir()
    assert list(folder.glob("*.json"))
    return folder


def answers_as_ever(registry: Driver) -> None:
    """A refusal, an answer and the counts."""
    assert registry.client.get("/v1/services/nobody/jwks.jwt").status_code == 404
    assert registry.client.get("/v1/services").status_code == 401
    assert registry.client.get("/v1/changes").status_code == 200
    answer = registry.client.get("/metrics")
    assert answer.status_code == 200
    assert "registry_refusals_total" in answer.text


def removed(folder: Path) -> None:
    """A timer of the registry may write a file into it meanwhile."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(is_gone)


def a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def files_that_are_not_counts(folder: Path) -> None:
    for number, content in enumerate([b"", b"{}", b"[[1]]", b"\xff", b"[[1,2,3,[[4]]]]", b'[["a","b","c",{"d":1}]]']):
        (folder / f"{number}.json").write_bytes(content)


@pytest.mark.parametrize("spoil", [removed, a_file_in_its_place, files_that_are_not_counts])
def test_answers_stay_the_same(registry: Driver, counts: Path, spoil: Callable[[Path], None]) -> None:
    spoil(counts)
    answers_as_ever(registry)


def test_a_folder_that_was_removed_is_made_again(registry: Driver, counts: Path) -> None:
    removed(counts)
    answers_as_ever(registry)
    assert list(counts.glob("*.json"))


def test_a_home_that_was_removed_is_not_made_again(registry: Driver, counts: Path, tmp_path: Path) -> None:
    removed(tmp_path / "home")
    metrics.answered.count()
    assert not (tmp_path / "home").exists()


def refusals() -> dict[str, float]:
    metrics.answered.count()
    found = [metric for metric in metrics.WORKERS.collect() if metric.name == "registry_refusals"]
    return {sample.labels["code"]: sample.value for metric in found for sample in metric.samples}


@pytest.mark.usefixtures("counts")
def test_a_process_that_makes_its_application_again_counts_nothing_twice(tmp_path: Path) -> None:
    before = refusals()
    metrics.WORKERS.share_in(tmp_path / "home")
    assert refusals() == before


def test_a_draft_of_another_worker_is_not_counted(
    registry: Driver, counts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    monkeypatch.setattr(os, "replace", lambda draft, _file, **_: kept.append(counts / draft))
    metrics.answered.count()
    assert kept
    assert not set(kept) & set(counts.glob("*.json"))


def test_a_full_disk(registry: Driver, counts: Path, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        for _ in range(3):
            metrics.answered.count()
            answer = registry.client.get("/metrics")
            assert (answer.status_code, "registry_refusals_total" in answer.text) == (200, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("what this worker counts cannot be shared") == 1
    until(lambda: not list(counts.glob(".new-*")))  # a timer of the registry may write one just now


def test_a_counter_that_fails_keeps_no_refusal_from_being_answered(
    registry: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no space left on device")

    for metric in (metrics.REFUSALS, metrics.ADMISSIONS, metrics.REQUESTS):
        monkeypatch.setattr(metric, "labels", fails)
    monkeypatch.setattr(metrics.SECONDS, "observe_all", fails)
    monkeypatch.setattr(metrics, "errors", metrics.CountingErrors())
    answers_as_ever(registry)
    assert caplog.text.count("could not be counted") == 1


@pytest.mark.e2e
@pytest.mark.thorough
def test_workers_go_on_when_somebody_tidies_up(stack: Stack, tmp_path: Path) -> None:
    """As systemd-tmpfiles does; the refused calls used to end in dropped connections."""
    stack.operate("init", "--trust-domain", "demo.internal")
    with gunicorn(
        "registry",
        "registry.wsgi:app",
        port=free_port(),
        log=tmp_path / "log",
        settings=stack.registry_settings,
        config="python:registry.gunicorn_conf",
    ) as server:
        server.wait_until_answers(f"{server.url}/readyz")
        for folder in _folders(stack):
            shutil.rmtree(folder)
        assert statuses(server, "/v1/services", 20) == {401}
        assert statuses(server, "/metrics", 4) == {200}


def _folders(stack: Stack) -> list[Path]:
    home = Path(stack.registry_settings["REGISTRY_HOME"])
    return [path for path in (home / "counts").glob("*") if os.path.isdir(path)]


def statuses(server: Server, path: str, times: int) -> set[int]:
    return {requests.get(f"{server.url}{path}", timeout=5).status_code for _ in range(times)}
