"""Long bodies at the ASGI gate: of one token one at a time is read, however many come at once, and the next one may."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from peerseal import Identity
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.testing import MemoryRegistry
from tests.support.asgi import Callee, signed

PIECE = 64 * 1024
PIECES = 32
BODY = b"z" * PIECE * PIECES
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


class Upload:
    """One POST of BODY that stops before its last piece, until ``last`` says of which type that event is."""

    def __init__(self, callee: Callee, token: str) -> None:
        self.read = 0
        self.status = 0
        self.code = b""
        self.last: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waits = asyncio.Event()
        headers = [(b"authorization", token.encode()), (b"content-length", b"%d" % len(BODY))]
        scope = {"type": "http", "method": "POST", "path": "/x", "raw_path": b"/x", "headers": headers}
        self.task: asyncio.Task[None] = asyncio.create_task(callee.auth(scope, self._receive, self._send))

    async def stopped(self) -> None:
        """Once it is answered, or waits for its last piece."""
        waits = asyncio.create_task(self._waits.wait())
        await asyncio.wait([self.task, waits], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()

    async def end(self, kind: str = "http.request") -> None:
        """Send the last piece, or another event in its place; and wait for the answer."""
        self.last.set_result(kind)
        await self.task

    async def _receive(self) -> Any:
        if self.read >= len(BODY):
            return {"type": "http.disconnect"}
        kind = "http.request"
        if self.read == len(BODY) - PIECE:
            self._waits.set()
            kind = await self.last
        self.read += PIECE
        return {"type": kind, "body": b"z" * PIECE, "more_body": self.read < len(BODY)}

    async def _send(self, event: Any) -> None:
        self.status = event.get("status", self.status)
        self.code += event.get("body", b"")


def run(registry: MemoryRegistry, test: Callable[[Callee], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test(Callee(registry, **options))

    asyncio.run(main())


def token_of(client: Identity, body: bytes = BODY) -> str:
    return signed(client, "POST", "/x", body)["authorization"]


def other_spelling(token: str) -> str:
    """The same ES256 token under its other good signature (r, n - s)."""
    signed_part, _, signature = token.rpartition(".")
    raw = b64url_decode(signature)
    return f"{signed_part}.{b64url(raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], 'big')).to_bytes(32, 'big'))}"


async def twelve(callee: Callee, token: str) -> list[Upload]:
    """At once, of which no more is held than one body, and what is read of each before anything is checked."""
    uploads = [Upload(callee, token) for _ in range(12)]
    for upload in uploads:
        await upload.stopped()
    assert sum(upload.read for upload in uploads) < len(BODY) + 12 * 2 * PIECE
    return uploads


def test_of_twelve_bodies_for_one_token_one_is_read(registry: MemoryRegistry, client: Identity) -> None:
    async def test(callee: Callee) -> None:
        token = token_of(client)
        uploads = await twelve(callee, token)
        (read,) = (upload for upload in uploads if not upload.task.done())
        await read.end()
        assert sorted(upload.status for upload in uploads) == [200] + [401] * 11
        assert [seen["body"] == BODY for seen in callee.seen] == [True]
        assert callee.auth.refusals == {"replayed": 11}

    run(registry, test)


def test_a_used_token_fills_no_memory_either(registry: MemoryRegistry, client: Identity) -> None:
    async def test(callee: Callee) -> None:
        token = token_of(client, b"once")
        headers = {"authorization": token}
        assert (await asyncio.to_thread(callee.call, "POST", headers=headers, body=b"once")).status == 200
        uploads = await twelve(callee, token)
        (read,) = (upload for upload in uploads if not upload.task.done())
        await read.end()
        assert {upload.status for upload in uploads} == {401}

    run(registry, test)


def test_the_other_signature_of_an_es256_token_is_no_other_token(registry: MemoryRegistry) -> None:
    client = registry.identity("client", alg="ES256")

    async def test(callee: Callee) -> None:
        token = token_of(client)
        first = Upload(callee, token)
        await first.stopped()
        second = Upload(callee, other_spelling(token))
        await second.stopped()
        assert (second.status, second.read) == (401, 2 * PIECE)
        await first.end()
        assert first.status == 200

    run(registry, test)


@pytest.mark.parametrize(("ending", "status"), [("http.disconnect", 400), ("cancelled", 0), ("RuntimeError", 0)])
def test_however_the_reading_ends_the_next_one_may(
    registry: MemoryRegistry, client: Identity, ending: str, status: int
) -> None:
    async def test(callee: Callee) -> None:
        token = token_of(client)
        first = Upload(callee, token)
        await first.stopped()
        if ending == "cancelled":
            first.task.cancel()
        elif ending == "RuntimeError":
            first.last.set_exception(RuntimeError("of the server"))
        else:
            await first.end(ending)
        await asyncio.wait([first.task])
        assert first.status == status
        second = Upload(callee, token)
        await second.stopped()
        await second.end()
        assert second.status == 200

    run(registry, test)


def test_one_that_is_too_long_leaves_the_place_to_the_next(registry: MemoryRegistry, client: Identity) -> None:
    async def test(callee: Callee) -> None:
        token = token_of(client)
        for _ in range(2):
            upload = Upload(callee, token)
            await upload.stopped()
            assert (upload.status, b'"content_too_large"' in upload.code) == (413, True)

    run(registry, test, max_body=len(BODY) - 2 * PIECE)


def test_other_tokens_of_the_caller_wait_for_nothing(registry: MemoryRegistry, client: Identity) -> None:
    async def test(callee: Callee) -> None:
        uploads = [Upload(callee, token_of(client)) for _ in range(3)]
        for upload in uploads:
            await upload.stopped()
        for upload in reversed(uploads):
            await upload.end()
        assert [upload.status for upload in uploads] == [200] * 3

    run(registry, test)
