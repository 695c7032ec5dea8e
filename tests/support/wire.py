"""What passes over a wire, without a registry: services that know each other's keys, and servers that tell all."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from peerseal.errors import UnknownKey
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url_decode, canonical_json, digest_header
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid, qualify
from peerseal.protocol.policies import DomainSettings
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.request import REQUEST_TYP, RequestToken
from peerseal.runtime.metrics import Source
from peerseal.trust.beliefs import TrustedKey
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard

DOMAIN = "test.internal"
NOW = 1_900_000_000


class Keys:
    """A KeySource in memory."""

    domain = DOMAIN

    def __init__(self) -> None:
        self._keys: dict[str, TrustedKey] = {}
        self.domain_settings = DomainSettings()

    def add(self, service: str, public: PublicKey) -> str:
        owner = f"{DOMAIN}/{service}"
        kid = make_kid(owner, public.thumbprint)
        self._keys[kid] = TrustedKey(kid, owner, public, 0, 1 << 40)
        return kid

    def key(self, kid: str) -> TrustedKey:
        try:
            return self._keys[kid]
        except KeyError:
            raise UnknownKey(kid) from None

    def policy(self, service_id: str) -> None:
        """There is no registry that could narrow what code allows."""

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self.key(kid)

    def settings(self) -> DomainSettings:
        """See KeySource."""
        return self.domain_settings


class Service:
    """A service with a key of its own: what the adapters need of an identity."""

    def __init__(self, service: str, trust: Keys, *, now: int, pair: KeyPair | None = None) -> None:
        self.service = service
        self.trust = trust
        self.external_prefix = ""
        self.audit = False
        self.sources: list[Source] = []
        self.pair = pair or KeyPair.generate("ES256")
        self.kid = trust.add(service, self.pair.public)
        self._now = now

    def clock(self) -> float:
        return self._now

    def replay_guard(self) -> ReplayGuard:
        return MemoryReplayGuard()

    def add_metrics(self, source: Source) -> None:
        self.sources.append(source)

    def sign_request(
        self,
        audience: str,
        *,
        method: str = "GET",
        target: str = "/",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ctx: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """As Identity's; ``claims`` replace what it would say."""
        token = RequestToken(
            issuer=f"{DOMAIN}/{self.service}",
            audience=qualify(audience, DOMAIN),
            issued_at=self._now,
            not_before=self._now,
            expires_at=self._now + 60,
            jti=new_jti(),
            method=method,
            target_digest=digest_header(target.encode()),
            content_digest=digest_header(body),
            headers=dict(headers or {}),
            ctx=ctx,
        )
        header = jose.encode_header(jose.Header(self.pair.public.alg, self.kid, REQUEST_TYP))
        return jose.compact(header, canonical_json(token.claims() | claims), self.pair.sign)


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, unverified."""
    claims: dict[str, Any] = json.loads(b64url_decode(token.split(".")[1]))
    return claims


@dataclass
class Seen:
    """One request as it came out of the socket."""

    line: str
    headers: dict[str, list[str]]
    body: bytes

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    @property
    def authorization(self) -> str | None:
        values = self.headers.get("authorization")
        return values[0] if values else None

    @property
    def token(self) -> str:
        return (self.authorization or "").removeprefix("Bearer ")

    @property
    def claims(self) -> dict[str, Any]:
        return claims_of(self.token)


def assert_signed_as_seen(seen: Seen) -> None:
    """The token in a request to ``callee`` is for exactly this request."""
    claims = seen.claims
    method, target, _ = seen.line.split(" ")
    assert claims["aud"] == f"{DOMAIN}/callee"
    assert claims["method"] == method
    assert claims["target_digest"] == digest_header(target.encode("ascii"))
    assert claims["content_digest"] == digest_header(seen.body)
    for name in ("content-type", "content-encoding"):
        assert seen.headers.get(name, [None]) == [claims["headers"].get(name)]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def encode(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} As Scripted", f"Content-Length: {len(self.body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


RESET = "reset"
"""In place of an Answer: the request is read, and the connection reset."""


@dataclass
class RawServer:
    """A server on a real socket that keeps every request and answers as scripted, then with 200."""

    host: str = "127.0.0.1"
    script: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # or the thread in accept() would take one more
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        seen = read_request(connection)
        if seen is None:
            return
        self.seen.append(seen)
        answer = self.script.pop(0) if self.script else Answer()
        if answer == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.sendall((answer(seen) if callable(answer) else answer).encode())


@contextlib.contextmanager
def raw_server(*script: Any, host: str = "127.0.0.1") -> Iterator[RawServer]:
    server = RawServer(host, list(script))
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> Seen | None:
    """One request from a socket, its body by Content-Length or chunks."""
    stream = connection.makefile("rb")
    line = stream.readline().decode("latin-1").rstrip("\r\n")
    if not line:
        return None
    headers: dict[str, list[str]] = {}
    while head := stream.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = head.partition(":")
        headers.setdefault(name.lower(), []).append(value.removeprefix(" "))
    if "chunked" in headers.get("transfer-encoding", []):
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
        return Seen(line, headers, body)
    return Seen(line, headers, stream.read(int(headers.get("content-length", ["0"])[0])))


class RawAnswer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The problem's code, where the answer is one."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        return str(json.loads(self.body)["code"])


def raw_request(
    address: tuple[str, int],
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | tuple[tuple[str, str], ...] = (),
    body: bytes = b"",
) -> RawAnswer:
    """Send exactly this request line, and read the answer to the end."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = [f"{method} {target} HTTP/1.1", "Host: wire.test", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in pairs]
    return raw_exchange(address, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def raw_exchange(address: tuple[str, int], data: bytes) -> RawAnswer:
    """Send exactly these bytes, which are a whole request, and read the final answer to the end."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data)
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    while raw.startswith(b"HTTP/1.1 1"):  # informational, such as 100 Continue
        raw = raw.partition(b"\r\n\r\n")[2]
    # A recipient may take LF alone for the end of a line (RFC 9112 section 2.2): gunicorn under Python 3.14 sends it.
    head, _, content = raw.partition(b"\r\n\r\n" if b"\r\n\r\n" in raw else b"\n\n")
    first, *rest = head.decode("latin-1").splitlines()
    answered = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return RawAnswer(int(first.split(" ")[1]), answered, content)


def only(server: RawServer) -> Seen:
    """The one request that the server has received."""
    (seen,) = server.seen
    return seen
