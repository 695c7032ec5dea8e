"""An issuer of OIDC tokens, as a platform runs one: discovery and a JWK Set over HTTP, and keys that it replaces.

Its tokens are written by PyJWT, so none of our own code says what a foreign token looks like. In the tests' process it
is `running_issuer`; as a process of its own it is ``python -m tests.support.issuer PORT``, where ``POST /token`` signs
the claims in the body (`ask_for_token`) and ``POST /rotate`` replaces the key.
"""

import json
import ssl
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/openid/v1/jwks"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

ENDLESS = object()
"""An answer that never ends."""


def public_jwk(key: PrivateKey, kid: str, **members: Any) -> dict[str, Any]:
    """The public JWK as issuers publish it."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return {**RSAAlgorithm.to_jwk(public, as_dict=True), "use": "sig", "alg": "RS256", "kid": kid, **members}
    return {**ECAlgorithm.to_jwk(public, as_dict=True), "use": "sig", "alg": "ES256", "kid": kid, **members}


class Issuer:
    """Its keys, its documents, and the tokens that it signs.

    ``answers`` replaces what is served at a path: a JSON value, ``(status, headers)``, or ENDLESS. ``fetched`` counts
    what was asked for by path. ``down`` has it cut every connection.
    """

    def __init__(self, url: str, *, alg: str = "RS256") -> None:
        self.url = url
        self.alg = alg
        self.down = False
        self.fetched: Counter[str] = Counter()
        self.answers: dict[str, Any] = {}
        self.keys: dict[str, PrivateKey] = {}
        self.rotate()

    def rotate(self, *, keep: int = 1) -> str:
        """Sign with a new key, whose kid is given; as many of the keys before it stay published."""
        made = ec.generate_private_key(ec.SECP256R1()) if self.alg == "ES256" else rsa.generate_private_key(65537, 2048)
        self.kid = uuid.uuid4().hex
        self.keys = dict([*self.keys.items()][-keep:] if keep else []) | {self.kid: made}
        return self.kid

    @property
    def jwks(self) -> dict[str, Any]:
        """The JWK Set."""
        return {"keys": [public_jwk(key, kid) for kid, key in self.keys.items()]}

    @property
    def discovery(self) -> dict[str, Any]:
        """The discovery document."""
        return {
            "issuer": self.url,
            "jwks_uri": self.url + JWKS,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        }

    def claims(self, subject: str, audience: str | list[str], *, now: float | None = None) -> dict[str, Any]:
        """What a token says of a workload, with more members than the registry reads."""
        issued = int(time.time() if now is None else now)
        times = {"iat": issued, "nbf": issued, "exp": issued + 600}
        return {
            "iss": self.url,
            "sub": subject,
            "aud": audience,
            **times,
            "jti": uuid.uuid4().hex,
            "ref_protected": "true",
        }

    def sign(self, claims: dict[str, Any], *, headers: dict[str, Any] | None = None) -> str:
        """Those claims, signed with the newest key."""
        headers = {"kid": self.kid, **(headers or {})}
        return jwt.encode(claims, self.keys[self.kid], self.alg, headers=headers)

    def token(self, subject: str, audience: str | list[str], *, now: float | None = None, **changes: Any) -> str:
        """A token like a platform's. ``changes`` replace claims; None takes one away."""
        claims = self.claims(subject, audience, now=now) | changes
        return self.sign({name: value for name, value in claims.items() if value is not None})

    def answer(self, path: str) -> Any:
        """What is served at a path; None for nothing."""
        documents = {DISCOVERY: self.discovery, JWKS: self.jwks, "/fetched": dict(self.fetched)}
        return self.answers.get(path, documents.get(path))


def _response(answer: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; a tuple is given as it stands, anything else as JSON."""
    if isinstance(answer, tuple):
        status, headers, *body = answer
        return status, headers, b"".join(body)
    if answer is None:
        return 404, {}, b""
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def handler_of(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    """Serves it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetched[self.path] += 1
            answer = issuer.answer(self.path)
            if issuer.down:
                self.close_connection = True
            elif answer is ENDLESS:
                self.pour()
            else:
                self.send(*_response(answer))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = issuer.sign(json.loads(body)) if self.path == "/token" else issuer.rotate(keep=0)
            self.send(200, {}, answer.encode())

        def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def pour(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"keys": [')
            try:
                while True:
                    self.wfile.write(b'{"kty": "RSA"},' * 4096)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def private_ca(folder: Path, *names: str) -> ssl.SSLContext:
    """A server's side of TLS for 127.0.0.1 and the names, with a certificate that only who knows ``folder / "ca.pem"``
    believes."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Cluster")])
    now, address = datetime.now(UTC), x509.IPAddress(IPv4Address("127.0.0.1"))
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    built = built.add_extension(x509.SubjectAlternativeName([address, *map(x509.DNSName, names)]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = built.sign(key, SHA256()).public_bytes(Encoding.PEM)
    (folder / "ca.pem").write_bytes(certificate)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(pem + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


@contextmanager
def running_issuer(*, alg: str = "RS256", path: str = "", tls: ssl.SSLContext | None = None) -> Iterator[Issuer]:
    """An issuer on loopback, served by threads of this process; ``path`` is the end of its name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    issuer = Issuer(f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}{path}", alg=alg)
    server.RequestHandlerClass = handler_of(issuer)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()


def ask_for_token(issuer_url: str, subject: str, audience: str | list[str], **changes: Any) -> str:
    """A token of an issuer that is a process of its own."""
    now = int(time.time())
    claims = {"iss": issuer_url, "sub": subject, "aud": audience, "iat": now, "nbf": now, "exp": now + 600, **changes}
    return _call(f"{issuer_url}/token", json.dumps(claims).encode())


def rotate_keys(issuer_url: str) -> str:
    """Have that process replace its key; the new kid."""
    return _call(f"{issuer_url}/rotate", b"")


def fetches(issuer_url: str) -> dict[str, int]:
    """What that process was asked for, by path."""
    counted: dict[str, int] = json.loads(_call(f"{issuer_url}/fetched", None))
    return counted


def _call(url: str, body: bytes | None) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data=body), timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def main(port: int) -> None:
    """Serve one until the process is ended."""
    issuer = Issuer(f"http://127.0.0.1:{port}")
    ThreadingHTTPServer(("127.0.0.1", port), handler_of(issuer)).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
