"""A key's life: every transition as a pure function, and all sequences of them by the use cases."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerseal.errors import CallerNotAllowed
from peerseal.protocol.keys import KeyPair
from registry.domain import lifecycle
from registry.domain.keys import KeyRecord, KeyState
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from tests.registry.driver import Clock, Driver, entries_of, tables_of
from tests.support.keys import key

START, END = 1_000, 2_000


ONE = lifecycle.admitted(key().public, "billing", {"join_token": "x"}, seq=3, start=START, end=END)
DONE = {
    "retire": lifecycle.retired,
    "revoke": lambda record, now: lifecycle.revoked(record, now, seq=now),
    "wait": lambda record, now: record,
}


def check_step(before: KeyRecord, after: KeyRecord, now: int) -> None:
    """What holds for every step of every key."""
    was, ended = before.state(now), after.state(now)
    if was is KeyState.REVOKED:
        assert after == before, "nothing leaves revoked"
    if was is KeyState.RETIRED:
        assert ended is not KeyState.ACTIVE, "nothing becomes active again"
    assert after.active_until <= before.active_until, "windows only shrink"
    fixed = {"active_until": after.active_until, "revoked_at": after.revoked_at, "revoked_seq": after.revoked_seq}
    assert replace(before, **fixed) == after, "nothing else changes"


# pure functions


@pytest.mark.parametrize("acts", list(product(DONE, repeat=4)), ids=" ".join)
def test_every_sequence_of_acts_keeps_the_rules(acts: tuple[str, ...]) -> None:
    for times in product((START, END - 1, END, END + 500), repeat=len(acts)):
        record = ONE
        for act, now in zip(acts, sorted(times), strict=True):
            before, record = record, DONE[act](record, now)
            check_step(before, record, now)
            if act == "revoke":
                assert record.state(now) is KeyState.REVOKED
            if act == "retire":
                assert record.state(now) is not KeyState.ACTIVE


def test_a_key_is_active_from_its_entry_to_its_natural_end() -> None:
    assert [ONE.state(now) for now in (START, END - 1, END)] == [KeyState.ACTIVE, KeyState.ACTIVE, KeyState.RETIRED]


def test_retiring_shortens_the_window_and_not_the_natural_end() -> None:
    retired = lifecycle.retired(ONE, 1_500)
    assert (retired.active_until, retired.expires_at, retired.revoked_at) == (1_500, END, None)


def test_a_retired_key_can_still_be_revoked() -> None:
    revoked = lifecycle.revoked(lifecycle.retired(ONE, 1_500), 1_600, seq=9)
    assert (revoked.active_until, revoked.revoked_at, revoked.revoked_seq) == (1_500, 1_600, 9)


def test_a_services_key_ends_only_itself() -> None:
    lifecycle.check_ends_itself("acme.internal/billing/a", "acme.internal/billing/a")
    for other in ("acme.internal/billing/b", "acme.internal/shipping/a", ""):
        with pytest.raises(CallerNotAllowed):
            lifecycle.check_ends_itself("acme.internal/billing/a", other)


# all sequences, by the use cases


class KeyLives(RuleBasedStateMachine):
    """Two services, whose keys apply, join, vouch, and end in any order, while time goes by; each call over HTTP."""

    SERVICES = ("billing", "shipping")

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        home, self.clock = Path(self.folder.name), Clock()
        limits = Limits(key_lifetime=1000, applicant_ttl=300)
        url = f"sqlite:///{home / 'registry.sqlite3'}"
        self.registry = Driver(url, home / "home", self.clock, applicants=True, limits=limits)
        self.pairs: dict[str, tuple[KeyPair, str]] = {}
        self.parents: dict[str, str] = {}
        self.seen: dict[str, KeyRecord] = {}
        self.ended: set[str] = set()
        """The keys that the last call may have ended."""

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            assert rebuild(entries_of(self.registry.store)) == tables_of(self.registry.store)
            self.registry.close()
            self.folder.cleanup()

    def some(self, number: int) -> tuple[KeyPair, str]:
        return list(self.pairs.values())[number % len(self.pairs)]

    def new(self, service: str) -> KeyPair:
        pair = key()
        self.pairs[pair.public.thumbprint] = pair, service
        return pair

    def family(self, thumbprint: str) -> set[str]:
        children = {child for child, parent in self.parents.items() if parent == thumbprint}
        return {thumbprint}.union(*(self.family(child) for child in children))

    def active(self) -> list[tuple[KeyPair, str]]:
        """What may vouch now, newest first."""
        now = self.clock()
        good = {name for name, record in self.seen.items() if record.state(now) is KeyState.ACTIVE}
        return [held for name, held in reversed(self.pairs.items()) if name in good]

    @precondition(lambda self: len(self.active()) < 2)
    @rule(service=st.sampled_from(SERVICES))
    def join(self, service: str) -> None:
        self.registry.joined(self.new(service), service)

    @rule(service=st.sampled_from(SERVICES))
    def apply(self, service: str) -> None:
        proof = self.registry.proof(self.new(service), service)
        assert self.registry.post_key(service, {"proof": proof}).status_code in (202, 429)

    @precondition(lambda self: self.pairs)
    @rule(number=st.integers(0, 50), to=st.sampled_from(SERVICES))
    def apply_again(self, number: int, to: str) -> None:
        pair, _ = self.some(number)
        known = self.seen.get(pair.public.thumbprint)
        status = self.registry.post_key(to, {"proof": self.registry.proof(pair, to)}).status_code
        if known is None:
            assert status in (202, 429)
            self.pairs[pair.public.thumbprint] = pair, to
        else:
            active = known.service == to and known.state(self.clock()) is KeyState.ACTIVE
            assert status == (200 if active else 409), "a key that ended never returns"

    @precondition(lambda self: self.pairs)
    @rule(number=st.integers(0, 50))
    def approve(self, number: int) -> None:
        pair, service = self.some(number)
        path = f"/v1/services/{service}/keys/{pair.public.thumbprint}/approve"
        assert self.registry.client.post(path, headers=self.registry.operator).status_code in (200, 201, 404, 409)

    @precondition(lambda self: self.active())
    @rule(number=st.integers(0, 3))
    def vouch(self, number: int) -> None:
        active = self.active()
        old, service = active[number % len(active)]
        new = self.new(service)
        assert self.registry.rotate(old, new, service).status_code == 201
        self.parents[new.public.thumbprint] = old.public.thumbprint

    @precondition(lambda self: self.pairs)
    @rule(number=st.integers(0, 50), other=st.integers(0, 50))
    def vouch_for_one_that_is_there(self, number: int, other: int) -> None:
        (old, service), (known, _) = self.some(number), self.some(other)
        if self.registry.rotate(old, known, service).status_code == 201:  # an applicant
            self.parents[known.public.thumbprint] = old.public.thumbprint
            self.pairs[known.public.thumbprint] = known, service

    @precondition(lambda self: self.pairs)
    @rule(number=st.integers(0, 50), other=st.integers(0, 50), reason=st.sampled_from(["retired", "compromised"]))
    def end_by_a_key(self, number: int, other: int, reason: str) -> None:
        (pair, service), (by, by_service) = self.some(number), self.some(other)
        answer = self.registry.end(pair, service, reason, by=by, by_service=by_service)
        itself = by.public.thumbprint == pair.public.thumbprint
        assert itself or answer.status_code in (401, 403)
        if answer.status_code == 204:
            thumbprint = pair.public.thumbprint
            self.ended = self.family(thumbprint) if reason == "compromised" else {thumbprint}

    @precondition(lambda self: self.pairs)
    @rule(number=st.integers(0, 50), reason=st.sampled_from(["retired", "compromised", "rejected"]))
    def end_by_an_operator(self, number: int, reason: str) -> None:
        pair, service = self.some(number)
        thumbprint = pair.public.thumbprint
        answer = self.registry.operator_ends(pair, service, reason)
        known = thumbprint in self.seen and self.seen[thumbprint].service == service
        assert answer.status_code in ((204,) if known and reason != "rejected" else (204, 404))
        self.ended = {"rejected": set(), "retired": {thumbprint}}.get(reason, self.family(thumbprint))

    @rule(seconds=st.sampled_from([1, 100, 299, 600]))
    def wait(self, seconds: int) -> None:
        self.clock.forward(seconds)

    @rule()
    def tidy(self) -> None:
        self.registry.registry.housekeeping.tidy()

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "registry"):
            return
        now, keys = int(self.clock()), tables_of(self.registry.store).keys
        for thumbprint, before in self.seen.items():
            check_step(before, keys[thumbprint], now)
            assert keys[thumbprint] == before or thumbprint in self.ended, "it ended another key"
        for thumbprint, record in keys.items():
            if record.revoked_at is not None:
                fallen = {keys[each].state(now) for each in self.family(thumbprint) if each in keys}
                assert fallen == {KeyState.REVOKED}, "descendants fall with it"
        self.seen, self.ended = keys, set()


TestKeyLives: Any = pytest.mark.slow(KeyLives.TestCase)
TestKeyLives.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
