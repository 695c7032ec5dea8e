"""schemathesis makes up calls from the document that the registry serves, good and bad ones, and judges the answers.

An admin's token goes along, so that the calls get past the door. Every answer must have a status, media type, headers
and shape that the document names; what the document forbids must be refused, and what it allows must not be called
misunderstood; without the token nothing that asks for one may be answered.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import positive_data_acceptance

from peerseal.protocol.documents.key_set import part_of
from peerseal.protocol.keys import KeyPair
from registry.limits import Limits
from registry.services.access.operators import Role
from tests.registry.driver import DOMAIN, Driver

POSITIVE, NEGATIVE = schemathesis.GenerationMode
QUICK = 12
"""Examples of each call in each of three ways, for every run of the tests."""
THOROUGH = 60
"""For `make fuzz`."""
REFUSALS = {"checks": {"negative_data_rejection": {"expected-statuses": ["4xx", "5xx"]}}}
"""Any 4xx refuses a call that the document forbids: a text that is too long may make the whole body too long (413).
Each status must still be one that the document names, and a 5xx one that `asked` knows."""
UNKNOWABLE = {"getProof", "registerKey", "endKey", "setPolicy", "setDomain", "setFederation", "getChanges"}
"""Calls whose rules no JSON Schema can say: one parameter or two others, a signed body, a reason that fits the key,
names of one's own domain, or of other domains alone, each root once. The names of a waiting call are one text, and each
has a greatest length."""


@schemathesis.deserializer("application/json")
def read(_context: object, response: Any) -> Any:
    """schemathesis takes application/jwt for a kind of JSON."""
    return response.text if response.headers["content-type"] == ["application/jwt"] else response.json()


def api(url: str, home: Path) -> Driver:
    """A registry with something to see, which refuses as often as it is asked to."""
    return Driver(url, home, limits=Limits(refusals_per_minute=10**9, keys_in_set=1), applicants=True)


@contextlib.contextmanager
def filled(driver: Driver) -> Iterator[dict[str, Any]]:
    """What path parameters may be, so that something is found."""
    keys = [driver.joined(KeyPair.generate("ES256"), "billing") for _ in range(2)]
    waiting = KeyPair.generate("ES256")
    assert driver.post_key("billing", {"proof": driver.proof(waiting, "billing")}).status_code == 202
    _, viewer = driver.registry.operators.create(Role.VIEWER, 600)
    try:
        yield {
            "block": 0,
            "domain": DOMAIN,
            "service": "billing",
            "thumbprint": keys[0].public.thumbprint,
            "part": part_of(keys[0].public.thumbprint),
            "token_id": viewer.split(".")[1],
            "level": 0,
            "place": "000.p/1",
        }
    finally:
        driver.close()


def judged(driver: Driver, examples: int) -> Counter[int]:
    """How often each status was answered, when everything was as the document says."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", driver.app, config=schemathesis.Config.from_dict(REFUSALS))
    statuses: Counter[int] = Counter()
    with filled(driver) as known:
        for found in schema.get_all_operations():
            operation = found.ok()
            names = {parameter.name for parameter in operation.path_parameters}
            real = {name: known[name] for name in names}
            ways = [{"generation_mode": POSITIVE, "path_parameters": real}] if real else []
            for way in [*ways, {"generation_mode": POSITIVE}, {"generation_mode": NEGATIVE}]:
                with contextlib.suppress(Unsatisfiable):  # where nothing is asked, nothing can be asked wrongly
                    statuses += asked(driver, operation, operation.as_strategy(**way), examples)
    return statuses


def with_whole_numbers(body: Any) -> Any:
    """JSON Schema counts 600.0 among the integers; the registry does not, as no JSON writer writes an integer so."""
    if isinstance(body, dict):
        return {name: with_whole_numbers(value) for name, value in body.items()}
    return int(body) if isinstance(body, float) and body.is_integer() else body


def asked(driver: Driver, operation: Any, cases: st.SearchStrategy[Any], examples: int) -> Counter[int]:
    """The statuses of one call, asked in one way."""
    statuses: Counter[int] = Counter()
    excluded = [not_a_server_error]  # ours below knows which 503 is meant
    if operation.definition.raw["operationId"] in UNKNOWABLE:
        excluded.append(positive_data_acceptance)

    @seed(20_260)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Any) -> None:
        case.body = with_whole_numbers(case.body)
        spoiled = case.meta.components.get(ParameterLocation.HEADER)
        known = spoiled is None or spoiled.mode is POSITIVE
        if known and case.method == "PUT":
            before = driver.client.get(case.formatted_path, headers=driver.operator)
            case.headers["If-Match"] = before.headers.get("ETag", '"0"')
        response = case.call_and_validate(headers=driver.operator if known else None, excluded_checks=excluded)
        statuses[response.status_code] += 1
        if response.status_code >= 500:
            assert response.json()["code"] == "behind", "the one 5xx: an entry was asked for that is not here yet"

    ask()
    return statuses


@pytest.mark.thorough
def test_the_registry_answers_as_its_document_says(sqlite_url: str, tmp_path: Path) -> None:
    statuses = judged(api(sqlite_url, tmp_path / "home"), QUICK)
    assert {200, 201, 204, 304, 400, 401, 404, 409} <= statuses.keys()


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thousands_of_calls_are_answered_as_the_document_says(registry_database: str, tmp_path: Path) -> None:
    statuses = judged(api(registry_database, tmp_path / "home"), THOROUGH)
    print(f"\n{statuses.total()} calls: {dict(sorted(statuses.items()))}")
    assert statuses.total() >= 2000
