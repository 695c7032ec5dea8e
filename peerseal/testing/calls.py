"""The endpoints of the registry in memory: calls and their answers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from peerseal.errors import CallerNotAllowed, CodedError, KeyRefused, MissingToken
from peerseal.protocol.documents.frame import Document, sign_document
from peerseal.protocol.documents.key_set import ACTIVE, KeySetDocument
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH
from peerseal.protocol.encoding import canonical_json, digest_header, natural, strict_json_object
from peerseal.protocol.join import join_mac_matches
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, TILE_HEIGHT, TILE_WIDTH, encode_proof
from peerseal.protocol.names import REGISTRY, make_kid, registry_id, service_id, split_kid
from peerseal.protocol.tokens.claims import claim
from peerseal.protocol.tokens.proof import Proof
from peerseal.transport.fetch import Answer
from peerseal.verify.request import Verifier

if TYPE_CHECKING:
    from peerseal.testing.registry import MemoryRegistry

_KEYS: Final = re.compile(r"/v1/services/([^/]+)/keys(?:/([^/.]+)(\.jwt)?)?")
_POLICY: Final = re.compile(r"/v1/services/([^/]+)/policy\.jwt")
_CURRENT: Final = re.compile(r"/v1/current/(0|[1-9][0-9]*)\.jwt")
_JWK_SET: Final = re.compile(r"/v1/services/([^/]+)/jwks\.jwt")
_TILE: Final = re.compile(r"/ledger/tile/([0-5])/([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_PART: Final = re.compile(r"/v1/services/([^/]+)/jwks/([0-9]|[1-5][0-9]|6[0-3])\.jwt")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the registry received. ``headers`` has lower-case names."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]


class NotFound(CodedError):
    """There is no such key or service."""

    status = 404


class _JoinRefused(CodedError):
    status = 401


class Endpoints:
    """Answers the calls to a registry in memory, with the checks of the real one."""

    def __init__(self, registry: "MemoryRegistry") -> None:
        self._registry = registry
        self._verifier = Verifier(registry, audience=REGISTRY, allow={"*": ()}, clock=registry.clock)

    def answer(self, call: Call, path: str) -> Answer:
        """The answer of the registry. ``path`` is that of the call, without its query. Raises PeersealError."""
        if call.method == "GET" and (answer := self._read(call, path)) is not None:
            return answer
        if (found := _KEYS.fullmatch(path)) is None:
            raise NotFound("not_found", path)
        service, thumbprint, signed = found.groups()
        if call.method == "POST" and thumbprint is None:
            return self._register(call, service)
        kid = make_kid(service_id(self._registry.domain, service), thumbprint or "")
        if call.method == "GET" and signed:
            return _jwt(self._registry.sign(self._registry.statement(kid)))
        if call.method == "DELETE" and not signed:
            return self._end(call, kid)
        raise NotFound("not_found", path)

    def _read(self, call: Call, path: str) -> Answer | None:
        registry = self._registry
        documents: Mapping[str, Callable[[], Document]] = {
            "/v1/changes": lambda: registry.changes(_number(call, "since")),
            "/v1/changes/recent.jwt": lambda: registry.changes(0),
            "/v1/domain.jwt": registry.domain_document,
            "/v1/federation.jwt": registry.federation_document,
        }
        if path in documents:
            return _jwt(registry.sign(documents[path]()))
        if path == REGISTRY_KEYS_PATH:
            return _jwt(sign_document(registry.registry_keys(), registry.root))
        if path.startswith("/ledger/"):
            return self._of_ledger(call, path)
        if found := _CURRENT.fullmatch(path):
            return _jwt(registry.sign(registry.current_services(int(found[1]))))
        if found := _JWK_SET.fullmatch(path):
            return self._conditional(call, registry.jwk_set(found[1]))
        if found := _PART.fullmatch(path):
            return _jwt(registry.sign(registry.key_set_part(found[1], int(found[2]))))
        found = _POLICY.fullmatch(path)
        return None if found is None else self._policy(call, found[1])

    def _of_ledger(self, call: Call, path: str) -> Answer | None:
        if path == CHECKPOINT_PATH:
            text = self._registry.ledger.checkpoint().encode("utf-8")
            return Answer(200, text, {"content-type": "text/plain; charset=utf-8"})
        if found := _TILE.fullmatch(path):
            level, number, width = (int(text or TILE_WIDTH) for text in found.groups())
            return self._tile(level, number, width)
        if path != "/ledger/proof":
            return None
        old, new = _number(call, "from"), _number(call, "to")
        return Answer(200, canonical_json({"from": old, "to": new, "proof": self._consistency(old, new)}))

    def _tile(self, level: int, number: int, width: int) -> Answer:
        """The hashes of a tile (C2SP tlog-tiles), if the ledger is that long."""
        ledger, begin = self._registry.ledger, number * TILE_WIDTH
        if begin + width > len(ledger.entries) >> (TILE_HEIGHT * level):
            raise NotFound("not_found", "no such tile yet")
        hashes = (ledger.node(TILE_HEIGHT * level, begin + at) for at in range(width))
        return Answer(200, b"".join(hashes), {"content-type": "application/octet-stream"})

    def _conditional(self, call: Call, document: KeySetDocument) -> Answer:
        """RFC 9110 section 13.1.2. The tag covers all members that a new signature does not change."""
        keys = tuple(replace(key, proof=()) for key in document.keys)
        timeless = replace(document, issued_at=0, expires_at=0, head=0, checkpoint="", keys=keys)
        tag = f'"{digest_header(canonical_json(timeless.claims()))}"'
        if call.headers.get("if-none-match") == tag:
            return Answer(304, b"", {"etag": tag})
        return _jwt(self._registry.sign(document), {"etag": tag})

    def _policy(self, call: Call, service: str) -> Answer:
        """A restricted policy is for its service and the callers that it names."""
        document = self._registry.policy_document(service)
        if document.policy is not None and document.policy.restricted:
            if "authorization" not in call.headers:
                raise MissingToken("the policy is restricted")
            caller = split_kid(self._caller(call))[0]
            if caller != document.subject and document.policy.scopes(caller) is None:
                raise CallerNotAllowed("the policy names others")
        return _jwt(self._registry.sign(document))

    def _register(self, call: Call, service: str) -> Answer:
        body, now = strict_json_object(call.body), int(self._registry.clock())
        owner, us = service_id(self._registry.domain, service), registry_id(self._registry.domain)
        proof = Proof.read(claim(body, "proof", str), issuer=owner, audience=us, now=now)
        kid, known = make_kid(owner, proof.public_key.thumbprint), self._registry.keys.get(proof.public_key.thumbprint)
        if known is not None and known.service != service:
            raise KeyRefused("key_of_another_service")
        if known is not None and self._registry.state(known) != ACTIVE:
            raise KeyRefused(f"key_{self._registry.state(known)}")
        if known is None:
            self._registry.admit(service, proof.public_key, self.right(call, body, service, proof), proof.jws)
        return _jwt(self._registry.sign(self._registry.statement(kid)), status=201 if known is None else 200)

    def right(self, call: Call, body: dict[str, Any], service: str, proof: Proof) -> dict[str, str]:
        """The kid or join token that admits the key, in the form of entries. Raises PeersealError."""
        if "authorization" in call.headers:
            voucher = self._caller(call)
            if split_kid(voucher)[0] != proof.issuer or self._registry.state(self._registry.found(voucher)) != ACTIVE:
                raise CallerNotAllowed("only a current key of the same service can vouch")
            return {"kid": voucher}
        if "join" not in body:
            raise MissingToken("neither a voucher nor a join token")
        join = claim(body, "join", dict)
        issued, now = self._registry.joining.get(claim(join, "id", str)), self._registry.clock()
        if issued is None or issued.service != service or not issued.uses or issued.expires_at <= now:
            raise _JoinRefused("join_refused", "no such join token, or no longer")
        if not join_mac_matches(issued.token.mac_key, proof.jws, claim(join, "mac", str)):
            raise _JoinRefused("join_refused", "the mac is not over this proof")
        issued.uses -= 1
        return {"join_token": issued.token.id}

    def _end(self, call: Call, kid: str) -> Answer:
        if self._caller(call) != kid:
            raise CallerNotAllowed("a key can end only itself")
        compromised = parse_qs(urlsplit(call.path).query).get("reason") == ["compromised"]
        (self._registry.revoke if compromised else self._registry.retire)(kid)
        return Answer(204, b"")

    def _caller(self, call: Call) -> str:
        """The kid that signed this call, which is verified as by any callee."""
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        request: dict[str, Any] = {"method": call.method, "target": call.path, "body": call.body}
        return self._verifier.verify(token, headers=call.headers, **request).kid

    def _consistency(self, old: int, new: int) -> list[str]:
        if not 0 < old <= new <= len(self._registry.ledger.entries):
            raise NotFound("not_found", "no such trees")
        return encode_proof(self._registry.ledger.consistency(old, new))


def _number(call: Call, name: str) -> int:
    return natural(parse_qs(urlsplit(call.path).query).get(name, ["0"])[0]) or 0


def _jwt(document: str, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Answer:
    return Answer(status, document.encode("ascii"), {"content-type": "application/jwt", **(headers or {})})
