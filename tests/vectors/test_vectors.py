"""The files in docs/vectors are what the script makes, and our own verifiers agree with each case."""

import importlib
import json
import pkgutil
import re
from collections import Counter
from typing import Any, Final

import pytest

from peerseal import errors, protocol
from peerseal.protocol.encoding import b64url_decode
from tests.vectors.judged import verdict
from tests.vectors.make import FILES, FOLDER, text_of

NO_VERDICTS: Final = (
    # The body could not be read: a limit of the adapter. `refusal` has the answers.
    errors.ContentTooLarge,
    errors.ContentUnreadable,
    # What peers told of the ledger, and not the token, decides. `refusal` has the answer.
    errors.SplitViewFound,
    # The other side did not answer, or refused us: we verified nothing.
    errors.FetchError,
    errors.EnrolmentPending,
    errors.EnrolmentRefused,
    errors.AccessTokenRefused,
    # We do not sign, call or send.
    errors.UnsignableRequest,
    errors.CallNotMade,
    errors.BrokerUnavailable,
    # The application's own code.
    errors.MessageRefused,
)
"""The errors that no verifier gives."""


def content_of(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_the_script_makes(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == text_of(name), "run: make vectors"


def test_there_is_no_other_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in FILES}


def test_the_page_has_a_row_for_each_file() -> None:
    page = (FOLDER.parent / "reference" / "vectors.md").read_text()
    kinds = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", page, re.M)))
    assert sorted(FILES.keys() - set(kinds)) == []


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


def test_there_is_a_case_for_each_code_with_which_a_verifier_refuses() -> None:
    seen = {case["expect"] for name in FILES for case in content_of(name)["cases"]}
    assert sorted(verifiers_codes() - seen) == []


def verifiers_codes() -> set[str]:
    """The codes of all errors but those of `NO_VERDICTS`."""
    codes: set[str] = set()
    for kind in vars(errors).values():
        if not (isinstance(kind, type) and issubclass(kind, errors.PeersealError)) or issubclass(kind, NO_VERDICTS):
            continue
        in_words = re.findall(r"``((?:document|key)_\w+)``", kind.__doc__ or "")
        codes |= set(in_words) if issubclass(kind, errors.CodedError) else {kind.code}
    return codes - {errors.PeersealError.code}  # of errors that stand for their subclasses only


def test_each_code_of_a_document_and_of_a_key_is_named_by_its_error() -> None:
    assert {"document_malformed", "document_stale", "key_malformed"} <= verifiers_codes()


def test_there_is_an_accepted_case_for_each_kind_of_token_and_document() -> None:
    accepted = {typ for name in FILES for case in content_of(name)["cases"] for typ in types_in(case)}
    assert sorted(protocol_types() - accepted) == []


def protocol_types() -> set[str]:
    """Every ``typ`` that a module of the protocol names: in a constant, or as ``TYP`` of a class."""
    names = [module.name for module in pkgutil.walk_packages(protocol.__path__, f"{protocol.__name__}.")]
    values = [value for name in names for value in vars(importlib.import_module(name)).items()]
    constants = {value for name, value in values if name.endswith("_TYP")}
    return constants | {vars(kind)["TYP"] for _, kind in values if isinstance(kind, type) and "TYP" in vars(kind)}


def types_in(case: Any) -> set[str]:
    """The ``typ`` of each JWS in the input of an accepted case."""
    found = re.findall(r"\b(ey[\w-]+)\.[\w-]+\.[\w-]+", json.dumps(case["input"]) * (case["expect"] == "accepted"))
    return {json.loads(b64url_decode(header)).get("typ", "") for header in found}


def test_the_protocols_types_are_found() -> None:
    assert {"peerseal-history+jwt", "peerseal-request+jwt", "token-introspection+jwt"} <= protocol_types()
