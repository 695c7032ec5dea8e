"""``peerseal verify`` at a terminal: each step with its result, and no token used up."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerseal import Verifier, errors
from peerseal.__main__ import main
from peerseal.commands.raw_request import RawRequest
from peerseal.commands.step_report import (
    ASCII_MARKS,
    DOCUMENT,
    EVENT,
    MARKS,
    REMEDIES,
    REQUEST,
    TRANSACTION,
    Report,
    Result,
)
from peerseal.commands.verification import Message, verify_document, verify_event, verify_request, verify_transaction
from peerseal.errors import DocumentRefused, Forbidden, SplitViewFound, TokenError, TrustUnavailable
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.history_statement import HISTORY_TYP
from peerseal.protocol.documents.key_set import KeySetDocument, part_of
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.jose import MAX_TOKEN
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.policies import DERIVED_FROM, DomainSettings
from peerseal.protocol.tokens.event import EVENT_TYP
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP, transaction_hash
from peerseal.testing import MemoryRegistry
from peerseal.trust.beliefs import KeySource
from peerseal.verify import event as event_steps
from peerseal.verify import request as request_steps
from tests.attacks import forge
from tests.attacks.forge import ABSENT, CALLEE, CALLER, NOW, OTHER, Keys, ec_key
from tests.attacks.test_event_tokens import AUDIENCE, PAYLOAD, SCOPE, TOPIC, event_claims, event_header
from tests.attacks.test_transaction_tokens import EDGE, transaction_claims
from tests.peerseal.served import served

ROOT = Path(__file__).parents[3]
ALLOW = {"client-service": frozenset(("orders:write",))}
KEY = ec_key("caller")
EVENT_KEY = forge.rsa_key("caller")


def keys() -> Keys:
    """A key source that knows the caller, the minter and another service."""
    known = Keys()
    for owner, key in ((CALLER, KEY), (CALLER, EVENT_KEY), (EDGE, ec_key("edge")), (OTHER, ec_key("other"))):
        known.add(owner, key)
    known.domain_settings = DomainSettings(minters=frozenset((EDGE,)))
    return known


def token(**changes: Any) -> str:
    return forge.honest_token(KEY, **changes)


def request_with(token: str | None, **changes: Any) -> RawRequest:
    """The honest request with that token; ``headers`` come on top of its own."""
    headers = {**forge.HEADERS, **changes.pop("headers", {})}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return replace(RawRequest(forge.METHOD, forge.TARGET, headers, forge.BODY), **changes)


def check_refusal(found: Report, step: int, code: str) -> None:
    """The report is a refusal with that code, at that step, and shows it on a terminal of 80 columns."""
    assert found.error is not None
    assert (found.error.code, found.refused_at) == (code, step), repr(found.error)
    for number, _, result in found.results():
        reached = Result.HOLDS if number < step else Result.REFUSED if number == step else Result.NOT_REACHED
        assert result == (Result.NOT_TRIED if number in found.kind.untried else reached)
    lines = list(found.lines(MARKS))
    assert lines[0].endswith(f": {code}")
    assert sum(line.startswith(f"{step:2} ✗ ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


# ---- requests

STRANGE_KEY = ec_key("attacker")
MINTED = forge.forge(forge.header(ec_key("edge"), EDGE, typ=TRANSACTION_TYP), transaction_claims(), ec_key("edge").sign)
WITH_TTH = token(tth=transaction_hash(MINTED))

REFUSED_REQUESTS: Mapping[str, tuple[int, str, RawRequest]] = {
    "no token": (1, "missing_token", request_with(None)),
    "not three segments": (1, "malformed_token", request_with("abc")),
    "padding": (1, "malformed_token", request_with(f"{token()}==")),
    "two tokens": (1, "malformed_token", request_with(f"{token()}, Bearer {token()}")),
    "too long": (1, "malformed_token", request_with(f"{token()}{'A' * MAX_TOKEN}")),
    "a repeated member": (
        1,
        "malformed_token",
        request_with(forge.forge(forge.header(KEY), b'{"iss":"a","iss":"a"}', KEY.sign)),
    ),
    "an event token": (2, "wrong_type", request_with(forge.forge(event_header(KEY), event_claims(), KEY.sign))),
    "alg none": (
        2,
        "malformed_token",
        request_with(forge.forge(forge.header(KEY, alg="none"), forge.claims(), b"")),
    ),
    "a jwk in the header": (
        2,
        "malformed_token",
        request_with(forge.forge(forge.header(KEY, jwk={}), forge.claims(), KEY.sign)),
    ),
    "a kid that is none": (
        2,
        "malformed_token",
        request_with(forge.forge(forge.header(KEY, kid="key-1"), forge.claims(), KEY.sign)),
    ),
    "a claim is missing": (2, "malformed_token", request_with(token(jti=ABSENT))),
    "another caller": (3, "caller_not_allowed", request_with(forge.honest_token(ec_key("other"), OTHER))),
    "an unknown key": (3, "unknown_key", request_with(forge.honest_token(STRANGE_KEY))),
    "another signature": (
        4,
        "bad_signature",
        request_with(forge.forge(forge.header(KEY), forge.claims(), STRANGE_KEY.sign)),
    ),
    "in another name": (5, "wrong_issuer", request_with(token(iss=OTHER))),
    "for another service": (6, "wrong_audience", request_with(token(aud=OTHER))),
    "expired": (7, "expired", request_with(token(iat=NOW - 120, nbf=NOW - 120, exp=NOW - 60))),
    "of the future": (7, "not_yet_valid", request_with(token(iat=NOW + 60, nbf=NOW + 60, exp=NOW + 120))),
    "lives too long": (7, "lifetime_too_long", request_with(token(exp=NOW + 301))),
    "another method": (8, "wrong_binding", request_with(token(), method="PUT")),
    "another target": (8, "wrong_binding", request_with(token(), target="/orders/8")),
    "a target with other characters": (8, "wrong_binding", request_with(token(), target="/ä\udcff")),
    "another body": (8, "wrong_binding", request_with(token(), body=b"")),
    "another type": (8, "wrong_binding", request_with(token(), headers={"content-type": "text/plain"})),
    "a coding on top": (8, "wrong_binding", request_with(token(), headers={"content-encoding": "gzip"})),
    "no transaction token": (9, "bad_transaction_token", request_with(WITH_TTH)),
    "one that is not bound": (9, "bad_transaction_token", request_with(token(), headers={"txn-token": MINTED})),
    "another transaction": (9, "bad_transaction_token", request_with(WITH_TTH, headers={"txn-token": "a.b.c"})),
}


@pytest.mark.parametrize(("step", "code", "request_"), REFUSED_REQUESTS.values(), ids=REFUSED_REQUESTS)
def test_a_refused_request_names_the_step_that_refuses_it(step: int, code: str, request_: RawRequest) -> None:
    given: dict[str, Any] = {"allow": ALLOW, "scope": "orders:write", "clock": lambda: NOW}
    check_refusal(verify_request(keys(), request_, audience="resource-service", **given), step, code)


@pytest.mark.parametrize(
    "called", [request_with(token()), request_with(WITH_TTH, headers={"txn-token": MINTED})], ids=["caller", "both"]
)
def test_a_scope_of_the_caller_that_is_missing_here_or_in_the_transaction_is_refused_at_step_10(
    called: RawRequest,
) -> None:
    scopes = {"orders:write"} if "txn-token" not in called.headers else {"orders:write", "orders:delete"}
    allow = {"client-service": frozenset(scopes)}
    found = verify_request(keys(), called, audience=CALLEE, allow=allow, scope="orders:delete", clock=lambda: NOW)
    check_refusal(found, 10, "insufficient_scope")


def test_a_revoked_key_is_refused_at_step_3() -> None:
    known = keys()
    known.revoke(CALLER, KEY)
    found = verify_request(known, request_with(token()), audience=CALLEE, clock=lambda: NOW)
    check_refusal(found, 3, "revoked_key")


def test_settings_that_cannot_be_had_are_missed_at_step_9() -> None:
    class Unreachable(Keys):
        def settings(self) -> DomainSettings:
            raise TrustUnavailable("the registry does not answer")

    known = Unreachable()
    known.add(CALLER, KEY)
    called = request_with(WITH_TTH, headers={"txn-token": MINTED})
    found = verify_request(known, called, audience=CALLEE, clock=lambda: NOW)
    check_refusal(found, 9, "trust_unavailable")
    assert found.unreachable
    assert next(found.lines(MARKS)) == "request token, UNDECIDED: trust_unavailable"


def test_a_guard_that_cannot_answer_names_step_11() -> None:
    class Broken:
        def claim(self, issuer: str, jti: str, until: float) -> bool:
            raise TrustUnavailable("the disk is full")

    with pytest.raises(TrustUnavailable) as refused:
        forge.Callee(replay=Broken()).accepts(token())
    assert refused.value.step == 11


def test_all_steps_of_an_honest_request_hold() -> None:
    called = request_with(WITH_TTH, headers={"txn-token": MINTED})
    found = verify_request(keys(), called, audience=CALLEE, allow=ALLOW, scope="orders:write", clock=lambda: NOW)
    assert found.error is None
    assert [result for *_, result in found.results()] == [Result.HOLDS] * 10 + [Result.NOT_TRIED]
    assert found.proven["caller"] == CALLER
    assert (found.proven["scopes"], found.proven["user"]) == ("orders:write", "ada")
    lines = list(found.lines(MARKS))
    assert lines[:2] == ["request token, VERIFIED", " 1 ✓ size and strict syntax"]
    assert " 9 ✓ transaction token, if any (present)" in lines
    assert "11 – replay (not tried, the token is left unused)" in lines
    assert max(map(len, lines)) <= 80


def test_what_differs_is_shown_as_signed_and_as_received() -> None:
    called = request_with(token(), target="/orders/8", headers={"content-type": "text/plain"})
    found = verify_request(keys(), called, audience=CALLEE, clock=lambda: NOW)
    assert found.differences.keys() == {"target", "header content-type"}
    assert found.differences["header content-type"] == ("application/json", "text/plain")
    assert found.differences["target"][1].endswith("(/orders/8)")


def test_without_allow_any_service_of_the_domain_may_call_and_the_report_says_so() -> None:
    called = request_with(forge.honest_token(ec_key("other"), OTHER))
    found = verify_request(keys(), called, audience=CALLEE, clock=lambda: NOW)
    assert found.error is None
    assert " 3 ✓ the caller may call here; its key, by kid (any service, no --allow)" in found.lines(MARKS)
    assert "10 ✓ scope (none needed, no --scope)" in found.lines(MARKS)


# ---- events and transaction tokens

Said = Mapping[str, Any]
REFUSED_EVENTS: Mapping[str, tuple[int, str, Mapping[str, Any], Said]] = {
    "no token": (1, "malformed_token", {}, {"token": "a.b"}),
    "a request token": (2, "wrong_type", {}, {"token": token()}),
    "a claim is missing": (2, "malformed_token", {"event_id": ABSENT}, {}),
    "an actor, and not the registry": (3, "malformed_token", {"act": {"sub": OTHER}}, {}),
    "another publisher": (3, "caller_not_allowed", {}, {"allow": {"billing": frozenset((SCOPE,))}}),
    "in another name": (5, "wrong_issuer", {"iss": OTHER}, {}),
    "another audience": (6, "wrong_audience", {"aud": "others"}, {}),
    "expired": (7, "expired", {"iat": NOW - 99, "exp": NOW - 60}, {}),
    "another topic": (8, "wrong_topic", {}, {"topic": "OrderCancelled"}),
    "another payload": (8, "wrong_payload", {}, {"payload": b"{}"}),
    "another event": (8, "wrong_event", {}, {"event_id": "e-2"}),
    "another transaction": (8, "wrong_transaction", {}, {"transaction_id": "t-2"}),
    "another scope": (10, "insufficient_scope", {}, {"scope": "trigger_payment"}),
    "a scope that nothing derives": (
        10,
        "insufficient_scope",
        {"rctx": {"iss": "https://login.example.com", "jti": "u-1", DERIVED_FROM: "orders:write"}},
        {},
    ),
}


def event_report(changes: Mapping[str, Any], said: Said, source: KeySource | None = None) -> Report:
    signed = forge.forge(event_header(EVENT_KEY), event_claims(**changes), EVENT_KEY.sign)
    policy = {"allow": said.get("allow"), "scope": said.get("scope")}
    parts = {name: value for name, value in said.items() if name not in policy}
    message = Message(**{"token": signed, "payload": PAYLOAD, "topic": TOPIC, **parts})
    return verify_event(source or keys(), message, audience=AUDIENCE, **policy, clock=lambda: NOW)


@pytest.mark.parametrize(("step", "code", "changes", "said"), REFUSED_EVENTS.values(), ids=REFUSED_EVENTS)
def test_a_refused_event_names_the_step_that_refuses_it(
    step: int, code: str, changes: Mapping[str, Any], said: Said
) -> None:
    found = event_report(changes, said)
    check_refusal(found, step, code)
    assert bool(found.differences) == (step == 8)


def test_settings_that_an_event_needs_are_missed_at_step_10() -> None:
    class Unreachable(Keys):
        def settings(self) -> DomainSettings:
            raise TrustUnavailable("the registry does not answer")

    known = Unreachable()
    known.add(CALLER, EVENT_KEY)
    _, _, changes, said = REFUSED_EVENTS["a scope that nothing derives"]
    check_refusal(event_report(changes, said, known), 10, "trust_unavailable")


def test_all_steps_of_an_honest_event_hold() -> None:
    found = event_report({}, {"event_id": "e-1", "transaction_id": "t-1", "scope": SCOPE})
    assert found.error is None
    untried = [number for number, _, result in found.results() if result is Result.NOT_TRIED]
    assert untried == [9, 11]
    assert (found.proven["publisher"], found.proven["user"], found.proven["event"]) == (CALLER, "ada", "e-1")


REFUSED_TRANSACTIONS: Mapping[str, tuple[int, str, Mapping[str, Any], Mapping[str, Any]]] = {
    "a claim too many": (2, "malformed_token", {}, {"role": "admin"}),
    "another typ": (2, "wrong_type", {"typ": EVENT_TYP}, {}),
    "a kid that is none": (2, "malformed_token", {"kid": "key-1"}, {}),
    "no minter": (3, "bad_transaction_token", {"kid": forge.kid_of(CALLER, ec_key("edge"))}, {}),
    "an unknown key": (3, "unknown_key", {"kid": forge.kid_of(EDGE, STRANGE_KEY)}, {}),
    "another alg": (4, "bad_signature", {"alg": "RS256"}, {}),
    "in another name": (5, "wrong_issuer", {}, {"iss": CALLER}),
    "another domain": (6, "wrong_audience", {}, {"aud": "other.internal"}),
    "expired": (7, "expired", {}, {"iat": NOW - 99, "exp": NOW - 60}),
    "a scope that nothing derives": (
        10,
        "bad_transaction_token",
        {},
        {"scope": "a", "rctx": {"iss": "https://login.example.com", DERIVED_FROM: "b"}},
    ),
}


@pytest.mark.parametrize(("step", "code", "head", "changes"), REFUSED_TRANSACTIONS.values(), ids=REFUSED_TRANSACTIONS)
def test_a_refused_transaction_token_names_the_step_that_refuses_it(
    step: int, code: str, head: Mapping[str, Any], changes: Mapping[str, Any]
) -> None:
    edge = ec_key("edge")
    header = forge.header(edge, EDGE, **{"typ": TRANSACTION_TYP, **head})
    signed = forge.forge(header, transaction_claims(**changes), edge.sign)
    check_refusal(verify_transaction(keys(), signed, clock=lambda: NOW), step, code)


def test_all_steps_of_an_honest_transaction_token_hold() -> None:
    found = verify_transaction(keys(), MINTED, clock=lambda: NOW)
    assert found.error is None
    assert (found.proven["minter"], found.proven["scopes"]) == (EDGE, "orders:read orders:write")
    check_refusal(verify_transaction(keys(), "a.b", clock=lambda: NOW), 1, "malformed_token")


# ---- documents


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry("acme.internal") as registry:
        registry.identity("client-service")
        yield registry


Forged = Callable[[MemoryRegistry], str]


def key_set(registry: MemoryRegistry, **changes: Any) -> KeySetDocument:
    return replace(registry.jwk_set("client-service"), **changes)


def of_another_issuer(registry: MemoryRegistry) -> str:
    key, claims = registry.signing_key, key_set(registry).claims()
    kid = make_kid(registry_id(registry.domain), key.public.thumbprint)
    header = {"alg": key.public.alg, "kid": kid, "typ": KeySetDocument.TYP}
    return forge.forge(header, {**claims, "iss": registry_id("other.internal")}, key.sign)


def of_a_longer_life(registry: MemoryRegistry) -> str:
    document = key_set(registry)
    [key] = document.keys
    return registry.sign(replace(document, keys=(replace(key, active_until=key.active_until + 1),)))


REFUSED_DOCUMENTS: Mapping[str, tuple[int, str, Forged]] = {
    "not three segments": (1, "document_malformed", lambda _: "a.b"),
    "another kind": (1, "document_wrong_type", lambda registry: registry.sign(registry.changes(0))),
    "another signer": (
        2,
        "document_unknown_signer",
        lambda registry: sign_document(key_set(registry), KeyPair.generate("ES256")),
    ),
    "altered": (
        2,
        "document_bad_signature",
        lambda registry: (
            registry.sign(key_set(registry)).rpartition(".")[0]
            + "."
            + registry.sign(registry.changes(0)).rpartition(".")[2]
        ),
    ),
    "another registry": (3, "document_wrong_issuer", of_another_issuer),
    "expired": (
        4,
        "document_expired",
        lambda registry: registry.sign(key_set(registry, issued_at=NOW - 10**9, expires_at=NOW - 10**9 + 60)),
    ),
    "another service": (
        5,
        "document_wrong_subject",
        lambda registry: registry.sign(key_set(registry, subject="acme.internal/billing", keys=())),
    ),
    "no checkpoint": (
        6,
        "document_bad_checkpoint",
        lambda registry: registry.sign(key_set(registry, checkpoint="none\n")),
    ),
    "a longer life than the ledger says": (6, "document_not_in_ledger", of_a_longer_life),
}


@pytest.mark.parametrize(("step", "code", "forged"), REFUSED_DOCUMENTS.values(), ids=REFUSED_DOCUMENTS)
def test_a_refused_document_names_the_check_that_refuses_it(
    registry: MemoryRegistry, step: int, code: str, forged: Forged
) -> None:
    found = verify_document(registry.trust_store(), forged(registry), KeySetDocument.TYP, "client-service")
    check_refusal(found, step, code)


def test_every_kind_of_document_is_verified(registry: MemoryRegistry) -> None:
    store = registry.trust_store()
    [thumbprint] = registry.keys
    registry.keys_in_set = 0
    documents = (
        registry.key_set_part("client-service", part_of(thumbprint)),
        registry.jwk_set("client-service"),
        registry.statement(f"{CALLER}/{thumbprint}"),
        registry.policy_document("client-service"),
        registry.domain_document(),
        registry.changes(0),
        registry.current_services(0),
    )
    for document in documents:
        found = verify_document(store, registry.sign(document), document.TYP)
        assert found.error is None, document.TYP
        assert found.proven["root"] == registry.pin
    [five] = {result for number, _, result in found.results() if number == 5}
    assert five is Result.HOLDS, "the list of changes is about the domain"


def test_the_roots_document_is_verified_against_the_pin(registry: MemoryRegistry) -> None:
    store = registry.trust_store()
    ours = registry.call("GET", "/.well-known/peerseal-registry").body.decode()
    assert verify_document(store, ours, RegistryKeys.TYP).error is None
    with MemoryRegistry("acme.internal") as impostor:
        theirs = impostor.call("GET", "/.well-known/peerseal-registry").body.decode()
    check_refusal(verify_document(store, theirs, RegistryKeys.TYP), 2, "document_wrong_root")


def test_a_ledger_that_cannot_be_compared_leaves_a_document_undecided(registry: MemoryRegistry) -> None:
    store = registry.trust_store()
    assert verify_document(store, registry.sign(key_set(registry)), KeySetDocument.TYP).error is None
    registry.set_policy("client-service", {})
    later = registry.sign(registry.policy_document("client-service"))
    registry.down = True
    found = verify_document(store, later, PolicyDocument.TYP)
    assert found.unreachable
    assert found.refused_at == 6


# ---- the tables


REFUSALS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, TokenError | Forbidden) and cls.step
]


def test_each_code_names_the_first_step_of_the_protocol_page_that_raises_it() -> None:
    page = re.sub(r"(?ms)^## Response token$.*?^## ", "## ", (ROOT / "docs/protocol.md").read_text())
    rows = re.findall(r"^\| (\d+) \| .* \| (`[a-z_`, ]+`) \|$", page, re.MULTILINE)
    first = dict[str, int]()
    for step, codes in rows:
        for code in re.findall(r"[a-z_]+", codes):
            first.setdefault(code, int(step))
    assert {int(step) for step, _ in rows} == set(range(1, 12))
    steps = {cls.code: cls.step for cls in (*REFUSALS, TrustUnavailable, SplitViewFound)}
    assert {code: step for code, step in steps.items() if code in first} == first
    others = {code: step for code, step in steps.items() if code not in first}
    assert others == {
        "missing_token": 1,
        **dict.fromkeys(("wrong_event", "wrong_transaction", "wrong_topic", "wrong_payload"), 8),
    }


@pytest.mark.parametrize(("kind", "module"), [(REQUEST, request_steps), (EVENT, event_steps)])
def test_the_command_shows_the_steps_of_the_step_table(kind: Any, module: Any) -> None:
    table = {int(number) for number in re.findall(r"^ {4} ?(\d{1,2})  \S", module.__doc__, re.MULTILINE)}
    assert table | {number for number in kind.untried if number != 11 or kind is EVENT} == kind.titles.keys()
    assert kind.titles.keys() == TRANSACTION.titles.keys() == set(range(1, 12))


def test_every_refusal_of_a_token_has_a_remedy_and_every_code_of_a_document_a_step() -> None:
    assert {cls.code for cls in (*REFUSALS, TrustUnavailable, SplitViewFound)} <= REMEDIES.keys()
    assert len(REFUSALS) == 20
    named = set(re.findall(r"``(document_[a-z_]+)``", DocumentRefused.__doc__ or ""))
    assert named <= DOCUMENT.codes.keys()


# ---- the command


@pytest.fixture
def environ(registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment that names the registry, and no service."""
    monkeypatch.delenv("PEERSEAL_SERVICE", raising=False)
    with served(registry) as url:
        monkeypatch.setenv("PEERSEAL_REGISTRY_URL", url)
        monkeypatch.setenv("PEERSEAL_REGISTRY_PIN", registry.pin)
        yield monkeypatch


@pytest.fixture
def signed(registry: MemoryRegistry) -> str:
    """A token for the request of `HONEST`."""
    return registry.identity("billing").sign_request("callee", method="POST", target="/orders?a=1", body=b"{}")


HONEST = ("--audience", "callee", "--method", "POST", "--target", "/orders?a=1", "--data", "{}")


def test_a_token_that_was_verified_here_is_still_good_at_the_service(
    registry: MemoryRegistry, environ: pytest.MonkeyPatch, signed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--allow", "billing=orders:write,orders:read", "--scope", "orders:write")
    assert main(["verify", signed, *HONEST, *options]) == 0
    assert main(["verify", f"Authorization: Bearer {signed}", *HONEST]) == 0
    assert "11 – replay (not tried, the token is left unused)" in capsys.readouterr().out
    service = Verifier(registry.trust_store(), audience="callee", allow={"billing": {"orders:write"}})
    assert service.verify(signed, method="POST", target="/orders?a=1", body=b"{}").service == "billing"


@pytest.mark.parametrize("given", ["file", "-"])
def test_a_raw_request_is_verified_whole(
    environ: pytest.MonkeyPatch, signed: str, given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = f"POST /orders?a=1 HTTP/1.1\r\nAuthorization: Bearer {signed}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    (tmp_path / "request").write_bytes(raw)
    environ.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    file = str(tmp_path / "request") if given == "file" else "-"
    assert main(["verify", "--http", file, "--audience", "callee"]) == 0
    assert capsys.readouterr().out.startswith("request token, VERIFIED\n")
    environ.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert main(["verify", "--http", file, "--audience", "another"]) == 1
    assert " 6 ✗ aud is this service" in capsys.readouterr().out


def test_json_has_every_step_the_code_and_what_to_do(
    environ: pytest.MonkeyPatch, signed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--json", signed, *HONEST[:-1], "[]"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["verified"], shown["code"]) == ("request token", False, "wrong_binding")
    assert [step["result"] for step in shown["steps"]][6:] == ["holds", "refused", *["not reached"] * 2, "not tried"]
    assert shown["differences"]["body"]["received"].endswith("(2 bytes)")
    assert shown["remedy"]
    assert main(["verify", "--json", signed, *HONEST]) == 0
    assert json.loads(capsys.readouterr().out)["proven"]["caller"] == "acme.internal/billing"


def test_an_event_is_verified_with_its_topic_and_payload(
    registry: MemoryRegistry, environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = registry.identity("billing").sign_event(
        b"{}", topic="T", audience="jobs", scope="s", event_id="e", transaction_id="t", subject="ada"
    )
    event = ["verify", headers["authorization"], "--audience", "jobs", "--topic", "T", "--event-id", "e"]
    assert main([*event, "--data", "{}"]) == 0
    assert main([*event, "--data", "[]"]) == 1
    assert main([*event, "--data", "{}", "--allow", "billing=another"]) == 1
    assert capsys.readouterr().out.count("event token, ") == 3


def test_a_document_is_verified_under_the_pin_of_the_environment(
    registry: MemoryRegistry, environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = registry.sign(registry.jwk_set("client-service"))
    assert main(["verify", document]) == 0
    assert " 5 – sub (not tried, no --subject)" in capsys.readouterr().out
    assert main(["verify", document, "--subject", "client-service"]) == 0
    assert main(["verify", document, "--subject", "billing"]) == 1
    environ.setenv("PEERSEAL_REGISTRY_PIN", KeyPair.generate("ES256").public.thumbprint)
    assert main(["verify", document]) == 3
    assert "the pinned one" in capsys.readouterr().out.replace("\n     ", " ")


def test_the_settings_of_a_service_name_the_audience_and_the_pin(
    registry: MemoryRegistry, environ: pytest.MonkeyPatch, signed: str, tmp_path: Path
) -> None:
    environ.delenv("PEERSEAL_REGISTRY_PIN")
    environ.setenv("PEERSEAL_SERVICE", "callee")
    environ.setenv("PEERSEAL_KEY_DIR", str(tmp_path))
    environ.setenv("PEERSEAL_JOIN_TOKEN", registry.join_token("callee"))
    keys_before = len(registry.keys)
    assert main(["verify", signed, *HONEST[2:]]) == 0
    assert len(registry.keys) == keys_before, "verifying registers nothing"


def test_a_restricted_policy_is_read_with_the_key_of_the_service(
    registry: MemoryRegistry, environ: pytest.MonkeyPatch, signed: str, tmp_path: Path
) -> None:
    registry.identity("callee", key_dir=tmp_path)
    registry.set_policy("callee", {"client-service": []}, restricted=True)
    assert main(["verify", signed, *HONEST]) == 3, "a reader without keys may not read it"
    environ.setenv("PEERSEAL_SERVICE", "callee")
    environ.setenv("PEERSEAL_KEY_DIR", str(tmp_path))
    assert main(["verify", signed, *HONEST]) == 1, "the policy does not name the caller"


def test_a_registry_that_does_not_answer_is_exit_code_3(
    registry: MemoryRegistry, environ: pytest.MonkeyPatch, signed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.down = True
    assert main(["verify", signed, *HONEST]) == 3
    assert capsys.readouterr().out.startswith("request token, UNDECIDED: trust_unavailable\n")


def test_a_terminal_without_the_marks_gets_words(environ: pytest.MonkeyPatch, signed: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    environ.setattr(sys, "stdout", out)
    assert main(["verify", signed, *HONEST[:-1], "[]"]) == 1
    out.seek(0)
    lines = out.read().splitlines()
    assert all(line.isascii() and "\\" not in line and len(line) <= 80 for line in lines)
    assert {line[:5] for line in lines} >= {f" 1 {ASCII_MARKS[Result.HOLDS]}", " 8 NO", " 9 --"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either a token or --http"),
        (["a.b.c", "--http", "file"], "either a token or --http"),
        (["--http", "/dev/null", "--method", "GET"], "leave out --method"),
        (["--http", "/dev/null"], "no empty line"),
        (["a.b.c", "--method", "GET"], "--method and --target"),
        (["a.b.c", "--method", "GET", "--target", "/", "--topic", "T"], "for a request or for an event"),
        (["a.b.c", "--method", "GET", "--target", "/"], "--audience is missing"),
        (["a.b.c", "--method", "GET", "--target", "/", "--audience", "No_Name"], "No_Name"),
        (["a.b.c", "--method", "GET", "--target", "/", "--audience", "a", "--header", "secret"], "header line 1"),
        (["a.b.c", "--method", "GET", "--target", "/", "--audience", "a", "--allow", 'b="'], "no scope"),
        (["a.b.c", "--topic", "T"], "needs --topic, and --audience"),
        (["a.b.c", "--topic", "T", "--audience", "a/b"], "--audience"),
        ([token()], "needs --method and --target"),
        ([forge.forge(event_header(KEY), event_claims(), KEY.sign)], "needs --topic"),
        ([forge.forge({"typ": ["x"]}, {}, b"")], "JWS of another kind"),
        ([forge.forge({"typ": "peerseal-proof+jwt"}, {}, b"")], "proof of possession"),
        (["not-a-token"], "1 segments"),
        *(
            ([forge.forge({"typ": kind}, {}, b""), "--subject", "billing"], f"about a service, not for a {name}")
            for kind, name in (
                (RegistryKeys.TYP, "registry keys document"),
                (DomainDocument.TYP, "domain document"),
                (Changes.TYP, "list of changes"),
                (CurrentServices.TYP, "list of current services"),
                (HISTORY_TYP, "history statement"),
                (TRANSACTION_TYP, "transaction token"),
            )
        ),
        ([token(), *HONEST, "--subject", "billing"], "about a service, not for a request token"),
        (["a.b.c", "--topic", "T", "--audience", "a", "--subject", "b"], "about a service, not for an event token"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_missing(
    environ: pytest.MonkeyPatch, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "secret" not in shown


def test_the_help_has_two_examples_and_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    shown = capsys.readouterr().out
    assert shown.count("\n  peerseal verify ") == 2
    assert max(map(len, shown.splitlines())) <= 80


def test_without_a_registry_nothing_can_be_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PEERSEAL_REGISTRY_URL", raising=False)
    assert main(["verify", token(), *HONEST]) == 2
    assert "PEERSEAL_REGISTRY_URL is not set" in capsys.readouterr().err
