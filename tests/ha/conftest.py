"""One site for all events: it is repaired after each."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ha.cluster import missing_programs
from tests.ha.hosts import network
from tests.ha.site import Site, running_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Cluster, nodes, balancer and peers. What each event cost is printed at the end."""
    if missing := missing_programs():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"install {' '.join(missing)}, or run `make ha` as root")
    folder = Path(tempfile.mkdtemp(prefix="peerseal-ha-"))  # PostgreSQL's user cannot look into pytest's own folders
    try:
        folder.chmod(0o755)
        with network() as hosts, running_site(hosts, folder, tmp_path_factory.mktemp("logs")) as running:
            try:
                yield running
            finally:
                print(f"\n\n{running.table.text()}\n")
    finally:
        shutil.rmtree(folder)
