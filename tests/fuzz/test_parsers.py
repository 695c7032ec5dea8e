"""Every parser of the SDK against a minute of generated input: no error but ours."""

import inspect
import json
import pkgutil
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import import_module
from random import Random
from typing import Any

import pytest

from peerseal import Event, EventVerifier, Peer, User, UserVerifier, errors
from peerseal.commands.raw_request import RawRequest
from peerseal.commands.step_report import MARKS
from peerseal.commands.verification import verify_request as verify_raw
from peerseal.errors import PeersealError
from peerseal.protocol import encoding, issuer_trust, join, jose, keys, names, policies, trace_context
from peerseal.protocol.documents import (
    changes,
    current,
    domain,
    federation,
    frame,
    history_statement,
    key_set,
    policy,
    registry_keys,
    statement,
)
from peerseal.protocol.ledger import checkpoint, cosignature, entries, evidence, quorum, split_view
from peerseal.protocol.tokens import assertion as assertions
from peerseal.protocol.tokens import claims as shared
from peerseal.protocol.tokens import introspection, oidc
from peerseal.protocol.tokens import proof as proofs
from peerseal.protocol.tokens import request as tokens
from peerseal.protocol.tokens import response as responses
from peerseal.protocol.tokens import transaction as transactions
from peerseal.testing import MemoryRegistry
from peerseal.verify.target import check_external_prefix, routed_target
from peerseal.verify.transaction import read_transaction
from tests.attacks import forge
from tests.fuzz.generated import arbitrary, bytes_like, json_like, object_like, resigned, rounds, text_like
from tests.support.federation import PARTNER, federation_document

NOW = forge.NOW
REGISTRY_ID = names.registry_id(forge.DOMAIN)
KEY = forge.ec_key("caller")
KID = forge.kid_of(forge.CALLER, KEY)


@dataclass(frozen=True)
class Parser:
    """What is called, an input that it accepts, and how that is spoilt."""

    name: str
    call: Callable[[Any], Any]
    original: Any
    spoil: Callable[[Random, Any], Any]

    def run(self, random: Random) -> str:
        """``accepted``, or the code of our error. Raises Broken for any other error."""
        given = self.spoil(random, self.original)
        try:
            self.call(given)
        except PeersealError as error:
            return error.code
        except Exception as error:
            trace = "".join(traceback.format_exception(error)[-2:])
            raise Broken(f"{self.name}({described(given)}) raises {error!r:.200}\n{trace}") from error
        return "accepted"


class Broken(Exception):
    """A parser raised an error that is not ours."""


def described(given: Any) -> str:
    try:
        return f"{given!r:.300}"
    except ValueError:
        return f"a {type(given).__name__} that cannot be printed"


def text(call: Callable[[str], Any], original: str) -> Parser:
    return Parser(_name(call), call, original, text_like)


def octets(call: Callable[[bytes], Any], original: bytes) -> Parser:
    return Parser(_name(call), call, original, bytes_like)


def value(call: Callable[[Any], Any], original: Any) -> Parser:
    return Parser(_name(call), call, original, json_like)


def members(call: Callable[[dict[str, Any]], Any], original: dict[str, Any]) -> Parser:
    return Parser(_name(call), call, original, object_like)


def of(name: str, parser: Parser) -> Parser:
    """The parser under the name of what it calls, where a lambda says how."""
    return replace(parser, name=name)


def _name(call: Callable[..., Any]) -> str:
    return f"{call.__module__}.{call.__qualname__}"


def signed(key: keys.KeyPair) -> Callable[[Random, str], str]:
    """Spoils a token, sometimes with the signature of a signer gone bad."""

    def spoil(random: Random, original: str) -> str:
        return resigned(random, original, key.sign) if random.random() < 0.5 else text_like(random, original)

    return spoil


def a_document(kind: type[Any]) -> str:
    """A signed document of that kind, as a registry signs it."""
    with MemoryRegistry(forge.DOMAIN, clock=lambda: NOW) as registry:
        if kind is federation.FederationDocument:
            return registry.sign(federation_document(registry, PARTNER))
        kid = registry.identity("client-service").credentials.key_id
        registry.keys_in_set = 0 if kind is key_set.KeySetPart else registry.keys_in_set
        part = key_set.part_of(names.split_kid(kid)[1])
        path = {
            key_set.KeySetDocument: "/v1/services/client-service/jwks.jwt",
            key_set.KeySetPart: "/v1/services/client-service/jwks/{part}.jwt",
            changes.Changes: "/v1/changes?since=0",
            current.CurrentServices: "/v1/current/0.jwt",
            policy.PolicyDocument: "/v1/services/client-service/policy.jwt",
            domain.DomainDocument: "/v1/domain.jwt",
            registry_keys.RegistryKeys: "/.well-known/peerseal-registry",
        }[kind]
        return registry.call("GET", path.format(part=part)).body.decode()


def traced(value: Any) -> object:
    """The ids in the value; it is refused where the parser finds none."""
    found = trace_context.parse_traceparent(value)
    if found is None:
        raise errors.MalformedToken("no trace")
    return found


def payload_of(jws: str) -> Any:
    return json.loads(encoding.b64url_decode(jws.split(".")[1]))


def protocol_parsers() -> list[Parser]:
    """Those of `peerseal.protocol`, each with input of the type that it takes."""
    request = forge.honest_token(KEY)
    public, jwk = KEY.public, {**KEY.public.jwk, "alg": KEY.public.alg}
    proof = proofs.sign_proof(KEY, issuer=forge.CALLER, audience=REGISTRY_ID, now=NOW)
    claims = forge.claims()
    assertion = forge.forge(
        {"alg": "ES256", "kid": KID, "typ": "client-authentication+jwt"},
        assertions.assertion_claims(forge.CALLER, REGISTRY_ID, NOW),
        KEY.sign,
    )
    entry = entries.Entry(1, NOW, "key_admitted", "a", KID, {"self": "a"}, "a.b.c", {"x": [1]})
    note_key = named_note_key()
    note = checkpoint.sign_checkpoint(checkpoint.Checkpoint(forge.DOMAIN, 3, b"r" * 32), note_key)
    ledger_jwk = checkpoint.ledger_jwk(note_key.public_key())
    hashed = responses.request_hash(request)
    answer = responses.ResponseToken(forge.CALLEE, forge.CALLER, forge.NOW, hashed, 200, encoding.DIGEST_OF_NOTHING)
    log_key = str(cosignature.NoteKey.of(forge.DOMAIN, cosignature.LOG_KEY, note_key.public_key()))
    signatures = note.partition("\n\n")[2]
    transaction = transactions.TransactionToken(
        *(forge.CALLER, forge.DOMAIN, "ada", "t-1", frozenset({"a"}), forge.CALLER, NOW, NOW + 60), {}, {}
    )
    event = event_claims()
    jwks = {"keys": [{**jwk, "kid": "k", "use": "sig"}]}
    signing = {names.make_kid(REGISTRY_ID, public.thumbprint): public}
    return [
        text(encoding.b64url_decode, "aGVsbG8"),
        octets(encoding.strict_json, b'{"a": [1, 2.5, "x"]}'),
        octets(encoding.strict_json_object, b'{"a": [1, 2.5, "x"]}'),
        text(names.check_trust_domain, forge.DOMAIN),
        text(names.check_service, "billing.invoices"),
        text(names.check_name_or_id, forge.CALLER),
        text(names.check_thumbprint, KEY.public.thumbprint),
        text(names.split_service_id, forge.CALLER),
        text(names.split_kid, KID),
        of(
            "peerseal.protocol.trace_context.parse_traceparent",
            Parser("", traced, f"00-{'a' * 32}-{'b' * 16}-01", text_like),
        ),
        text(join.JoinToken.parse, join.JoinToken.generate("A" * 43).encode()),
        octets(jose.parse_header, request.partition(".")[0].encode()),
        text(jose.split_segments, request),
        text(jose.parse, request),
        members(keys.PublicKey.from_jwk, jwk),
        octets(keys.PublicKey.from_spki, public.spki),
        octets(keys.KeyPair.from_pem, KEY.to_pem()),
        octets(entries.Entry.decode, entry.encode()),
        of(
            "peerseal.protocol.tokens.proof.Proof.read",
            Parser(
                "",
                lambda jws: proofs.Proof.read(jws, issuer=forge.CALLER, audience=REGISTRY_ID, now=NOW),
                proof,
                signed(KEY),
            ),
        ),
        members(tokens.check_request_claims, claims),
        members(responses.check_response_claims, answer.claims()),
        text(shared.check_jti, forge.JTI),
        members(events_module().check_event_claims, event),
        octets(transactions.TransactionToken.read, encoding.canonical_json(transaction.claims())),
        text(transactions.check_user, "ada"),
        text(assertions.ClientAssertion.parse, assertion),
        octets(evidence.read_evidence, encoding.canonical_json({"proof": proof})),
        of("peerseal.protocol.ledger.evidence.past_proof", Parser("", past_proof, proof, signed(KEY))),
        of(
            "peerseal.protocol.ledger.evidence.past_request",
            Parser(
                "",
                lambda token: evidence.past_request(
                    token, key=public, kid=KID, registry=REGISTRY_ID, method=forge.METHOD
                ),
                request,
                signed(KEY),
            ),
        ),
        members(checkpoint.ledger_public_key, ledger_jwk),
        of(
            "peerseal.protocol.ledger.checkpoint.verify_checkpoint",
            text(lambda given: checkpoint.verify_checkpoint(given, forge.DOMAIN, [ledger_jwk]), note),
        ),
        text(checkpoint.parse_checkpoint, note),
        text(cosignature.Note.parse, note),
        of(
            "peerseal.protocol.ledger.cosignature.read_signature_lines",
            text(lambda given: list(cosignature.read_signature_lines(given)), signatures),
        ),
        of(
            "peerseal.protocol.ledger.cosignature.NoteKey.parse",
            text(lambda given: cosignature.NoteKey.parse(given, cosignature.LOG_KEY), log_key),
        ),
        text(split_view.decode_cp, encoding.b64url(note.encode())),
        value(split_view.Fork.from_json, {"root": "A" * 43, "path": checkpoint.encode_proof((b"a" * 32,))}),
        value(split_view.Sighting.from_json, {"note": 0, "from": forge.CALLER, "at": NOW}),
        octets(split_view.Evidence.decode, split_view.Evidence(forge.DOMAIN, (note, note)).encode()),
        octets(checkpoint.decode_bundle, checkpoint.encode_bundle([b"one", b"two"])),
        value(checkpoint.decode_proof, checkpoint.encode_proof((b"a" * 32, b"b" * 32))),
        text(oidc.UnverifiedToken.parse, user_token()),
        octets(oidc.read_key_set, encoding.canonical_json(jwks)),
        text(introspection.check_opaque, "opaque-token"),
        octets(introspection.unsigned_answer, encoding.canonical_json(INTROSPECTED)),
        octets(introspection.parse_signed, signed_answer().encode()),
        of(
            "peerseal.protocol.tokens.introspection.signed_answer",
            Parser("", believed_answer, signed_answer(), signed(KEY)),
        ),
        of("peerseal.protocol.tokens.introspection.ActiveToken.read", members(active_token, INTROSPECTED)),
        of(
            "peerseal.protocol.tokens.oidc.read_discovery",
            octets(
                lambda body: oidc.read_discovery(body, issuer="https://i"),
                b'{"issuer": "https://i", "jwks_uri": "https://i/k"}',
            ),
        ),
        value(policies.CallPolicy.from_json, {"allow": {forge.CALLER: ["a", "b"]}, "restricted": True}),
        value(policies.UserIssuer.from_json, {"issuer": "https://i", "audience": "edge", "jwks_url": "https://i/k"}),
        value(federation.FederatedDomain.from_json, PARTNER),
        value(
            federation.FederationEntry.from_json,
            {"index": 1, "time": NOW, "by": {"operator": "o_1"}, "evidence": None, "proof": ["A" * 43]},
        ),
        of(
            "peerseal.protocol.documents.federation.Federation.from_json",
            value(lambda given: federation.Federation.from_json(given, forge.DOMAIN), {"domains": [PARTNER]}),
        ),
        value(policies.DomainSettings.from_json, {"minters": [forge.CALLER], "issuers": [], "exchange": {}}),
        value(policies.Derivation.from_json, {"minter": forge.CALLER, "from": "a", "to": ["b"]}),
        value(issuer_trust.canonical_jwks, jwks),
        value(issuer_trust.canonical_ca, "-----BEGIN CERTIFICATE-----"),
        value(
            policies.AccessGrant.from_json,
            {"audience": "https://kafka", "services": [forge.CALLER], "scopes": ["a"], "lifetime": 300},
        ),
        value(policies.check_resource, "https://kafka"),
        value(policies.check_url_in_settings, "https://issuer.example/i"),
        value(names.check_audience, "jobs.example.com"),
        value(policies.scopes_from, ["a", "b"]),
        value(names.check_scope, "orders:write"),
        text(check_external_prefix, "/api"),
        of(
            "peerseal.verify.target.routed_target",
            Parser("", lambda uri: routed_target(uri, "/api", "/a b"), "/api/a%20b?x=1", text_like),
        ),
        *document_parsers(signing),
        *history_parsers(),
    ]


def history_parsers() -> list[Parser]:
    """Statements of the root about lost entries."""
    common, lost, new = (history_statement.Head(size, bytes(32)) for size in (3, 7, 5))
    statement = history_statement.HistoryStatement(forge.DOMAIN, NOW, common, lost, new)
    jws = history_statement.sign_history(statement, KEY)
    return [
        octets(history_statement.decode_statements, history_statement.encode_statements([jws])),
        value(history_statement.Head.from_json, lost.to_json()),
        members(history_statement.HistoryStatement.from_claims, statement.claims()),
        of(
            "peerseal.protocol.documents.history_statement.read_history",
            Parser(
                "",
                lambda given: history_statement.read_history(given, KEY.public, domain=forge.DOMAIN, now=NOW),
                jws,
                signed(KEY),
            ),
        ),
    ]


def payload(kind: type[frame.Frame], claims: dict[str, Any]) -> Parser:
    """All claims of a document; only the kind's own are read in the kind's own method."""
    return of(f"{kind.__module__}.{kind.__name__}.read_members", members(kind.from_claims, claims))


def parsing(kind: type[frame.Frame], jws: str) -> Parser:
    return Parser("", lambda given: frame.UnverifiedDocument.parse(kind, given), jws, text_like)


def document_parsers(signing: dict[str, keys.PublicKey]) -> list[Parser]:
    """Documents as a mirror spoils them, and what a signed one says, as a registry gone bad says it."""
    parsers: list[Parser] = []
    kinds = (
        key_set.KeySetDocument,
        key_set.KeySetPart,
        changes.Changes,
        current.CurrentServices,
        policy.PolicyDocument,
        domain.DomainDocument,
        federation.FederationDocument,
    )
    for kind in kinds:
        jws = a_document(kind)
        parsers += [
            of(
                "peerseal.protocol.documents.frame.read_document",
                Parser("", reading(kind, signing), jws, signed(KEY)),
            ),
            of("peerseal.protocol.documents.frame.UnverifiedDocument.parse", parsing(kind, jws)),
            payload(kind, payload_of(jws)),
        ]
    keys_jws = a_document(registry_keys.RegistryKeys)
    witness = cosignature.NoteKey.of("witness.example", cosignature.WITNESS_KEY, named_note_key().public_key())
    witnessed = quorum.Quorum.of([str(witness)], 1).members()
    parsers += [
        of(
            "peerseal.protocol.documents.registry_keys.read_registry_keys",
            Parser("", lambda jws: registry_keys.read_registry_keys(jws, pin=None, now=NOW), keys_jws, signed(KEY)),
        ),
        payload(registry_keys.RegistryKeys, payload_of(keys_jws)),
        payload(registry_keys.RegistryKeys, {**payload_of(keys_jws), **witnessed}),
        members(quorum.Quorum.read, witnessed),
    ]
    listed = payload_of(a_document(key_set.KeySetDocument))["keys"][0]
    owner = names.split_kid(listed["kid"])[0]
    parsers += [
        of(
            "peerseal.protocol.documents.key_set.ListedKey.from_json",
            value(lambda jwk: key_set.ListedKey.from_json(jwk, owner), listed),
        ),
        value(key_set.PartName.from_json, {"seq": 2, "digest": "A" * 43}),
        of(
            "peerseal.protocol.documents.key_set.RevokedKey.from_json",
            value(
                lambda revoked: key_set.RevokedKey.from_json(revoked, owner),
                {"kid": listed["kid"], "revoked_at": NOW, "index": 1},
            ),
        ),
        members(key_set.admission_from, listed),
        payload(statement.KeyStatement, key_statement()),
    ]
    return parsers


def reading(kind: type[Any], signing: dict[str, keys.PublicKey]) -> Callable[[str], Any]:
    return lambda jws: frame.read_document(kind, jws, signing, now=NOW, domain=forge.DOMAIN)


def key_statement() -> Any:
    with MemoryRegistry(forge.DOMAIN, clock=lambda: NOW) as registry:
        identity = registry.identity("client-service")
        thumbprint = identity.credentials.key_id.rpartition("/")[2]
        return payload_of(registry.call("GET", f"/v1/services/client-service/keys/{thumbprint}.jwt").body.decode())


def past_proof(jws: str) -> Any:
    return evidence.past_proof(jws, kid=KID, registry=REGISTRY_ID)


def named_note_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def events_module() -> Any:
    return import_module("peerseal.protocol.tokens.event")


def event_claims() -> dict[str, Any]:
    hashed = events_module().payload_hash(b"payload")
    return {
        **{"iss": forge.CALLER, "sub": "ada", "aud": "jobs.example.com", "scope": "trigger_invoicing"},
        **{"event_id": "e-1", "transaction_id": "t-1", "topic": "OrderCreated", "event_payload_hash": hashed},
        **{"rctx": {}, "iat": NOW, "exp": NOW + 3600, "jti": forge.JTI},
    }


def event_token() -> str:
    return forge.forge({"alg": "ES256", "kid": KID, "typ": "peerseal-event+jwt"}, event_claims(), KEY.sign)


def user_token() -> str:
    claims = {"iss": "https://issuer.example", "sub": "ada", "aud": "edge", "iat": NOW, "exp": NOW + 600, "scope": "a"}
    return forge.forge({"alg": "ES256", "kid": "k", "typ": "JWT"}, claims, KEY.sign)


INTROSPECTED = {"active": True, "iss": "https://i", "aud": ["edge"], "sub": "ada", "exp": NOW + 60, "scope": "a b"}


def signed_answer() -> str:
    """An issuer's answer about an opaque token (RFC 9701)."""
    claims = {"iss": "https://i", "aud": "edge", "iat": NOW, "token_introspection": INTROSPECTED}
    return forge.forge({"alg": "ES256", "kid": "k", "typ": introspection.SIGNED_TYP}, claims, KEY.sign)


def believed_answer(token: str) -> dict[str, Any]:
    parsed = oidc.UnverifiedToken.parse(token, types=(introspection.SIGNED_TYP,))
    return introspection.signed_answer(parsed, KEY.public, issuer="https://i", readers={"edge"}, now=NOW)


def active_token(answer: dict[str, Any]) -> introspection.ActiveToken:
    return introspection.ActiveToken.read(answer, issuer="https://i", audience="edge", now=NOW)


def verify_request(token: Any = None, **changes: Any) -> Peer:
    given = {"method": forge.METHOD, "target": forge.TARGET, "body": forge.BODY, "headers": forge.HEADERS, **changes}
    return forge.Callee().verifier.verify(forge.honest_token(KEY) if token is None else token, **given)


def verify_event(payload: Any = b"payload", headers: Any = None, topic: Any = "OrderCreated", **more: Any) -> Event:
    verifier = EventVerifier(
        forge.Callee().keys,
        audience="jobs.example.com",
        allow={"client-service": {"trigger_invoicing"}},
        max_age=timedelta(days=1),
        clock=lambda: NOW,
    )
    given = {"authorization": f"Bearer {event_token()}"} if headers is None else headers
    return verifier.verify(payload, given, topic=topic, **more)


def verify_user(token: Any) -> User:
    return UserVerifier(forge.Keys(), clock=lambda: NOW).verify(token)


def verify_raw_request(raw: bytes) -> None:
    """What ``peerseal verify --http`` does, and all that it may print."""
    request = RawRequest.parse(raw)
    found = verify_raw(forge.Callee().keys, request, audience=forge.CALLEE, scope="a", clock=lambda: NOW)
    assert max(map(len, found.lines(MARKS))) <= 80
    json.dumps(found.to_json())
    if found.error is not None:
        raise found.error


def raw_request() -> bytes:
    lines = f"{forge.METHOD} {forge.TARGET} HTTP/1.1", f"Authorization: Bearer {forge.honest_token(KEY)}"
    more = "Content-Type: application/json", f"Content-Length: {len(forge.BODY)}"
    return "\r\n".join((*lines, *more, "", "")).encode() + forge.BODY


def public_functions() -> list[Parser]:
    """Those that an application calls with what a stranger sent: they answer for every type, as for every text."""
    bearer = f"Bearer {event_token()}"
    parsers = [
        Parser("Verifier.verify(token)", lambda given: forge.Callee().accepts(given), None, arbitrary),
        Parser(
            "Verifier.verify(token)", lambda given: forge.Callee().accepts(given), forge.honest_token(KEY), signed(KEY)
        ),
        Parser("EventVerifier.verify(headers)", lambda given: verify_event(headers=given), None, arbitrary),
        Parser(
            "EventVerifier.verify(headers)",
            lambda given: verify_event(headers={"Authorization": given}),
            bearer,
            lambda random, original: arbitrary(random) if random.random() < 0.3 else text_like(random, original),
        ),
        Parser("UserVerifier.verify", verify_user, None, arbitrary),
        Parser("UserVerifier.verify", verify_user, user_token(), signed(KEY)),
        octets(verify_raw_request, raw_request()),
        Parser("JoinToken.parse", join.JoinToken.parse, None, arbitrary),
        Parser(
            "read_transaction",
            lambda given: read_transaction(forge.Callee().keys, given, now=NOW, leeway=30),
            forge.honest_token(KEY, typ="txntoken+jwt"),
            signed(KEY),
        ),
    ]
    for name in ("method", "target", "body", "headers", "scope"):
        parsers.append(Parser(f"Verifier.verify({name}=)", argument(verify_request, name), None, arbitrary))
    for name in ("payload", "topic", "event_id", "transaction_id", "scope"):
        parsers.append(Parser(f"EventVerifier.verify({name}=)", argument(verify_event, name), None, arbitrary))
    return parsers


def argument(call: Callable[..., Any], name: str) -> Callable[[Any], Any]:
    return lambda given: call(**{name: given})


@pytest.mark.fuzz
@pytest.mark.timeout(900)
def test_every_parser_raises_nothing_but_errors_of_ours() -> None:
    parsers = [*protocol_parsers(), *public_functions()]
    outcomes: dict[str, Counter[str]] = {parser.name: Counter() for parser in parsers}
    broken: dict[str, str] = {}
    for random in rounds():
        for parser in parsers:
            try:
                outcomes[parser.name][parser.run(random)] += 1
            except Broken as error:
                broken.setdefault(parser.name, f"FUZZ_SEED={random.seed_text}: {error}")  # type: ignore[attr-defined]
    assert not broken, "\n".join(broken.values())
    calls = sum(counter.total() for counter in outcomes.values())
    print(f"\n{calls} calls of {len(outcomes)} parsers")
    never_refused = [name for name, counter in outcomes.items() if set(counter) == {"accepted"}]
    assert not never_refused, never_refused


PARSING = ("parse", "read_", "decode", "from_", "check_", "split", "claimed_", "past_", "spent_", "strict_", "b64url_d")
NOT_OF_UNTRUSTED_INPUT = {
    "peerseal.protocol.tokens.claims.check_times": "takes integers that were checked",
    "peerseal.protocol.ledger.merkle.check_inclusion": "takes hashes that `decode_proof` checked",
    "peerseal.protocol.ledger.merkle.check_consistency": "takes hashes that `decode_proof` checked",
    "peerseal.protocol.weak_keys.check_not_weak": "takes a key that was read",
    "peerseal.protocol.ledger.merkle.Frontier.decode": "reads the registry's own database",
    "peerseal.protocol.tokens.claims.check_parties": "takes texts that were checked",
    "peerseal.protocol.documents.frame.check_issued": "takes a document that was read",
    "peerseal.protocol.documents.frame.Document.from_claims": "is a protocol class without code",
    "peerseal.protocol.documents.frame.Frame.from_claims": "is called with every kind's `read_members`",
    "peerseal.protocol.documents.frame.Frame.read_members": "is a method without code",
}


def test_no_parser_of_the_protocol_is_left_out() -> None:
    package = import_module("peerseal.protocol")
    found = set()
    for module in pkgutil.walk_packages(package.__path__, "peerseal.protocol."):
        loaded = import_module(module.name)
        for name, member in vars(loaded).items():
            if inspect.isfunction(member) and member.__module__ == module.name:
                found.add(f"{module.name}.{name}")
            if inspect.isclass(member) and member.__module__ == module.name and not name.startswith("_"):
                methods = (name for name in vars(member) if inspect.ismethod(getattr(member, name)))
                found |= {f"{module.name}.{member.__qualname__}.{method}" for method in methods}
    parsing = {name for name in found if name.rpartition(".")[2].startswith(PARSING)}
    fuzzed = {parser.name for parser in protocol_parsers()}
    assert parsing - fuzzed - NOT_OF_UNTRUSTED_INPUT.keys() == set()
