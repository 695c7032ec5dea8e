"""The agent's calls, as an ASGI application.

Errors of a local program's own question are answered with a detail. The refusal of a stranger's request is answered
with its code alone, as by any callee: the program may pass the answer on. The log has the detail.
"""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from peerseal.agent.original import AUTHZ, original_request, raw_path
from peerseal.agent.questions import QuestionRefused, read_sign, read_verify
from peerseal.asgi import Receive, RequestBody, Send, headers_of
from peerseal.asgi_routes import Scope
from peerseal.asynchronous import AsyncVerifier
from peerseal.errors import (
    CodedError,
    ContentTooLarge,
    InvalidName,
    PeersealError,
    UnsignableRequest,
    WrongBinding,
)
from peerseal.identity.identity import Identity
from peerseal.protocol.encoding import b64url_decode, canonical_json
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.problem_document import Problem, problem, problem_of
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.protocol.tokens.request import REQUEST_LIFETIME
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.refusals import REFUSALS, Gate, Record, lacking_user, refusal_answer
from peerseal.verify.context import REQUEST_ID, Transaction, enter_request, leave_request
from peerseal.verify.request import BODY_LATER, CheckedRequest, Peer

log = logging.getLogger("peerseal.agent")

SECRET: Final = "peerseal-agent-secret"
"""The header that proves a caller on loopback."""
_HEALTH: Final = "/healthz"
_BEFORE_REFUSAL: Final = 1.0
"""Seconds before a program without the secret is refused: programs that try on and on leave time to others."""
_NO_SCOPE: Final = ""  # no caller has it
_NO_STORE: Final = {"Cache-Control": "no-store"}


class LocalCallerRefused(PeersealError, code="local_caller_refused", status=403):
    """The agent does not answer this local program."""


class NoSuchCall(CodedError, status=404):
    """The agent has no such call."""


class NotReady(PeersealError, code="not_ready", status=503):
    """The agent has no key, or does not know the registry's keys yet."""

    retry_after = 1


class _Call(NamedTuple):
    """One call of the agent."""

    scope: Scope
    headers: Mapping[str, str]
    body: RequestBody
    largest: int

    async def content(self) -> bytes:
        """The whole body. Raises ContentTooLarge or ContentUnreadable."""
        if not await self.body.read(self.largest):
            raise ContentTooLarge(f"the body is longer than {self.largest} bytes")
        return self.body.content


class Agent:
    """Signs as ``identity``, and verifies requests to its service from the callers in ``allow``.

    With ``secret`` each call but ``/healthz`` must have it in the header `SECRET`. Raises ConfigurationError or
    InvalidName for an invalid ``allow``.
    """

    def __init__(self, identity: Identity, *, allow: Mapping[str, Iterable[str]], secret: str | None = None) -> None:
        self._identity = identity
        self._gate = Gate(identity, Record(), allow=allow)
        self._verifier = AsyncVerifier(self._gate.verifier)
        self._secret = secret
        self._calls: dict[tuple[str, str], Callable[[_Call], Awaitable[Problem]]] = {
            ("POST", "/sign"): self._sign,
            ("POST", "/verify"): self._verify,
            ("GET", "/keys"): self._keys,
            ("GET", _HEALTH): self._health,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call. Raises RuntimeError for a WebSocket and for the application's life, which the agent does not
        serve."""
        if scope["type"] != "http":
            raise RuntimeError(f"a connection of the kind {scope['type']!r}: expected http")
        call = _Call(scope, headers_of(scope), RequestBody(receive), self._gate.max_body)
        proven = self._is_proven(call.headers)
        try:
            answer = await self._answered(call, proven)
        except LocalCallerRefused as error:
            await _pause(receive)
            answer = problem_of(error)
        except (QuestionRefused, NoSuchCall) as error:
            log.warning("a question is refused: %s", error)  # a proxy shows the answer to no operator
            answer = problem_of(error, detail=str(error))
        except PeersealError as error:
            answer = problem_of(error)
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        if not proven:  # any user of the host could keep it
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _is_proven(self, headers: Mapping[str, str]) -> bool:
        """Whether the call has the secret, or needs none."""
        return self._secret is None or hmac.compare_digest(headers.get(SECRET, "").encode(), self._secret.encode())

    async def _answered(self, call: _Call, proven: bool) -> Problem:
        path = raw_path(call.scope)
        if not proven and path != _HEALTH:
            raise LocalCallerRefused(f"the header {SECRET} is missing or wrong")
        if path == AUTHZ or path.startswith(f"{AUTHZ}/"):
            return await self._authorize(call)
        serve = self._calls.get((call.scope["method"], path))
        if serve is None:
            raise NoSuchCall("not_found", f"{call.scope['method']} {path[:100]!r} is no call of the agent")
        return await serve(call)

    async def _sign(self, call: _Call) -> Problem:
        audience, request, ctx = read_sign(await call.content())
        try:
            token = self._identity.sign_request(audience, ctx=ctx, **request._asdict())
        except (UnsignableRequest, InvalidName) as error:
            return problem(400, error.code, detail=str(error))
        return _answer({"authorization": f"Bearer {token}", "expires_in": REQUEST_LIFETIME})

    async def _verify(self, call: _Call) -> Problem:
        asked = read_verify(await call.content())
        request = asked.request
        given = request.headers.get("authorization") if asked.token is None else f"Bearer {asked.token}"

        async def with_content(checked: CheckedRequest) -> CheckedRequest:
            if request.content_digest is not None:
                return checked.with_digest(request.content_digest)
            return checked.with_content(request.body)

        claim = _Claim(request.method, request.target, request.headers, given, asked.scope, asked.transaction)
        found = await self._peer(claim, with_content)
        return found if isinstance(found, Problem) else _answer(_peer_json(found))

    async def _authorize(self, call: _Call) -> Problem:
        """The answer to a proxy. It has the caller in headers, which the proxy passes on to the service."""
        original, headers = original_request(call.scope, call.headers), call.headers
        scope = _NO_SCOPE if original.is_ambiguous else headers.get("peerseal-scope")

        async def with_content(checked: CheckedRequest) -> CheckedRequest:
            if not original.body_is_here:
                raise WrongBinding("the proxy does not send the body, so its digest cannot be compared")
            return checked.with_content(await call.content())

        claim = _Claim(original.method, original.target, headers, headers.get("authorization"), scope)
        peer = await self._peer(claim, with_content)
        if isinstance(peer, Problem):
            return peer
        proven = {"Peerseal-Caller": peer.id, "Peerseal-Kid": peer.kid, "Peerseal-Scopes": _in_words(peer.scopes)}
        return Problem(200, _NO_STORE | proven, b"")

    async def _peer(self, claim: "_Claim", with_content: "_WithContent") -> Peer | Problem:
        """The proven caller of a stranger's request, or the refusal, which is logged and counted."""
        before = enter_request(claim.headers.get(REQUEST_ID), claim.headers.get(TRACEPARENT), claim.method)
        try:
            peer = await self._verified(claim, with_content)
            self._gate.audit.call(peer, scope=claim.scope, method=claim.method, route=lambda: None)
        except REFUSALS as error:
            request_id = self._gate.refused(error, claim.method, claim.target, claim.authorization)
            answer = refusal_answer(error, request_id)
            return answer._replace(headers=answer.headers | {"Peerseal-Code": error.code})
        finally:
            leave_request(before)
        return peer

    async def _verified(self, claim: "_Claim", with_content: "_WithContent") -> Peer:
        checked = await self._verifier.check(
            bearer_token(claim.authorization),
            method=claim.method,
            target=self._gate.external_prefix + claim.target,
            body=BODY_LATER,  # strangers cannot make the agent hold megabytes
            headers=claim.headers,
            scope=claim.scope,
        )
        if claim.transaction and (error := lacking_user(checked.peer)):
            raise error
        return await self._verifier.claim(await with_content(checked))

    async def _keys(self, _: _Call) -> Problem:
        """A JWK Set (RFC 7517 section 5) of the key that signs now, and its public credentials."""
        credentials = self._identity.credentials
        public = PublicKey.from_spki(b64url_decode(credentials.public_key))
        jwk = {**public.jwk, "alg": public.alg, "kid": credentials.key_id, "use": "sig"}
        return _answer({"keys": [jwk], "credentials": credentials.to_json()})

    async def _health(self, _: _Call) -> Problem:
        if not self._identity.is_ready():
            raise NotReady
        return _answer({"ready": True})


class _Claim(NamedTuple):
    """What a stranger claims, and the service needs. ``authorization`` is the value of that header."""

    method: str
    target: str
    headers: Mapping[str, str]
    authorization: str | None
    scope: str | None
    transaction: bool = False


_WithContent = Callable[[CheckedRequest], Awaitable[CheckedRequest]]
"""Checks the content. Raises WrongBinding, ContentTooLarge or ContentUnreadable."""


def _answer(value: Mapping[str, Any]) -> Problem:
    return Problem(200, {"Content-Type": "application/json"} | _NO_STORE, canonical_json(value))


def _peer_json(peer: Peer) -> dict[str, Any]:
    transaction = None if peer.transaction is None else _transaction_json(peer.transaction)
    members = {"service": peer.service, "id": peer.id, "kid": peer.kid, "scopes": sorted(peer.scopes)}
    return members | {"ctx": dict(peer.ctx), "transaction": transaction}


async def _pause(receive: Receive) -> None:
    """Wait for `_BEFORE_REFUSAL` seconds, or until the client is gone."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_BEFORE_REFUSAL):
            while (await receive())["type"] != "http.disconnect":
                pass


def _transaction_json(transaction: Transaction) -> dict[str, Any]:
    return {
        "id": transaction.id,
        "user": transaction.user,
        "scopes": sorted(transaction.scopes),
        "facts": dict(transaction.facts),
        "authentication": dict(transaction.authentication),
        "minter": transaction.minter,
        "workload": transaction.workload,
        "expires_at": transaction.expires_at,
    }


def _in_words(scopes: Iterable[str]) -> str:
    """The scopes as RFC 6749 section 3.3 writes them."""
    return " ".join(sorted(scopes))
