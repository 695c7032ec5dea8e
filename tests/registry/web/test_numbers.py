"""Numbers that a registry is sent, or shows, and that nothing can hold."""

import pytest

from registry.commands.common import show_rows
from tests.registry.driver import Driver

LONG = "9" * 5000


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1/changes?since={}",
            "/v1/changes?since=0&wait={}",
            "/ledger/proof?from={}&to=1",
            "/ledger/proof?from=1&to={}",
        ),
        *("/v1/audit?after={}", "/v1/audit?limit={}", "/v1/services?limit={}", "/v1/services/a/jwks.jwt?seq={}"),
        *(
            "/v1/join-tokens?limit={}",
            "/v1/applicants?limit={}",
            "/v1/services/a/keys?after={}",
            "/v1/domain.jwt?seq={}",
            "/v1/federation.jwt?seq={}",
        ),
        *("/ledger/tile/0/{}", "/ledger/tile/{}/000", "/ledger/tile/entries/{}", "/ledger/tile/0/000.p/{}"),
    ],
)
def test_numbers_in_a_query_or_path_of_the_registry(registry: Driver, path: str) -> None:
    token = (registry.home / "operator-token").read_text().strip()
    for number in (LONG, "9" * 19, "-1", "%2B1", "1e3", "01", "%D9%A1", "%C2%B2", "1_0", "nan", "%00", " 1"):
        answered = registry.client.get(path.format(number), headers={"Authorization": f"Bearer {token}"})
        assert answered.status_code in (400, 404), number


@pytest.mark.parametrize("path", ["/v1/join-tokens", "/v1/operator-tokens"])
@pytest.mark.parametrize("ttl", ["9" * 5000, "9" * 4000, "9" * 19, "-1", "1e400", "1.5", "1e3", "true"])
def test_numbers_in_a_body(registry: Driver, path: str, ttl: str) -> None:
    token = (registry.home / "operator-token").read_text().strip()
    more = '"service":"a","uses":1' if path == "/v1/join-tokens" else '"role":"viewer"'
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answered = registry.client.post(path, data=f'{{{more},"ttl":{ttl}}}', headers=headers)
    assert answered.status_code == 400


@pytest.mark.parametrize("moment", [-1, 253_402_300_800, 10**12, 10**19, 10**400, -(10**19)])
def test_a_time_that_no_calendar_has_is_shown_as_the_number_that_it_is(
    capsys: pytest.CaptureFixture[str], moment: int
) -> None:
    """As a registry at ``--url`` may say it."""
    show_rows([{"expires_at": moment}], as_json=False, names=["expires_at"])
    assert capsys.readouterr().out == f"EXPIRES_AT\n{moment}\n"
