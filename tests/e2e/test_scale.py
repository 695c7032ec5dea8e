"""`make scale` at a reduced size: each part of it runs, and what it loads is a whole registry."""

from pathlib import Path

import pytest

from benchmarks.scale.__main__ import Plan, measure
from benchmarks.scale.ledger import Size
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.e2e, pytest.mark.nginx, pytest.mark.thorough]


def test_a_registry_that_is_restored_in_bulk_is_verified_and_serves_peers_that_watch(
    tmp_path: Path, postgres: Postgres
) -> None:
    """`measure` raises an error where the restored registry is not whole, or a peer never learns of a revocation."""
    plan = Plan(Size(30, 1, 20), Size(20, 1, 20), peers=100, revocations=3)
    figures = {figure.figure: figure for figure in measure(tmp_path, postgres, plan)}
    assert {"restore, 321 keys", "verify, 321 keys", "verify, 221 keys"} <= figures.keys()
    compared = [figure for figure in figures.values() if figure.ratio is not None]
    assert len(compared) == 10
    told = [figure for name, figure in figures.items() if name.startswith("100 peers through nginx")]
    assert len(told) == 4
