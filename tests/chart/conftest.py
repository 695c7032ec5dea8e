"""The chart needs helm: its tests are skipped where it is missing, and fail where CI is set."""

from pathlib import Path

import pytest

from tests.support.helm import need_helm

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make chart` runs them."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.chart)


@pytest.fixture(autouse=True, scope="session")
def _helm() -> None:
    need_helm()
