"""A cold start with the registry down, from the copies on disk. A good copy is enough for the first call once the
registry was asked in vain; any other is not believed until the registry answers. The folder needs no trust.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peerseal import Identity, TrustLimits, TrustStore, Verifier
from peerseal.errors import CallerNotAllowed, RevokedKey, TrustUnavailable
from peerseal.protocol.documents.frame import Document, sign_document
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Clock, MemoryRegistry

LIMITS = TrustLimits(poll_interval=3600.0)
"""The background thread sleeps through the test."""
ONE_QUESTION = {"GET /v1/changes": 1}
"""What a start costs where all documents come from copies."""
KEYS, POLICY, ROOT = "keys-client.jwt", "policy-callee.jwt", "root.jwt"
ASKED = {
    KEYS: "GET /v1/services/client/jwks.jwt",
    POLICY: "GET /v1/services/callee/policy.jwt",
    ROOT: "GET /.well-known/peerseal-registry",
}


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


class Host:
    """A host on which the service ``callee`` is started, again and again, with one cache folder."""

    def __init__(self, registry: MemoryRegistry, client: Identity, cache: Path) -> None:
        self._registry = registry
        self._client = client
        self._cache = cache
        self.start()

    def start(self) -> None:
        """A new process, which knows nothing but what is on disk."""
        self.trust: TrustStore = self._registry.trust_store(limits=LIMITS, cache_dir=self._cache)
        self._registry.calls.clear()

    def call(self) -> str:
        """What this process makes of a good call by the client."""
        clock = self._registry.clock
        verifier = Verifier(self.trust, audience="callee", allow={"client": {"read"}}, clock=clock)
        token = self._client.sign_request("callee", method="GET", target="/")
        return verifier.verify(token, method="GET", target="/", scope="read").service

    def starts_in_vain(self, registry: MemoryRegistry, clock: Clock) -> None:
        """A new process, which has no copy to believe while the registry is down; then it is up again."""
        registry.down = True
        self.start()
        with pytest.raises(TrustUnavailable):
            self.call()
        registry.down = False
        clock.advance(LIMITS.cooldown)

    def copy(self, name: str) -> Path:
        """The file of one document."""
        (found,) = self._cache.glob(f"documents-*/{name}")
        return found


@pytest.fixture
def host(registry: MemoryRegistry, client: Identity, tmp_path: Path) -> Host:
    """One on which a process has verified the client, and ended."""
    registry.set_policy("callee", {"client": {"read"}})
    host = Host(registry, client, tmp_path / "cache")
    assert host.call() == "client"
    return host


def test_the_first_request_is_verified_after_one_question_in_vain(registry: MemoryRegistry, host: Host) -> None:
    registry.down = True
    host.start()
    assert host.call() == "client"
    assert registry.calls == ONE_QUESTION


def test_one_question_confirms_all_copies_while_the_registry_is_up(registry: MemoryRegistry, host: Host) -> None:
    host.start()
    assert host.call() == "client"
    assert registry.calls == ONE_QUESTION


# ---- copies that are not to be believed

Spoil = Callable[[MemoryRegistry, Host, str], None]


def removed(registry: MemoryRegistry, host: Host, name: str) -> None:
    host.copy(name).unlink()


def emptied(registry: MemoryRegistry, host: Host, name: str) -> None:
    host.copy(name).write_bytes(b"")


def truncated(registry: MemoryRegistry, host: Host, name: str) -> None:
    content = host.copy(name).read_bytes()
    host.copy(name).write_bytes(content[: len(content) // 2])


def cut_by_one_byte(registry: MemoryRegistry, host: Host, name: str) -> None:
    host.copy(name).write_bytes(host.copy(name).read_bytes()[:-1])


def full_of_nulls(registry: MemoryRegistry, host: Host, name: str) -> None:
    host.copy(name).write_bytes(bytes(len(host.copy(name).read_bytes())))


def no_text(registry: MemoryRegistry, host: Host, name: str) -> None:
    host.copy(name).write_bytes(b"\xff\xfe\x00" * 100)


def altered(registry: MemoryRegistry, host: Host, name: str) -> None:
    head, payload, signature = host.copy(name).read_text().split(".")
    middle = len(payload) // 2
    other = "A" if payload[middle] != "A" else "B"
    host.copy(name).write_text(f"{head}.{payload[:middle]}{other}{payload[middle + 1 :]}.{signature}")


def of_another_service(registry: MemoryRegistry, host: Host, name: str) -> None:
    registry.identity("other")
    document = registry.policy_document("other") if name == POLICY else registry.jwk_set("other")
    host.copy(name).write_text(registry.sign(document))


def of_another_kind(registry: MemoryRegistry, host: Host, name: str) -> None:
    host.copy(name).write_text(registry.sign(registry.changes(0)))


def of_another_registry(registry: MemoryRegistry, host: Host, name: str) -> None:
    """Of the same trust domain, in which it has a client of its own."""
    with MemoryRegistry(registry.domain, clock=registry.clock) as other:
        host.copy(name).write_text(signed(other, name))


def of_another_domain(registry: MemoryRegistry, host: Host, name: str) -> None:
    with MemoryRegistry("other.internal", clock=registry.clock) as other:
        host.copy(name).write_text(signed(other, name))


def signed_by_somebody(registry: MemoryRegistry, host: Host, name: str) -> None:
    documents: dict[str, Document] = {KEYS: registry.jwk_set("client"), POLICY: registry.policy_document("callee")}
    document = documents.get(name, registry.registry_keys())
    host.copy(name).write_text(sign_document(document, KeyPair.generate("ES256")))


def expired(registry: MemoryRegistry, host: Host, name: str) -> None:
    end = int(registry.clock()) - 60
    if name == ROOT:
        document = sign_document(replace(registry.registry_keys(), expires_at=end), registry.root)
    elif name == POLICY:
        document = registry.sign(replace(registry.policy_document("callee"), expires_at=end))
    else:
        document = registry.sign(replace(registry.jwk_set("client"), expires_at=end))
    host.copy(name).write_text(document)


def signed(registry: MemoryRegistry, name: str) -> str:
    """Another registry's document about the same subject."""
    if name == ROOT:
        return sign_document(registry.registry_keys(), registry.root)
    registry.identity("client")
    return registry.sign(registry.policy_document("callee") if name == POLICY else registry.jwk_set("client"))


SPOILED: list[Spoil] = [
    removed, emptied, truncated, cut_by_one_byte, full_of_nulls, no_text, altered, of_another_service, of_another_kind,
    of_another_registry, of_another_domain, signed_by_somebody, expired,
]  # fmt: skip


@pytest.mark.parametrize("name", [KEYS, POLICY, ROOT])
@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_copy_is_not_believed_but_the_registry_is_when_it_is_back(
    registry: MemoryRegistry, host: Host, clock: Clock, name: str, spoil: Spoil
) -> None:
    """And what it says takes the copy's place."""
    spoil(registry, host, name)
    registry.down = True
    host.start()
    with pytest.raises(TrustUnavailable):
        host.call()
    registry.down = False
    registry.calls.clear()
    clock.advance(LIMITS.cooldown)
    assert host.call() == "client"
    assert registry.calls[ASKED[name]] == 1
    registry.down = True
    host.start()
    assert host.call() == "client"
    assert registry.calls == ONE_QUESTION


# ---- copies that were good once


def put_back(host: Host, name: str, content: bytes, at: float) -> None:
    """As it was before, its file's time included or made up."""
    host.copy(name).write_bytes(content)
    os.utime(host.copy(name), (at, at))


@pytest.fixture(params=["its own time", "the time now", "a time to come"])
def at(request: pytest.FixtureRequest, clock: Clock) -> float:
    """The time that the file of an older copy shows."""
    return {"its own time": clock.now, "the time now": clock.now + 60, "a time to come": clock.now + 7200}[
        request.param
    ]


class TestOlderCopies:
    """Put back by a backup, or by a user who can write there."""

    def test_keys_from_before_a_revocation(
        self, registry: MemoryRegistry, client: Identity, host: Host, clock: Clock, at: float
    ) -> None:
        before = host.copy(KEYS).read_bytes()
        registry.revoke(client.credentials.key_id)
        clock.advance(60)
        host.trust.refresh()
        put_back(host, KEYS, before, at)
        host.starts_in_vain(registry, clock)
        with pytest.raises(RevokedKey):
            host.call()

    def test_a_policy_from_before_it_was_narrowed(
        self, registry: MemoryRegistry, host: Host, clock: Clock, at: float
    ) -> None:
        before = host.copy(POLICY).read_bytes()
        registry.set_policy("callee", {"somebody-else": {"read"}})
        clock.advance(60)
        host.trust.refresh()
        put_back(host, POLICY, before, at)
        host.starts_in_vain(registry, clock)
        with pytest.raises(CallerNotAllowed):
            host.call()

    @pytest.mark.parametrize("name", [KEYS, POLICY])
    def test_one_past_the_offline_limit(self, registry: MemoryRegistry, host: Host, clock: Clock, name: str) -> None:
        """However young its file is."""
        clock.advance(LIMITS.offline_limit)
        os.utime(host.copy(name), (clock.now, clock.now))
        host.starts_in_vain(registry, clock)
        assert host.call() == "client"


# ---- the folder itself


def test_copies_are_for_their_owner_alone(host: Host) -> None:
    folder = host.copy(KEYS).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_another_registry_has_another_folder(
    registry: MemoryRegistry, host: Host, clock: Clock, tmp_path: Path
) -> None:
    with MemoryRegistry(registry.domain, clock=clock) as other:
        other.set_policy("callee", {"client": {"read"}})
        elsewhere = Host(other, other.identity("client"), tmp_path / "cache")
        assert elsewhere.call() == "client"
    registry.down = True
    host.start()
    assert host.call() == "client"


class TestOlderCopiesOfTheRoot:
    def test_registry_keys_from_before_one_was_dropped(
        self, registry: MemoryRegistry, host: Host, clock: Clock, at: float
    ) -> None:
        """A thief of that key can sign any document with it."""
        before, stolen = host.copy(ROOT).read_bytes(), registry.signing_key
        registry.roll_signing_key()
        clock.advance(60)
        host.trust.refresh()
        forged = {KEYS: registry.jwk_set("client"), POLICY: registry.policy_document("callee")}
        put_back(host, ROOT, before, at)
        for name, document in forged.items():
            put_back(host, name, sign_document(document, stolen).encode(), at)
        host.starts_in_vain(registry, clock)
        assert host.call() == "client"


def test_a_folder_of_another_user_is_not_used(
    registry: MemoryRegistry, host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(host.copy(KEYS).parent, 65534, 65534)
    host.start()
    assert host.call() == "client"
    assert f"not owned by uid {os.geteuid()}" in caplog.text
