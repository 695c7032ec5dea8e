"""The ASGI gate of a service, driven as servers do, without one."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from peerseal import Identity, current_transaction
from peerseal.asgi import ANY_ALLOWED, PUBLIC, Need, PeerAuth, current_peer, require_scope
from peerseal.testing import MemoryRegistry

NEEDS = {
    "/": ANY_ALLOWED,
    "/healthz": PUBLIC,
    "/orders": Need("write"),
    "/mine": Need("read", transaction=True),
    "/admin": Need("admin"),
}


def user() -> str | None:
    """For whom this code works."""
    current = current_transaction()
    return None if current is None else current.user


class Answer:
    """What came back."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.events: list[str] = []

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Callee:
    """The service ``callee``; what its application saw is kept."""

    def __init__(self, registry: MemoryRegistry, app: Any = None, **options: Any) -> None:
        self.identity = registry.identity("callee")
        self.seen: list[dict[str, Any]] = []
        given: dict[str, Any] = {"allow": {"client": {"read", "write"}}, "needs": NEEDS, **options}
        self.auth = PeerAuth(app or self.app, self.identity, **given)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            self.seen.append({"type": scope["type"]})
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        if scope["path"].endswith("/late"):
            require_scope("admin")
        try:
            peer = current_peer().service
        except RuntimeError:
            peer = None
        self.seen.append({"peer": peer, "user": user(), "body": body})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def call(
        self,
        method: str = "GET",
        target: str = "/x",
        *,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        body: bytes = b"",
        pieces: int = 1,
        **scope: Any,
    ) -> Answer:
        """One request, its body in that many pieces."""
        path, _, query = target.partition("?")
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers or [])
        if body and not any(name == "content-length" for name, _ in pairs):
            pairs.append(("content-length", str(len(body))))
        asked = {
            "type": "http",
            "method": method,
            "path": unquote(path, errors="replace"),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
            **scope,
        }
        size = max(1, -(-len(body) // pieces))
        cut = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        events = [{"type": "http.request", "body": one, "more_body": at < len(cut) - 1} for at, one in enumerate(cut)]
        answer = Answer()

        async def receive() -> Any:
            return events.pop(0) if events else {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            answer.events.append(event["type"])
            answer.status = event.get("status", answer.status)
            answer.headers |= {name.decode(): value.decode() for name, value in event.get("headers", [])}
            answer.body += event.get("body", b"")

        asyncio.run(self.auth(asked, receive, send))
        return answer


def signed(
    client: Identity, method: str = "GET", target: str = "/x", body: bytes = b"", **headers: str
) -> dict[str, str]:
    bound = {name.replace("_", "-"): value for name, value in headers.items()}
    token = client.sign_request("callee", method=method, target=target, body=body, headers=bound)
    return {**bound, "authorization": f"Bearer {token}"}
