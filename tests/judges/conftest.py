"""A real registry with two services in it, and libraries of other people."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

import peerseal
from peerseal.protocol.encoding import digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.request import REQUEST_TYP
from tests.support.stack import DOMAIN, Stack

NODE_FILES = Path(__file__).parent / "node"

CALLEE = "resource-service"
METHOD, TARGET, BODY = "POST", "/orders?dry=1", b'{"item": 7}'
HEADERS = {"content-type": "application/json"}


class Caller(NamedTuple):
    """A service that is registered at the real registry, and where the registry shows its keys."""

    identity: peerseal.Identity
    key: KeyPair
    jwks_url: str

    @property
    def kid(self) -> str:
        return self.identity.credentials.key_id

    @property
    def header(self) -> dict[str, str]:
        return {"alg": self.key.public.alg, "kid": self.kid, "typ": REQUEST_TYP}

    def token(self) -> str:
        """A request token as the SDK makes it."""
        return self.identity.sign_request(CALLEE, method=METHOD, target=TARGET, body=BODY, headers=HEADERS)

    def claims(self) -> dict[str, Any]:
        """The same claims, for a library that is to sign them itself."""
        now = int(time.time())
        return {
            "iss": self.identity.id,
            "sub": self.identity.id,
            "aud": f"{DOMAIN}/{CALLEE}",
            "iat": now,
            "nbf": now,
            "exp": now + 60,
            "jti": new_jti(),
            "method": METHOD,
            "target_digest": digest_header(TARGET.encode()),
            "content_digest": digest_header(BODY),
            "headers": HEADERS,
        }


@pytest.fixture(scope="session")
def running_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("judged")) as stack:
        stack.start_registry(workers=1)
        yield stack


@pytest.fixture(scope="session", params=["RS256", "ES256"])
def caller(
    running_registry: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Caller]:
    """A caller with a key of either algorithm."""
    name, keys = f"caller-{request.param.lower()}", tmp_path_factory.mktemp("keys")
    identity = peerseal.Identity(
        name,
        registry=running_registry.registry_url,
        join_token=running_registry.join_token(name),
        key_dir=keys,
        alg=request.param,
    ).start()
    [pem] = keys.rglob("*.pem")
    key = KeyPair.from_pem(pem.read_bytes())
    assert identity.credentials.key_id == make_kid(identity.id, key.public.thumbprint)
    yield Caller(identity, key, f"{running_registry.registry_url}/v1/services/{name}/jwks.json")
    identity.stop()


@pytest.fixture(scope="session")
def verifier(running_registry: Stack) -> Iterator[peerseal.Verifier]:
    """Our verifier, over the real registry."""
    trust = peerseal.TrustStore(running_registry.registry_url)
    yield peerseal.Verifier(trust, audience=CALLEE, allow={"*": {"orders:write"}})
    trust.stop()


def accepted(verifier: peerseal.Verifier, token: str) -> peerseal.Peer:
    """The peer, for the request that `Caller` signs."""
    return verifier.verify(token, method=METHOD, target=TARGET, body=BODY, headers=HEADERS, scope="orders:write")


def tampered(token: str) -> str:
    """The same token, one character of its payload changed."""
    place = token.index(".") + 20
    return token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]


class Node:
    """Node.js with npm's jose and jwks-rsa."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A module of JavaScript, run."""
        return subprocess.run(
            ["node", "--input-type=module", "--eval", script, *arguments],
            cwd=self._folder,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
        )

    def ask(self, judge: str, **request: Any) -> dict[str, Any]:
        """What ``judge.mjs`` answers."""
        run = subprocess.run(
            ["node", "judge.mjs"],
            cwd=self._folder,
            input=json.dumps({"judge": judge, **request}),
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
        )
        assert run.returncode == 0, run.stderr
        answer: dict[str, Any] = json.loads(run.stdout)
        return answer


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Node:
    """Installed once into pytest's cache, as the lock file says."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("node and npm are not installed")
    folder = Path(request.config.cache.mkdir("judges-node")) if request.config.cache else missing("no cache folder")
    changed = not (folder / "node_modules" / ".package-lock.json").exists()
    for name in ("package.json", "package-lock.json", ".npmrc", "judge.mjs"):
        source, copy = NODE_FILES / name, folder / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)
            changed = True
    if changed:
        install = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=folder, capture_output=True, encoding="utf-8")
        if install.returncode != 0:
            missing(f"npm ci failed: {install.stderr[-500:]}")
    return Node(folder)


def missing(reason: str) -> NoReturn:
    """Skips a test for want of a tool; in CI, where each is there, fails it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
