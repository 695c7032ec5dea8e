"""The files in docs/vectors are what the script makes, and our own verifiers agree with each case."""

import json
from collections import Counter
from typing import Any

import pytest

from peerseal import errors
from tests.vectors.judged import verdict
from tests.vectors.make import FILES, FOLDER, text_of


def content_of(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_the_script_makes(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == text_of(name), "run: make vectors"


def test_there_is_no_other_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_our_verifiers_agree_with_each_case(name: str) -> None:
    file = content_of(name)
    told = {case["id"]: verdict(file, case) for case in file["cases"]}
    assert {case: code for case, (code, _) in told.items()} == {case["id"]: case["expect"] for case in file["cases"]}
    for case in file["cases"]:
        _, facts = told[case["id"]]
        expected = case.get("claims", {})
        assert {member: facts.get(member) for member in expected} == expected, case["id"]


@pytest.mark.parametrize("name", FILES)
def test_each_case_has_an_id_of_its_own(name: str) -> None:
    counted = Counter(case["id"] for case in content_of(name)["cases"])
    assert [case for case, times in counted.items() if times > 1] == []


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"refusal"}))
def test_each_file_has_good_and_bad_cases(name: str) -> None:
    expected = {case["expect"] for case in content_of(name)["cases"]}
    assert "accepted" in expected
    assert len(expected) > 1


def test_there_is_a_case_for_each_code_of_a_refused_token_and_document() -> None:
    seen = {case["expect"] for name in FILES for case in content_of(name)["cases"]}
    bases = (errors.TokenError, errors.Forbidden)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, bases)]
    assert {kind.code for kind in kinds if kind not in bases} - seen == set()
    documents = {word.strip("`,.;") for word in (errors.DocumentRefused.__doc__ or "").split() if "document_" in word}
    # Stale is no property of a document alone: docs/protocol.md, "How long a document is believed".
    assert documents - seen == {"document_stale"}
