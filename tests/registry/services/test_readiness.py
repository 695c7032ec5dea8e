"""What /readyz says, and how the parts of the registry have a say in it."""

import pytest

from registry.domain.errors import StorageUnavailable
from registry.services.readiness import Checks
from tests.registry.driver import Driver


def test_a_node_that_can_only_read_is_ready_and_not_for_writes(registry: Driver) -> None:
    troubles: list[str] = []
    registry.registry.checks.for_writing("standby", lambda: troubles[-1] if troubles else None)
    for query in ("", "?for=write"):
        ready = registry.client.get(f"/readyz{query}")
        assert (ready.status_code, set(ready.get_json().values())) == (200, {True})
    troubles.append("the standby is gone: start it")
    read, write = registry.client.get("/readyz"), registry.client.get("/readyz?for=write")
    assert (read.status_code, write.status_code) == (200, 503)
    common = {"can_read": True, "can_write": False, "database": True, "schema": True, "keys": True, "standby": False}
    for answer, ready in ((read, True), (write, False)):
        assert {"ready": ready, **common}.items() <= answer.get_json().items()


def test_a_node_that_cannot_read_cannot_write(registry: Driver) -> None:
    registry.registry.checks.for_reading("upstream", lambda: "away")
    for query in ("", "?for=write"):
        answer = registry.client.get(f"/readyz{query}")
        members = answer.get_json()
        assert (answer.status_code, members["can_read"], members["can_write"]) == (503, False, False)


@pytest.mark.parametrize("query", ["for=", "for=read", "for=writes", "for=write&for=write"])
def test_another_purpose_is_refused(registry: Driver, query: str) -> None:
    refused = registry.client.get(f"/readyz?{query}")
    assert (refused.status_code, refused.get_json()["code"]) == (400, "invalid_parameter")


def test_a_check_that_begins_to_fail_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "registry")
    failures: list[Exception] = []

    def check() -> str | None:
        if failures:
            raise failures[-1]
        return None

    checks = Checks()
    checks.for_reading("database", check)
    for _ in range(2):
        assert checks.now().can_read
    for failure in ("first", "second"):
        failures.append(StorageUnavailable(failure))
        assert not checks.now().can_read
    failures.clear()
    for _ in range(2):
        assert checks.now().can_read
    assert caplog.messages == ["not ready: database: first", "ready again"]
