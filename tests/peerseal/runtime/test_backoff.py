"""Pauses between attempts: they grow to a limit, and chance only shortens them."""

import pytest

from peerseal.runtime.backoff import backoff


def test_a_pause_doubles_with_each_failure_up_to_the_longest() -> None:
    assert [backoff(failures, first=0.5, longest=3.0) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff(10**6, first=1.0, longest=60.0) == 60.0


@pytest.mark.parametrize("failures", [1, 3, 50])
def test_chance_takes_away_the_named_part_at_most(failures: int) -> None:
    whole = backoff(failures, first=1.0, longest=8.0)
    pauses = {backoff(failures, first=1.0, longest=8.0, jitter=0.3) for _ in range(200)}
    assert all(0.7 * whole <= pause <= whole for pause in pauses)
    assert len(pauses) > 100
