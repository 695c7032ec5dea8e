"""A mirror of all that a registry publishes: files that peers believe, and which no one can alter unseen."""

import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from peerseal import TrustLimits, TrustStore
from peerseal.audit.public_mirror import LISTS_EVERY, RENEW_AFTER, MirrorUpdate, PublicMirror
from peerseal.audit.serving import served
from peerseal.errors import DocumentRefused, FetchError, RevokedKey, TrustUnavailable
from peerseal.protocol.documents.key_set import part_of
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id
from peerseal.transport.fetch import Answer, HttpFetcher
from registry.limits import Limits
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.registry.in_process import InProcess
from tests.support.keys import key

DAY = 86_400
QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)
BILLING = service_id(DOMAIN, "billing")


@pytest.fixture
def billing(registry: Driver) -> KeyPair:
    return registry.joined(key(), "billing")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def mirror_of(registry: Driver, folder: Path) -> PublicMirror:
    return PublicMirror(folder, InProcess(registry), registry.pin, clock=registry.clock)


@pytest.fixture
def mirror(registry: Driver, billing: KeyPair, folder: Path) -> PublicMirror:
    """A mirror that is up to date."""
    mirror = mirror_of(registry, folder)
    assert mirror.update().failed == 0
    return mirror


@pytest.fixture
def trust(registry: Driver, mirror: PublicMirror, folder: Path) -> Iterator[TrustStore]:
    """A peer that knows the mirror alone, served as plain files."""
    with served(folder, "127.0.0.1:0") as port:
        store = peer_of(registry, port)
        yield store
        store.stop()


def peer_of(registry: Driver, port: int | None) -> TrustStore:
    fetcher = HttpFetcher([f"http://127.0.0.1:{port}"])
    return TrustStore("http://mirror", pin=registry.pin, limits=QUIET, clock=registry.clock, fetcher=fetcher)


def kid_of(pair: KeyPair, service: str = "billing") -> str:
    return make_kid(service_id(DOMAIN, service), pair.public.thumbprint)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_peer_that_knows_the_mirror_alone_believes_its_documents(trust: TrustStore, billing: KeyPair) -> None:
    assert trust.key(kid_of(billing)).kid == kid_of(billing)
    assert trust.recorded_key(kid_of(billing)).kid == kid_of(billing)
    assert trust.policy(BILLING) is None
    assert trust.settings().minters == frozenset()


def test_a_mirror_has_the_bytes_of_the_registry(
    registry: Driver, billing: KeyPair, mirror: PublicMirror, folder: Path
) -> None:
    statement = f"/v1/services/billing/keys/{billing.public.thumbprint}.jwt"
    of_domain = ("/v1/domain.jwt", "/v1/federation.jwt")
    for path in ("/v1/services/billing/jwks.jwt", "/v1/services/billing/policy.jwt", *of_domain, statement):
        assert (folder / path[1:]).read_bytes() == registry.client.get(path).data, path
    for path in (
        "/.well-known/peerseal-registry",
        "/ledger/checkpoint",
        "/ledger/tile/0/000.p/{}",
        "/ledger/tile/entries/000.p/{}",
    ):
        at = path.format(registry.key_set("billing").seq)
        assert (folder / at[1:]).read_bytes() == registry.client.get(at).data, path


def test_a_mirror_keeps_the_statements_of_keys_admitted_in_the_time_that_it_is_told(
    registry: Driver, billing: KeyPair, folder: Path, clock: Clock
) -> None:
    def statements() -> set[str]:
        return {file.stem for file in (folder / "v1/services/billing/keys").glob("*.jwt")}

    mirror = PublicMirror(folder, InProcess(registry), registry.pin, statements_for=DAY, clock=clock)
    mirror.update()
    assert statements() == {billing.public.thumbprint}
    clock.forward(DAY + 1)
    newer = registry.joined(key(), "billing")
    mirror.update()
    assert statements() == {newer.public.thumbprint}
    assert mirror_of(registry, folder).update().failed == 0
    assert statements() == {billing.public.thumbprint, newer.public.thumbprint}, "a mirror of all of them"
    PublicMirror(folder, InProcess(registry), registry.pin, statements_for=DAY, clock=clock).update()
    assert statements() == {newer.public.thumbprint}, "left by the process before"


def test_a_mirror_without_statements_has_none(registry: Driver, billing: KeyPair, folder: Path) -> None:
    mirror_of(registry, folder).update()
    assert list(folder.rglob("keys/*.jwt"))
    PublicMirror(folder, InProcess(registry), registry.pin, statements_for=0.0, clock=registry.clock).update()
    assert not list(folder.rglob("keys/*.jwt"))


def test_a_peer_of_the_mirror_learns_of_a_revocation(
    registry: Driver, billing: KeyPair, mirror: PublicMirror, trust: TrustStore, clock: Clock
) -> None:
    other = registry.joined(key(), "billing")
    mirror.update()
    trust.key(kid_of(billing))
    registry.operator_ends(billing, "billing")
    clock.forward(1)
    assert mirror.update().written > 0
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kid_of(billing))
    assert trust.key(kid_of(other)).kid == kid_of(other)


def test_a_cold_start_from_the_mirror_hours_after_the_last_change(
    registry: Driver, billing: KeyPair, mirror: PublicMirror, folder: Path, clock: Clock
) -> None:
    for hour in range(5):
        registry.joined(key(), f"other{hour}")
        clock.forward(3600)
    mirror.update()
    with served(folder, "127.0.0.1:0") as port:
        store = peer_of(registry, port)
        assert store.key(kid_of(billing)).kid == kid_of(billing)
        store.stop()


def test_what_the_mirror_said_last_is_believed_for_the_offline_limit(
    registry: Driver, billing: KeyPair, mirror: PublicMirror, folder: Path, clock: Clock
) -> None:
    with served(folder, "127.0.0.1:0") as port:
        clock.forward(QUIET.offline_limit - 60)
        early = peer_of(registry, port)
        assert early.key(kid_of(billing)).kid == kid_of(billing)
        early.stop()
        clock.forward(120)
        late = peer_of(registry, port)
        with pytest.raises(TrustUnavailable):
            late.key(kid_of(billing))
        late.stop()


def test_an_update_without_a_change_writes_no_document(mirror: PublicMirror, clock: Clock) -> None:
    assert mirror.update().written == 0
    clock.forward(LISTS_EVERY)
    assert mirror.update().written == 0


def test_a_mirror_that_starts_again_fetches_only_what_changed(
    registry: Driver, mirror: PublicMirror, folder: Path, clock: Clock
) -> None:
    assert mirror_of(registry, folder).update().written == 0
    registry.joined(key(), "shipping")
    clock.forward(1)
    found = mirror_of(registry, folder).update()
    assert found == MirrorUpdate(registry.key_set("shipping").seq, 3, 3, 0)


def test_documents_are_renewed_before_they_expire(
    mirror: PublicMirror, trust: TrustStore, billing: KeyPair, clock: Clock
) -> None:
    for _ in range(4):
        clock.forward(RENEW_AFTER)
        assert mirror.update().written > 0
    assert trust.key(kid_of(billing)).kid == kid_of(billing)


def test_a_restricted_policy_is_not_in_the_mirror(
    registry: Driver, mirror: PublicMirror, folder: Path, clock: Clock
) -> None:
    file = folder / "v1/services/billing/policy.jwt"
    assert file.exists()
    body = {"allow": {"shipping": []}, "restricted": True}
    answer = registry.client.put(
        "/v1/services/billing/policy", json=body, headers={**registry.operator, "If-Match": '"0"'}
    )
    assert answer.status_code == 200
    clock.forward(1)
    assert mirror.update().failed == 0
    assert not file.exists()


def test_a_mirror_follows_a_mirror(
    registry: Driver, mirror: PublicMirror, folder: Path, billing: KeyPair, tmp_path: Path
) -> None:
    with served(folder, "127.0.0.1:0") as port:
        fetcher = HttpFetcher([f"http://127.0.0.1:{port}"])
        second = PublicMirror(tmp_path / "second", fetcher, registry.pin, clock=registry.clock)
        assert second.update().failed == 0
    assert files_in(tmp_path / "second") == files_in(folder)


def altered(folder: Path) -> None:
    file = folder / "v1/services/billing/jwks.jwt"
    head, payload, signature = file.read_text().split(".")
    file.write_text(f"{head}.{payload[:-2]}AA.{signature}")


def truncated(folder: Path) -> None:
    file = folder / "v1/services/billing/jwks.jwt"
    file.write_bytes(file.read_bytes()[:100])


def foreign(folder: Path) -> None:
    shutil.copy(folder / "v1/services/billing/policy.jwt", folder / "v1/services/billing/jwks.jwt")


def without_root(folder: Path) -> None:
    (folder / ".well-known/peerseal-registry").write_bytes(b"<html>")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (altered, "document_bad_signature"),
        (truncated, "document_malformed"),
        (foreign, "document_wrong_type"),
        (without_root, "document_malformed"),
    ],
)
def test_files_that_were_changed_are_refused(
    trust: TrustStore, billing: KeyPair, folder: Path, spoil, code: str
) -> None:  # type: ignore[no-untyped-def]
    spoil(folder)
    with pytest.raises(TrustUnavailable) as refused:
        trust.key(kid_of(billing))
    assert code in str(refused.value)


def test_files_from_before_a_revocation_are_refused(
    registry: Driver, billing: KeyPair, mirror: PublicMirror, trust: TrustStore, folder: Path, clock: Clock
) -> None:
    file = folder / "v1/services/billing/jwks.jwt"
    old = file.read_bytes()
    registry.operator_ends(billing, "billing")
    clock.forward(60)
    mirror.update()
    file.write_bytes(old)
    with pytest.raises(TrustUnavailable) as refused:
        trust.key(kid_of(billing))
    assert "document_rolled_back" in str(refused.value)


def test_a_registry_with_another_root_does_not_replace_the_mirror(
    registry: Driver, mirror: PublicMirror, folder: Path, clock: Clock
) -> None:
    before = files_in(folder)
    registry.joined(key(), "shipping")
    clock.forward(1)
    with pytest.raises(DocumentRefused) as refused:
        PublicMirror(folder, InProcess(registry), "A" * 43, clock=clock).update()
    assert refused.value.code == "document_wrong_root"
    assert files_in(folder) == before


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_the_mirror_s_own_server_shows_published_files_alone(mirror: PublicMirror, folder: Path) -> None:
    (folder / "lost-1-00").mkdir()
    (folder / "lost-1-00" / "checkpoint").write_text("lost")
    (folder.parent / "secret").write_text("secret")
    with served(folder, "127.0.0.1:0") as port:
        url = f"http://127.0.0.1:{port}"
        answer = requests.get(f"{url}/v1/services/billing/jwks.jwt?seq=2", timeout=5)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/jwt")
        assert requests.get(f"{url}/.well-known/peerseal-registry", timeout=5).status_code == 200
        for path in (
            "/",
            "/v1",
            "/.lock",
            "/%2elock",
            "/lost-1-00/checkpoint",
            "/%6cost-1-00/checkpoint",
            "/../secret",
            "/%2e%2e/secret",
            "/v1/..%2f..%2fsecret",
        ):
            sent = requests.Request("GET", url).prepare()
            sent.url = url + path
            with requests.Session() as session:
                assert session.send(sent, timeout=5).status_code == 404, path


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_the_mirror_s_own_server_listens_on_ipv6(mirror: PublicMirror, folder: Path) -> None:
    with served(folder, "[::1]:0") as port:
        assert requests.get(f"http://[::1]:{port}/ledger/checkpoint", timeout=20).status_code == 200


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_gateway_that_refuses_for_a_while_takes_no_document_away(
    registry: Driver, billing: KeyPair, folder: Path, clock: Clock, status: int
) -> None:
    source = Gateway(registry)
    mirror = PublicMirror(folder, source, registry.pin, clock=clock)
    assert mirror.update().failed == 0
    before = (folder / "v1/services/billing/jwks.jwt").read_bytes()
    added = registry.joined(key(), "billing")
    clock.forward(1)
    source.refuses = status
    found = mirror.update()
    assert found.failed > 0
    assert (folder / "v1/services/billing/jwks.jwt").read_bytes() == before
    source.refuses = None
    clock.forward(1)
    assert mirror.update().failed == 0
    assert (folder / f"v1/services/billing/keys/{added.public.thumbprint}.jwt").exists()


class Gateway(InProcess):
    """It answers questions for key sets and statements with that status, while there is one."""

    refuses: int | None = None

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        if self.refuses is not None and ("jwks.jwt" in path or "/keys/" in path):
            return Answer(self.refuses, b"")
        return super().call(method, path, body=body, headers=headers)


def test_a_list_of_another_block_is_not_written(
    registry: Driver, mirror: PublicMirror, folder: Path, clock: Clock
) -> None:
    source = Gateway(registry)
    source.call = lambda method, path, **options: InProcess.call(  # type: ignore[method-assign]
        source, method, path.replace("/v1/current/0.jwt", "/v1/current/1.jwt"), **options
    )
    clock.forward(LISTS_EVERY)
    before = files_in(folder)
    with pytest.raises((DocumentRefused, FetchError)):
        PublicMirror(folder, source, registry.pin, clock=clock).update()
    assert files_in(folder)["v1/current/0.jwt"] == before["v1/current/0.jwt"]


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_more_connections_than_it_has_places_for_do_not_end_the_mirror_s_server(
    mirror: PublicMirror, folder: Path
) -> None:
    with served(folder, "127.0.0.1:0") as port, ExitStack() as opened:
        for _ in range(250):
            opened.enter_context(socket.create_connection(("127.0.0.1", port or 0), timeout=5))
        opened.close()
        answer = requests.get(f"http://127.0.0.1:{port}/ledger/checkpoint", timeout=20)
        assert answer.status_code == 200


# a service with many keys


def test_the_parts_of_a_large_set_are_mirrored_and_a_peer_finds_its_keys(
    registry_database: str, tmp_path: Path, folder: Path, clock: Clock
) -> None:
    registry = Driver(registry_database, tmp_path / "home", clock, limits=Limits(keys_in_set=3))
    made = [registry.joined(key(), "billing") for _ in range(5)]
    mirror = mirror_of(registry, folder)
    assert mirror.update().failed == 0
    numbers = sorted({part_of(one.public.thumbprint) for one in made})
    files = {file.name: file.read_bytes() for file in (folder / "v1/services/billing/jwks").iterdir()}
    assert sorted(files) == sorted(f"{number}.jwt" for number in numbers)
    assert all(
        files[f"{number}.jwt"] == registry.client.get(f"/v1/services/billing/jwks/{number}.jwt").data
        for number in numbers
    )
    with served(folder, "127.0.0.1:0") as port:
        trust = peer_of(registry, port)
        assert [trust.key(kid_of(one)).kid for one in made] == [kid_of(one) for one in made]
        registry.operator_ends(made[0], "billing")
        clock.forward(1)
        assert mirror.update().failed == 0
        changed = {file.name for file in (folder / "v1/services/billing/jwks").iterdir()} & {
            name for name, body in files.items() if (folder / "v1/services/billing/jwks" / name).read_bytes() != body
        }
        assert changed == {f"{part_of(made[0].public.thumbprint)}.jwt"}
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(kid_of(made[0]))
        assert trust.key(kid_of(made[1])).kid == kid_of(made[1])
        trust.stop()
    registry.close()
