"""What our own verifiers say to a case: "accepted" or the code, and the facts that they then know."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from peerseal import errors
from peerseal.errors import (
    DocumentRefused,
    PeersealError,
    RevokedKey,
    TrustUnavailable,
    UnknownKey,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol import jose
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.frame import Frame
from peerseal.protocol.documents.history_statement import Head, excused_by, read_history, signed_histories
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import (
    b64url,
    b64url_decode,
    canonical_json,
    digest_header,
    strict_json_object,
    target_digest,
)
from peerseal.protocol.join import JoinToken, join_mac_matches
from peerseal.protocol.keys import PublicCredentials, PublicKey
from peerseal.protocol.ledger.checkpoint import verify_checkpoint
from peerseal.protocol.ledger.cosignature import Note
from peerseal.protocol.ledger.merkle import check_consistency, check_inclusion, leaf_hash
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.ledger.split_view import Evidence
from peerseal.protocol.names import make_kid, split_kid, split_service_id
from peerseal.protocol.policies import ACCESS_LIFETIMES, CallPolicy, Derivation, DomainSettings, UserIssuer
from peerseal.protocol.problem_document import problem_of
from peerseal.protocol.tokens.assertion import ACCESS_TYP, ASSERTION_LIFETIME_CAP, ClientAssertion
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times, claim, time_claim
from peerseal.protocol.tokens.introspection import ActiveToken, parse_signed, signed_answer
from peerseal.protocol.tokens.proof import Proof
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.fetch import Answer, Fetcher
from peerseal.trust.beliefs import KnownService, TrustedKey, check_window
from peerseal.trust.disk.document_cache import NoCopies
from peerseal.trust.documents import DocumentReader
from peerseal.trust.key_set_parts import check_part
from peerseal.verify.event import EventVerifier
from peerseal.verify.replay.guards import MemoryReplayGuard
from peerseal.verify.request import Verifier, check_content
from peerseal.verify.response import ResponseHead, ResponseVerifier
from peerseal.verify.users import UserVerifier
from tests.vectors.world import CALLER, DOMAIN

Input = Mapping[str, Any]
Facts = Mapping[str, Any]


class Refused(Exception):
    """A refusal that has no error of its own in the SDK. ``code`` names it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def verdict(file: Mapping[str, Any], case: Mapping[str, Any]) -> tuple[str, Facts]:
    """The verdict on a case of a file, and the facts that an accepted one proves."""
    given = {"keys": file["keys"], **file["defaults"], **case["input"]}
    try:
        return "accepted", _JUDGES[file["kind"]](given)
    except (PeersealError, Refused) as error:
        return error.code, {}


class _Believed:
    """A `KeySource` of the keys that a file lists."""

    def __init__(self, given: Input) -> None:
        self.domain: str = given["domain"]
        self._listed = {key["kid"]: key for key in given["keys"]}
        policy = given.get("policy")
        self._policy = None if policy is None else CallPolicy.from_json(policy)
        self._settings = DomainSettings(
            frozenset(given.get("minters", ())),
            tuple(map(UserIssuer.from_json, given.get("issuers", ()))),
            derived_scopes=tuple(map(Derivation.from_json, given.get("derived_scopes", ()))),
        )

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        key = self._listed.get(kid)
        if key is None:
            raise UnknownKey("not listed")
        if key["state"] == "revoked":
            raise RevokedKey("revoked")
        if key["state"] == "unavailable":
            raise TrustUnavailable("the registry cannot be asked")
        public = PublicKey.from_jwk(key["jwk"], key["alg"])
        return TrustedKey(kid, split_kid(kid)[0], public, key["active_from"], key["active_until"])

    recorded_key = key

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        return self._policy

    def settings(self) -> DomainSettings:
        """See KeySource."""
        return self._settings


def _request(given: Input) -> Facts:
    guard = MemoryReplayGuard(clock=lambda: given["now"])
    for issuer, jti in given["seen"]:
        guard.claim(issuer, jti, given["now"] + 600)
    verifier = Verifier(
        _Believed(given),
        audience=given["audience"],
        allow=given["allow"],
        replay=guard,
        clock=lambda: float(given["now"]),
    )
    peer = verifier.verify(
        given["token"],
        method=given["method"],
        target=given["target"],
        body=b64url_decode(given["body"]),
        headers=given["headers"],
        scope=given["scope"],
    )
    return peer.claims


def _response(given: Input) -> Facts:
    verifier = ResponseVerifier(
        _Believed(given),
        caller=given["caller"],
        audience=given["audience"],
        headers=given["signed_headers"],
        clock=lambda: float(given["now"]),
    )
    token = [] if given["token"] is None else [(RESPONSE_HEADER, given["token"])]
    head = ResponseHead.of(given["status"], [*given["headers"].items(), *token])
    body = b64url_decode(given["body"])
    return verifier.verify(head, request_token=given["request_token"], body=body).claims


def _transaction(given: Input) -> Facts:
    _request(given)
    token = given["headers"]["txn-token"]
    return strict_json_object(b64url_decode(token.split(".")[1]))


def _event(given: Input) -> Facts:
    verifier = EventVerifier(
        _Believed(given),
        audience=given["audience"],
        allow=given["allow"],
        max_age=timedelta(seconds=given["max_age"]),
        unsafe_unbound_payload=given.get("unbound_payload", False),
        audit=False,
        clock=lambda: float(given["now"]),
    )
    named = {name: given[name] for name in ("topic", "event_id", "transaction_id", "scope")}
    headers = {"authorization": f"Bearer {given['token']}"}
    return verifier.verify(b64url_decode(given["payload"]), headers, **named).claims


def _proof(given: Input) -> Facts:
    read = Proof.read(given["proof"], issuer=given["issuer"], audience=given["audience"], now=given["now"])
    times = {"iat": read.issued_at, "exp": read.expires_at}
    return {"iss": read.issuer, "aud": read.audience, **times, "jti": read.jti, "jwk": read.public_key.jwk}


def _assertion(given: Input) -> Facts:
    asserted = ClientAssertion.parse(given["assertion"])
    key = _Believed(given).key(asserted.kid)
    key.public.check_signature(asserted.alg, asserted.signing_input, asserted.signature)
    check_parties(asserted.client, key.service_id, asserted.audience, given["audience"])
    times = asserted.issued_at, asserted.not_before, asserted.expires_at
    check_times(*times, now=given["now"], leeway=LEEWAY, cap=ASSERTION_LIFETIME_CAP)
    check_window(asserted.issued_at, key, LEEWAY)
    return strict_json_object(b64url_decode(given["assertion"].split(".")[1]))


def _access_token(given: Input) -> Facts:
    """As a resource server does, which has no part of Peerseal."""
    token = jose.parse(given["token"])
    if token.header.typ != ACCESS_TYP:
        raise WrongType("no access token")
    key = _Believed(given).key(token.header.kid)
    key.public.check_signature(token.header.alg, token.signing_input, token.signature)
    if key.service_id != given["issuer"]:
        raise WrongIssuer("no key of the registry")
    claims = strict_json_object(token.payload)
    issuer, audience, *_ = (claim(claims, name, str) for name in ("iss", "aud", "sub", "client_id", "scope", "jti"))
    issued_at, expires_at = time_claim(claims, "iat"), time_claim(claims, "exp")
    check_parties(issuer, given["issuer"], audience, given["audience"])
    check_times(issued_at, issued_at, expires_at, now=given["now"], leeway=LEEWAY, cap=ACCESS_LIFETIMES[-1])
    return claims


def _user_token(given: Input) -> Facts:
    trust = _Believed({"keys": [], "domain": DOMAIN, **given})
    user = UserVerifier(trust, clock=lambda: float(given["now"])).verify(given["token"])
    return {"iss": user.issuer, "sub": user.name, "jti": user.token_id, "scopes": sorted(user.scopes)}


def _introspection(given: Input) -> Facts:
    answer = given["answer"]
    if given["signed"]:
        answer = _signed_answer(given)
    active = ActiveToken.read(answer, issuer=given["issuer"], audience=given["audience"], now=given["now"])
    return {"iss": active.issuer, "sub": active.subject, "exp": active.expires_at}


def _signed_answer(given: Input) -> dict[str, Any]:
    unverified = parse_signed(given["answer"].encode())
    keys = {key["kid"]: PublicKey.from_jwk(key["jwk"], key["alg"]) for key in given["keys"]}
    if unverified.kid not in keys:
        raise DocumentRefused("document_unknown_signer", "no key of the issuer")
    readers = {given["client_id"], given["audience"]}
    return signed_answer(unverified, keys[unverified.kid], issuer=given["issuer"], readers=readers, now=given["now"])


def _history(given: Input) -> Facts:
    root = read_registry_keys(given["registry_keys"], pin=given["pin"], now=given["now"])
    return read_history(given["document"], root.root, domain=root.subject, now=given["now"]).claims()


def _continuation(given: Input) -> Facts:
    root = read_registry_keys(given["registry_keys"], pin=given["pin"], now=given["now"])
    signed = signed_histories(given["statements"], root.root, domain=root.subject, now=given["now"])
    found = excused_by(signed.values(), Head.from_json(given["head"]), given["seen_at"])
    if found is None:
        raise DocumentRefused("document_inconsistent", "the root does not say that this head is lost")
    return {"common": found.common.to_json(), "new": found.new.to_json(), "seen_at": found.seen_at}


def _registry_keys(given: Input) -> Facts:
    read = read_registry_keys(given["document"], pin=given["pin"], now=given["now"])
    kids = [make_kid(read.issuer, key.thumbprint) for key in read.signing_keys]
    return {"domain": read.subject, "version": read.version, "signing_keys": kids}


class _OneRegistry(Fetcher):
    """Answers with the root's document and a consistency proof."""

    def __init__(self, given: Input) -> None:
        self._given = given

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See Fetcher."""
        if path == REGISTRY_KEYS_PATH:
            return Answer(200, self._given["registry_keys"].encode())
        old, new = (int(part.partition("=")[2]) for part in path.partition("?")[2].split("&"))
        return Answer(200, canonical_json({"from": old, "to": new, "proof": self._given["consistency"]}))

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path


def _document(kind: type[Any]) -> Callable[[Input], Facts]:
    def judge(given: Input) -> Facts:
        reader = _reader(given)
        known: KnownService | None = None
        for jws in given["seen"]:
            before: Any = reader.read(_kind_of(jws), jws)
            known = KnownService.of(before) if isinstance(before, KeySetDocument) else None
        read: Frame = reader.read(kind, given["document"], given["subject"], at_least=reader.seen())
        if isinstance(read, KeySetDocument) and known is not None:
            known.updated(read)
        return _shown(read)

    return judge


def _part(given: Input) -> Facts:
    reader = _reader(given)
    name = reader.read(KeySetDocument, given["key_set"], given["subject"]).parts[given["part"]]
    if name is None:
        raise Refused("document_wrong_part")
    part = reader.read(KeySetPart, given["document"], given["subject"], at_least=name.seq)
    check_part(part, given["part"], name)
    return _shown(part)


def _reader(given: Input) -> DocumentReader:
    return DocumentReader(
        _OneRegistry(given),
        pin=given["pin"],
        limits=TrustLimits(),
        clock=lambda: float(given["now"]),
        cache_dir=None,
        copies=NoCopies(),
    )


def _kind_of(jws: str) -> type[Any]:
    typ = strict_json_object(b64url_decode(jws.split(".")[0]))["typ"]
    return next(kind for kind in _DOCUMENTS.values() if typ == kind.TYP)


def _shown(document: Frame) -> Facts:
    claims = document.claims()
    if isinstance(document, KeySetDocument | KeySetPart):
        claims |= {name: [key["kid"] for key in claims[name]] for name in ("keys", "revoked")}
    return claims


def _content_digest(given: Input) -> Facts:
    check_content(given["digest"], b64url_decode(given["body"]))
    return {"digest": digest_header(b64url_decode(given["body"]))}


def _target_digest(given: Input) -> Facts:
    if not given["target"].isascii() or target_digest(given["target"]) != given["digest"]:
        raise errors.WrongBinding("another target")
    return {}


def _kid(given: Input) -> Facts:
    owner, thumbprint = split_kid(given["kid"])
    split_service_id(owner)
    return {"service_id": owner, "thumbprint": thumbprint}


def _key(given: Input) -> Facts:
    key = PublicKey.from_jwk(given["jwk"])
    return {"alg": key.alg, "thumbprint": key.thumbprint, **PublicCredentials.of(CALLER, key).to_json()}


def _join(given: Input) -> Facts:
    token = JoinToken.parse(given["join_token"])
    if not join_mac_matches(token.mac_key, given["proof"], given["mac"]):
        raise Refused("join_refused")
    return {"id": token.id, "pin": token.pin}


def _refusal(given: Input) -> Facts:
    kind = next(kind for kind in vars(errors).values() if getattr(kind, "code", None) == given["code"])
    answer = problem_of(kind("detail"))
    return {"status": answer.status, "headers": {name.lower(): value for name, value in answer.headers.items()}}


def _inclusion(given: Input) -> Facts:
    proof = [b64url_decode(part) for part in given["proof"]]
    leaf = leaf_hash(b64url_decode(given["entry"]))
    check_inclusion(leaf, given["index"], given["size"], proof, b64url_decode(given["root"]))
    return {}


def _consistency(given: Input) -> Facts:
    roots = [b64url_decode(given[name]) for name in ("old_root", "new_root")]
    proof = [b64url_decode(part) for part in given["proof"]]
    check_consistency(given["old"], roots[0], given["new"], roots[1], proof)
    return {}


def _checkpoint(given: Input) -> Facts:
    read = verify_checkpoint(given["note"], given["origin"], given["keys"])
    return {"size": read.size, "root": b64url(read.root)}


def _cosigned(given: Input) -> Facts:
    read = verify_checkpoint(given["note"], given["origin"], given["keys"])
    quorum = Quorum.read({name: given[name] for name in ("witnesses", "quorum")})
    at = None if quorum is None else quorum.cosigned_at(Note.parse(given["note"]))
    if at is None:
        raise DocumentRefused("document_unwitnessed", "fewer than the quorum have cosigned it")
    return {"size": read.size, "at": at}


def _evidence(given: Input) -> Facts:
    evidence = Evidence.decode(b64url_decode(given["evidence"]) + b" " * given["blanks"])
    root = None if given["pin"] is None else evidence.keys_under(given["pin"])
    found = evidence.verdict(given["keys"] if root is None else root.ledger_keys, root)
    if not found.proven:
        raise Refused(found.code)
    return {"domain": evidence.domain, "code": found.code}


_DOCUMENTS: Final[Mapping[str, type[Any]]] = {
    "key-set": KeySetDocument,
    "key-statement": KeyStatement,
    "changes": Changes,
    "current": CurrentServices,
    "policy": PolicyDocument,
    "domain": DomainDocument,
    "federation": FederationDocument,
}

_JUDGES: Final[Mapping[str, Callable[[Input], Facts]]] = {
    "base64url": lambda given: {"hex": b64url_decode(given["text"]).hex()},
    "json": lambda given: strict_json_object(b64url_decode(given["text"])),
    "canonical-json": lambda given: {
        "canonical": b64url(canonical_json(strict_json_object(b64url_decode(given["text"]))))
    },
    "content-digest": _content_digest,
    "target-digest": _target_digest,
    "kid": _kid,
    "key": _key,
    "authorization": lambda given: {"token": bearer_token(given["authorization"])},
    "join": _join,
    "refusal": _refusal,
    "request": _request,
    "response": _response,
    "transaction": _transaction,
    "event": _event,
    "exchanged-event": _event,
    "proof": _proof,
    "assertion": _assertion,
    "access-token": _access_token,
    "user-token": _user_token,
    "introspection": _introspection,
    "history": _history,
    "continuation": _continuation,
    "registry-keys": _registry_keys,
    "key-set-part": _part,
    "inclusion": _inclusion,
    "consistency": _consistency,
    "checkpoint": _checkpoint,
    "cosigned-checkpoint": _cosigned,
    "evidence": _evidence,
    **{name: _document(kind) for name, kind in _DOCUMENTS.items()},
}
