"""Clocks that are wrong: 25 s do not matter, 40 s are refused, and the log says that it is the clock."""

import logging

import pytest
from flask import Flask

import peerseal.flask
from peerseal import Identity
from peerseal.errors import DocumentRefused, EnrolmentRefused
from peerseal.testing import Clock, MemoryRegistry

NOW = 1_800_000_000.0
BORNE, TOO_MUCH = 25, 40
"""Seconds; the leeway is 30."""


def answer(caller: Identity, callee: Identity) -> tuple[int, str | None]:
    """Status and code of one call to a protected service."""
    app = Flask("callee")
    peerseal.flask.PeerAuth(app, callee, allow={"caller": {"read"}})
    app.get("/x")(lambda: "well")
    token = caller.sign_request("callee", method="GET", target="/x")
    answer = app.test_client().get("/x", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, None if answer.status_code == 200 else answer.get_json()["code"]


@pytest.fixture
def callee(registry: MemoryRegistry) -> Identity:
    return registry.identity("callee")


class TestACaller:
    @pytest.mark.parametrize("wrong", [-TOO_MUCH, -BORNE, BORNE])
    def test_a_little_early_or_late_is_accepted(
        self, registry: MemoryRegistry, clock: Clock, callee: Identity, wrong: int
    ) -> None:
        """A token lives for 60 s and the leeway, so a caller may be later by more than it may be early."""
        own = Clock(NOW)
        caller = registry.identity("caller", clock=own)
        clock.advance(TOO_MUCH)  # the key is older than any token here
        own.now = clock.now + wrong
        assert answer(caller, callee) == (200, None)

    @pytest.mark.parametrize(
        ("wrong", "code", "reason"),
        [
            (TOO_MUCH, "not_yet_valid", "issued 40 s in the future; is a clock wrong?"),
            (-(60 + TOO_MUCH), "expired", "expired 40 s ago; is a clock wrong?"),
        ],
        ids=["early", "late"],
    )
    def test_much_too_early_or_late_is_refused_and_the_log_says_why(
        self,
        registry: MemoryRegistry,
        callee: Identity,
        caplog: pytest.LogCaptureFixture,
        wrong: int,
        code: str,
        reason: str,
    ) -> None:
        own = Clock(NOW)
        caller = registry.identity("caller", clock=own)
        own.now += wrong
        assert answer(caller, callee) == (401, code)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "peerseal"]
        assert code in line
        assert reason in line
        assert "test.internal/caller" in line


class TestACallee:
    @pytest.mark.parametrize("wrong", [-BORNE, BORNE])
    def test_a_little_wrong_verifies(self, registry: MemoryRegistry, wrong: int) -> None:
        callee, caller = registry.identity("callee", clock=Clock(NOW + wrong)), registry.identity("caller")
        assert answer(caller, callee) == (200, None)

    def test_too_late_believes_no_document_and_the_log_says_why(
        self, registry: MemoryRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It says so of the registry's documents before it says so of any token."""
        own = Clock(NOW)
        callee, caller = registry.identity("callee", clock=own), registry.identity("caller")
        own.now -= TOO_MUCH
        assert answer(caller, callee) == (503, "trust_unavailable")
        assert "issued 40 s in the future" in caplog.text


def newcomer(registry: MemoryRegistry, now: float) -> Identity:
    """A host whose clock shows that, and which has no key yet."""
    token = registry.join_token("caller")
    return Identity("caller", registry="http://registry.test", join_token=token, fetcher=registry, clock=Clock(now))


class TestANewcomer:
    @pytest.mark.parametrize("wrong", [-BORNE, BORNE])
    def test_a_little_wrong_is_registered(self, registry: MemoryRegistry, wrong: int) -> None:
        assert registry.identity("caller", clock=Clock(NOW + wrong)).credentials.key_id

    def test_too_early_is_refused_with_the_reason(self, registry: MemoryRegistry) -> None:
        with pytest.raises(EnrolmentRefused) as caught:
            newcomer(registry, NOW + TOO_MUCH).start()
        assert caught.value.code == "not_yet_valid"

    def test_too_late_does_not_believe_the_registry_and_is_told_why(self, registry: MemoryRegistry) -> None:
        with pytest.raises(DocumentRefused, match="issued 40 s in the future"):
            newcomer(registry, NOW - TOO_MUCH).start(timeout=0)


def test_a_watching_callee_whose_clock_jumps_back_says_so_in_its_log(
    registry: MemoryRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    own = Clock(NOW)
    callee, caller = registry.identity("callee", clock=own), registry.identity("caller")
    assert answer(caller, callee) == (200, None)
    own.now -= TOO_MUCH
    with caplog.at_level(logging.WARNING, "peerseal.trust"):
        callee.trust.refresh()
    assert "issued 40 s in the future" in caplog.text
