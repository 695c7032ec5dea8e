"""Paths of the ledger: each tile has one spelling, and numbers larger than a database takes are not found."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerseal.protocol.keys import KeyPair
from registry.limits import Limits
from tests.registry.driver import Driver

ENTRIES = 12


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A ledger of at least ENTRIES entries; nothing here changes it."""
    folder = tmp_path_factory.mktemp("registry")
    url = f"sqlite:///{folder / 'registry.sqlite3'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    driver = Driver(url, folder, limits=Limits(refusals_per_minute=10**9))
    for _ in range(ENTRIES):
        driver.joined(KeyPair.generate("ES256"), "billing")
    yield driver
    driver.close()


def status(registry: Driver, path: str) -> int:
    answer = registry.client.get(path)
    immutable = "immutable" in answer.headers.get("Cache-Control", "")
    assert immutable == (answer.status_code == 200), path
    return answer.status_code


FAR = [
    "x999/x999/x999/x999/x999/999",
    "x999/x999/x999/x999/x999/999.p/255",
    "x036/x028/x797/x018/x963/967",
    "x001/000",
    "999",
    "001",
    "000",
    "000.p/255",
]


@pytest.mark.parametrize("level", [*range(8), "entries"])
@pytest.mark.parametrize("place", FAR)
def test_a_tile_that_the_ledger_does_not_reach_is_not_found(registry: Driver, level: int | str, place: str) -> None:
    assert status(registry, f"/ledger/tile/{level}/{place}") == 404


OTHER_SPELLINGS = [
    *(
        "00/000.p/1",
        "01/000.p/1",
        "+0/000.p/1",
        "-0/000.p/1",
        "0.0/000.p/1",
        "\u0660/000.p/1",
        "%30%30/000.p/1",
        "8/000",
        "63/000",
    ),
    *(
        "0/0.p/1",
        "0/00.p/1",
        "0/0000.p/1",
        "0/x000/000.p/1",
        "0/X000/000.p/1",
        "0/000.p/01",
        "0/000.p/0",
        "0/000.p/256",
    ),
    *(
        "0/000.p/1/",
        "0//000.p/1",
        "0/000.P/1",
        "0/000.p/+1",
        "0/000.p/\u0661",
        "0/000.p/",
        "0/000.p/1.p/1",
        "0/x1/000",
        "0/",
    ),
    *(
        "entries/000.p/01",
        "entries/0",
        "entries/x000/000.p/1",
        "Entries/000.p/1",
        "entries/",
        "0/000.p/1%0a",
        "0%0a/000.p/1",
        "0/000.p/1?x",
        "entries/000.p/1?size=1",
    ),
]


@pytest.mark.parametrize("path", OTHER_SPELLINGS)
def test_another_spelling_of_a_tile_is_not_found(registry: Driver, path: str) -> None:
    assert status(registry, "/ledger/tile/0/000.p/1") == 200
    assert status(registry, "/ledger/tile/entries/000.p/1") == 200
    assert status(registry, f"/ledger/tile/{path}") in (404, 308)


def test_another_spelling_of_a_proof_is_kept_by_no_cache(registry: Driver) -> None:
    assert status(registry, "/ledger/proof?from=1&to=2") == 200
    for query in ("from=1&to=2&x=1", "from=1&to=2&from=1", "from=01&to=2", "from=1&to=2&kid=", "from=1&to=2&From=1"):
        assert status(registry, f"/ledger/proof?{query}") == 400


ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.integers().map(str) | st.sampled_from(FAR)
PATHS = st.sampled_from(
    [
        *("/ledger/tile/{0}/{1}", "/ledger/tile/entries/{0}", "/ledger/proof?kid={0}", "/ledger/proof?from={0}&to={1}"),
        *(
            "/v1/services/{0}/keys",
            "/v1/services/{0}/keys/{1}",
            "/v1/services/{0}/keys/{1}.jwt",
            "/v1/services/{0}/jwks.jwt",
        ),
        *(
            "/v1/services/{0}/jwks.json?seq={1}",
            "/v1/services/{0}/policy.jwt?seq={1}",
            "/v1/changes?since={0}&wait={1}",
        ),
        *(
            "/v1/services/billing/keys?after={0}&limit={1}",
            "/v1/domain.jwt?seq={0}",
            "/v1/services/billing/keys/{0}?reason={1}",
        ),
    ]
)


@pytest.mark.thorough
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=PATHS, first=ODD, second=ODD)
def test_no_path_or_query_parameter_makes_a_server_error(registry: Driver, path: str, first: str, second: str) -> None:
    answer = registry.client.get(path.format(first, second))
    assert answer.status_code < 500 or (answer.status_code, answer.get_json()["code"]) == (503, "behind")
