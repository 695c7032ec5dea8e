"""Mirrors that lie, on real sockets: each false answer has its own code, and the store goes on to the next mirror."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import DocumentRefused, FetchError, PeersealError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.runtime.limits import FetchLimits
from peerseal.testing import Clock, MemoryRegistry
from peerseal.transport.fetch import Answer, HttpFetcher, content
from tests.peerseal.served import served
from tests.support import wire

QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=300.0)
OWNER = "test.internal/client"
SET = "/v1/services/client/jwks.jwt"
ROOT = "/.well-known/peerseal-registry"


class Mirror:
    """A second URL of the same registry, which answers some paths (without their query) as it likes."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self.registry = registry
        self.answers: dict[str, Answer] = {}

    def call(self, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """As the registry's own."""
        false = self.answers.get(path.partition("?")[0])
        return false or self.registry.call(method, path, body=body, headers=headers)

    def replays(self, path: str) -> None:
        """Go on giving the answer of this moment."""
        self.answers[path.partition("?")[0]] = self.registry.call("GET", path)


class Two(NamedTuple):
    """A store that asks a mirror first, which may lie, and then an honest one."""

    registry: MemoryRegistry
    clock: Clock
    lying: Mirror
    lying_url: str
    honest_url: str
    trust: TrustStore
    kid: str

    def lies(self, path: str, body: str | bytes, status: int = 200) -> None:
        self.lying.answers[path] = Answer(status, body if isinstance(body, bytes) else body.encode())

    def statement(self) -> KeyStatement:
        return self.trust.document(KeyStatement, path_of(self.kid), OWNER)


def path_of(kid: str) -> str:
    return f"/v1/services/client/keys/{kid.rpartition('/')[2]}.jwt"


@contextmanager
def mirrored(registry: MemoryRegistry, clock: Clock, *, honest_too: bool = True) -> Iterator[Two]:
    kid, lying = registry.identity("client").credentials.key_id, Mirror(registry)
    with served(lying) as lying_url, served(registry) as honest_url:  # type: ignore[arg-type]
        urls = [lying_url, honest_url] if honest_too else [lying_url]
        trust = TrustStore(urls, pin=registry.pin, limits=QUIET, clock=clock)
        yield Two(registry, clock, lying, lying_url, honest_url, trust, kid)
        trust.stop()


@pytest.fixture
def two() -> Iterator[Two]:
    clock = Clock()
    with MemoryRegistry(clock=clock) as registry, mirrored(registry, clock) as two:
        yield two


@pytest.fixture
def alone() -> Iterator[Two]:
    """The lying mirror is the only one."""
    clock = Clock()
    with MemoryRegistry(clock=clock) as registry, mirrored(registry, clock, honest_too=False) as two:
        yield two


def passed_over(two: Two, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The codes with which answers were refused, all of them the lying mirror's."""
    messages = [record.getMessage() for record in caplog.records if record.name == "peerseal.fetch"]
    assert all(message.startswith(two.lying_url) for message in messages), messages
    return [message.partition("(")[2].partition(")")[0] for message in messages]


# ---- what a mirror can serve in the place of a document

Lie = Callable[[Two, str], bytes]


def altered(two: Two, jws: str) -> bytes:
    head, payload, signature = jws.split(".")
    at = len(payload) // 2
    return f"{head}.{payload[:at]}{'A' if payload[at] != 'A' else 'B'}{payload[at + 1 :]}.{signature}".encode()


def re_signed(two: Two, jws: str) -> bytes:
    with MemoryRegistry(clock=two.clock) as impostor:
        impostor.identity("client")
        return impostor.sign(impostor.changes(0)).encode()


def truncated(two: Two, jws: str) -> bytes:
    return jws[: len(jws) // 2].encode()


def empty(two: Two, jws: str) -> bytes:
    return b""


def a_page(two: Two, jws: str) -> bytes:
    return b"<html>Welcome</html>"


def of_another_kind(two: Two, jws: str) -> bytes:
    return two.registry.sign(two.registry.registry_keys()).encode()


LIES: list[tuple[Lie, str]] = [
    (altered, "document_bad_signature"),
    (re_signed, "document_wrong_type"),
    (truncated, "document_malformed"),
    (empty, "document_malformed"),
    (a_page, "document_malformed"),
    (of_another_kind, "document_wrong_type"),
]


@pytest.mark.parametrize(("lie", "code"), LIES, ids=[lie.__name__ for lie, _ in LIES])
class TestAnyDocument:
    def test_a_jwk_set_is_had_from_the_next_mirror(
        self, two: Two, caplog: pytest.LogCaptureFixture, lie: Lie, code: str
    ) -> None:
        two.lies(SET, lie(two, two.registry.sign(two.registry.jwk_set("client"))))
        assert two.trust.key(two.kid).kid == two.kid
        assert passed_over(two, caplog) == [code]

    def test_a_statement_is_had_from_the_next_mirror(
        self, two: Two, caplog: pytest.LogCaptureFixture, lie: Lie, code: str
    ) -> None:
        two.lies(path_of(two.kid), lie(two, two.registry.sign(two.registry.statement(two.kid))))
        assert two.statement().kid == two.kid
        assert passed_over(two, caplog) == [code]

    def test_changes_are_had_from_the_next_mirror(
        self, two: Two, caplog: pytest.LogCaptureFixture, lie: Lie, code: str
    ) -> None:
        two.trust.key(two.kid)
        two.registry.revoke(two.kid)
        if lie is re_signed:
            code = "document_unknown_signer"
        two.lies("/v1/changes", lie(two, two.registry.sign(two.registry.changes(2))))
        two.trust.refresh()
        with pytest.raises(RevokedKey):
            two.trust.key(two.kid)
        assert passed_over(two, caplog) == [code]

    def test_where_there_is_no_other_it_is_refused_with_its_code(self, alone: Two, lie: Lie, code: str) -> None:
        alone.lies(path_of(alone.kid), lie(alone, alone.registry.sign(alone.registry.statement(alone.kid))))
        with pytest.raises(DocumentRefused) as caught:
            alone.statement()
        assert caught.value.code == code


class TestOldDocuments:
    def test_one_from_before_a_revocation_is_passed_over(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.trust.key(two.kid)
        two.lying.replays(SET)
        two.registry.revoke(two.kid)
        two.trust.refresh()
        with pytest.raises(RevokedKey):
            two.trust.key(two.kid)
        assert passed_over(two, caplog) == ["document_rolled_back"]

    def test_changes_from_before_it_are_passed_over(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.trust.key(two.kid)
        two.lying.replays("/v1/changes?since=2")
        two.registry.revoke(two.kid)
        two.statement()  # which shows that the ledger has three entries
        two.trust.refresh()
        with pytest.raises(RevokedKey):
            two.trust.key(two.kid)
        assert passed_over(two, caplog) == ["document_rolled_back"]

    def test_one_that_has_expired_is_passed_over(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.lying.replays(SET)
        two.clock.advance(24 * 3600 + 31)
        assert two.trust.key(two.kid).kid == two.kid
        assert passed_over(two, caplog) == ["document_expired"]

    def test_a_list_signed_too_long_ago_is_passed_over(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.lying.replays(SET)
        two.lying.replays("/v1/current/0.jwt")
        two.clock.advance(QUIET.offline_limit)
        assert two.trust.key(two.kid).kid == two.kid
        assert passed_over(two, caplog) == ["document_stale"]

    def test_an_older_root_document_does_not_keep_a_dropped_key_alive(
        self, two: Two, caplog: pytest.LogCaptureFixture
    ) -> None:
        two.lying.replays(ROOT)
        old = two.registry.sign(two.registry.statement(two.kid))
        assert two.statement().kid == two.kid
        two.registry.roll_signing_key()
        two.clock.advance(QUIET.cooldown)
        assert two.statement().kid == two.kid
        two.lies(path_of(two.kid), old)
        two.clock.advance(QUIET.cooldown)
        assert two.statement().kid == two.kid
        assert "document_unknown_signer" in passed_over(two, caplog)

    def test_a_root_document_older_than_one_seen_is_passed_over(
        self, two: Two, caplog: pytest.LogCaptureFixture
    ) -> None:
        two.lying.replays(ROOT)
        two.registry.roll_signing_key(keep_old=True)
        two.lying.answers, kept = {}, two.lying.answers
        assert two.statement().kid == two.kid
        two.lying.answers = kept
        two.clock.advance(QUIET.refresh_interval + 1)
        two.trust.refresh()
        assert passed_over(two, caplog) == ["document_rolled_back"]


class TestForeignDocuments:
    def test_of_another_service(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.registry.identity("other")
        two.lies(SET, two.registry.sign(two.registry.jwk_set("other")))
        assert two.trust.key(two.kid).kid == two.kid
        assert passed_over(two, caplog) == ["document_wrong_subject"]

    def test_of_another_registry(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        with MemoryRegistry(clock=two.clock) as impostor:
            impostor.identity("client")
            two.lies(SET, impostor.sign(impostor.jwk_set("client")))
            two.lies(ROOT, impostor.call("GET", ROOT).body)
        assert two.trust.key(two.kid).kid == two.kid
        assert passed_over(two, caplog)[:2] == ["document_wrong_root", "document_unknown_signer"]

    def test_changes_after_another_entry(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.trust.key(two.kid)
        two.registry.revoke(two.kid)
        two.lies("/v1/changes", two.registry.sign(two.registry.changes(3)))
        two.trust.refresh()
        with pytest.raises(RevokedKey):
            two.trust.key(two.kid)
        assert passed_over(two, caplog) == ["document_wrong_subject"]

    def test_a_proof_that_proves_nothing(self, two: Two, caplog: pytest.LogCaptureFixture) -> None:
        two.trust.key(two.kid)
        two.registry.identity("other")
        two.lies("/ledger/proof", b'{"from":2,"to":3,"proof":[]}')
        assert two.statement().kid == two.kid
        assert passed_over(two, caplog) == ["document_inconsistent"]


class TestNotThere:
    def test_one_mirrors_404_does_not_end_the_search(self, two: Two) -> None:
        for path in (SET, path_of(two.kid)):
            two.lies(path, b"{}", 404)
        assert two.trust.key(two.kid).kid == two.kid
        assert two.statement().kid == two.kid

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 503, 302])
    def test_nor_does_any_other_answer_that_is_no_document(self, two: Two, status: int) -> None:
        two.lies(SET, b"no", status)
        assert two.trust.key(two.kid).kid == two.kid

    def test_a_service_that_no_mirror_knows_is_unknown(self, two: Two) -> None:
        with pytest.raises(UnknownKey):
            two.trust.key(f"test.internal/nobody/{'A' * 43}")

    def test_it_is_unknown_as_well_where_one_of_them_is_down(self, two: Two) -> None:
        assert two.trust.domain
        two.lies("/v1/services/nobody/jwks.jwt", b"", 502)
        with pytest.raises(UnknownKey):
            two.trust.key(f"test.internal/nobody/{'A' * 43}")

    def test_a_mirror_that_leaves_statements_out_does_not_say_that_there_is_none(self, two: Two) -> None:
        assert two.trust.domain
        two.lies(path_of(two.kid), b"", 502)
        two.registry.answers[path_of(two.kid)] = Answer(404, b"")
        with pytest.raises(TrustUnavailable):
            two.trust.recorded_key(two.kid)
        two.lies(path_of(two.kid), b"", 404)
        with pytest.raises(UnknownKey):
            two.trust.recorded_key(two.kid)

    def test_it_cannot_be_told_where_one_of_them_lies(self, two: Two) -> None:
        two.lies("/v1/services/nobody/jwks.jwt", b"a.b.c")
        with pytest.raises(TrustUnavailable):
            two.trust.key(f"test.internal/nobody/{'A' * 43}")


class TestConditionalRequests:
    def test_an_unchanged_answer_costs_no_second_mirror(self, two: Two) -> None:
        two.trust.key(two.kid)
        two.registry.log.clear()
        two.clock.advance(QUIET.refresh_interval + 1)
        two.trust.refresh()
        asked = [call for call in two.registry.log if call.path.startswith(SET)]
        assert [call.path for call in asked] == [SET]
        assert "if-none-match" in asked[0].headers


# ---- answers that are too much, or too late, and which error is told where all fail

BOUNDED = FetchLimits(connect_timeout=1.0, read_timeout=0.3, total_timeout=1.0, max_bytes=10_000)


def fetched(*urls: str) -> str:
    found = HttpFetcher(urls, BOUNDED).ask("/x", lambda answer: content(answer).decode())
    assert found is not None
    return found


class TestBounds:
    def test_an_endless_answer_is_too_large_and_the_next_mirror_is_asked(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            wire.raw_server(wire.Answer(body=b"x" * 20_000)) as endless,
            wire.raw_server(wire.Answer(body=b"good")) as good,
        ):
            assert fetched(endless.url, good.url) == "good"
        assert f"{endless.url}/x is passed over (answer_too_large)" in caplog.text

    def test_a_silent_mirror_is_too_slow_and_the_next_one_is_asked(self, caplog: pytest.LogCaptureFixture) -> None:
        with ExitStack() as opened:
            silent = opened.enter_context(silent_server())
            good = opened.enter_context(wire.raw_server(wire.Answer(body=b"good")))
            assert fetched(silent, good.url) == "good"
            assert f"{silent}/x is passed over (answer_too_slow)" in caplog.text

    def test_alone_they_are_errors_of_their_own(self) -> None:
        with wire.raw_server(wire.Answer(body=b"x" * 20_000)) as endless, pytest.raises(FetchError) as caught:
            fetched(endless.url)
        assert caught.value.code == "answer_too_large"
        with silent_server() as silent, pytest.raises(FetchError) as caught:
            fetched(silent)
        assert caught.value.code == "answer_too_slow"

    def test_a_mirror_that_is_not_there_is_neither(self) -> None:
        with pytest.raises(FetchError) as caught:
            fetched("http://127.0.0.1:1")
        assert caught.value.code == "fetch_failed"


@contextmanager
def silent_server() -> Iterator[str]:
    """The URL of a port on which connections are taken, and nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class TestWhichErrorIsTold:
    @staticmethod
    def told(*outcomes: PeersealError | str | None) -> object:
        """What comes of mirrors whose answers are refused, taken, or bring nothing new."""
        with ExitStack() as opened:
            servers = [opened.enter_context(wire.raw_server()) for _ in outcomes]
            remaining = iter(outcomes)

            def read(_: Answer) -> str | None:
                outcome = next(remaining)
                if isinstance(outcome, PeersealError):
                    raise outcome
                return outcome

            try:
                return HttpFetcher([server.url for server in servers]).ask("/x", read)
            except (DocumentRefused, FetchError) as error:
                return error

    def test_a_refused_document_rather_than_one_that_could_not_be_had(self) -> None:
        refused, missing, failed = DocumentRefused("document_malformed"), FetchError("no", 404), FetchError("down")
        assert self.told(refused, missing, failed) is refused
        assert self.told(failed, missing, refused) is refused
        assert self.told(missing, failed) is missing
        assert self.told(failed, missing) is missing

    def test_the_last_of_those_that_say_as_much(self) -> None:
        first, last = DocumentRefused("document_malformed"), DocumentRefused("document_expired")
        assert self.told(first, last) is last

    def test_an_answer_that_is_taken_ends_it(self) -> None:
        assert self.told(None, FetchError("down"), "good", "not asked") == "good"

    def test_where_one_has_nothing_new_and_none_has_more_there_is_nothing_new(self) -> None:
        assert self.told(None, DocumentRefused("document_expired")) is None
        assert self.told(FetchError("down"), None) is None

    def test_any_other_error_ends_the_search(self) -> None:
        with pytest.raises(TrustUnavailable):
            self.told(TrustUnavailable("the registry's keys cannot be had"), "not asked")


def test_one_mirror_alone_is_not_reported_twice(alone: Two, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "peerseal.fetch")
    alone.lies(SET, b"a.b.c")
    with pytest.raises(TrustUnavailable):
        alone.trust.key(alone.kid)
    assert passed_over(alone, caplog) == []
