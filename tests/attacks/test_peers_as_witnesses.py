"""A registry that shows two histories wants its services not to tell each other: impostors, floods, lost calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import requests

from peerseal import Identity, PeersealError, TrustLimits, TrustStore
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url, strict_json_object
from peerseal.protocol.ledger.split_view import decode_cp
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.testing import MemoryRegistry
from peerseal.trust.peer_checkpoints import SplitView
from peerseal.verify.response import ResponseHead, ResponseVerifier
from tests.support.signed_answers import CALLEE, CALLER, WAYS, Sent, Way, World, signing_service
from tests.support.two_histories import grow, second_view
from tests.support.waiting import until

LIMITS = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0, cooldown=0.0)
X = "test.internal/x"


def kid_of(service: str, number: int = 0) -> str:
    """A key of that service: another number is another key."""
    return f"{service}/{b64url(number.to_bytes(32))}"


def cp_of(registry: MemoryRegistry, size: int | None = None) -> str:
    """The checkpoint of that many entries, as peers tell it."""
    return b64url(registry.ledger.checkpoint(size).encode())


def claims_of(token: str) -> dict[str, Any]:
    return strict_json_object(jose.parse(token).payload)


def tells(token: str) -> bool:
    """Whether the token tells a checkpoint."""
    claims = claims_of(token)
    return "cp" in claims and decode_cp(claims["cp"]).startswith("test.internal\n")


def sharing(registry: MemoryRegistry, service: str) -> Identity:
    """A service that follows the ledger and shares what it sees."""
    identity = registry.identity(service, share_checkpoints=True, limits=LIMITS)
    until(lambda: identity.trust.reader.ledger.newest is not None, what="the ledger")
    return identity


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry("test.internal") as made:
        grow(made, 3)
        yield made


class TestAnImpostorOfACaller:
    """The registry gives it a key of x, in the history that it shows the victim."""

    def test_takes_no_telling_of_the_honest_one(self, registry: MemoryRegistry) -> None:
        sharing(registry, "x")
        with second_view(registry) as lie:
            victim, impostor, other = sharing(lie, "victim"), lie.identity("x"), lie.identity("x")

            def answered(caller: Identity) -> bool:
                request = caller.sign_request("victim", method="GET", target="/")
                return tells(victim.sign_response(request, caller=X, status=204))

            assert answered(impostor)
            assert not answered(impostor)
            assert answered(other), "a second key of the same service"
            assert tells(victim.sign_request("x", method="GET", target="/"))
            assert not tells(victim.sign_request("x", method="GET", target="/"))


class TestAnImpostorOfACallee:
    def answered(self, caller: Identity, callee: Identity, registry: MemoryRegistry) -> bool:
        """Whether the request to x told a checkpoint, which this key of x answers."""
        request = caller.sign_request("x", method="GET", target="/")
        answer = callee.sign_response(request, caller=caller.id, status=204)
        verifier = ResponseVerifier(caller.trust, caller=caller.service, audience="x", clock=registry.clock)
        verifier.verify(ResponseHead(204, ((RESPONSE_HEADER, answer),)), request_token=request, body=b"")
        return tells(request)

    def test_takes_no_telling_of_the_honest_one(self, registry: MemoryRegistry) -> None:
        victim, impostor, honest = sharing(registry, "victim"), registry.identity("x"), registry.identity("x")
        victim.trust.watch([X])
        assert self.answered(victim, impostor, registry)
        assert not self.answered(victim, impostor, registry)
        assert not self.answered(victim, honest, registry), "it was not told, as its answer shows"
        assert self.answered(victim, honest, registry)
        both = [self.answered(victim, callee, registry) for callee in (impostor, honest, honest, impostor)]
        assert not any(both), "each key of a service with several is told once"


class TestFloods:
    """Of a registry that signs as many checkpoints and mints as many services as it likes."""

    @contextmanager
    def victim(self, registry: MemoryRegistry) -> Iterator[tuple[TrustStore, list[SplitView], MemoryRegistry]]:
        """A service of one side that the honest x has told a larger checkpoint of the other, which waits."""
        with second_view(registry) as other:
            found = list[SplitView]()
            trust = registry.trust_store(limits=LIMITS, on_split_view=found.append)
            trust.follow_ledger()
            grow(registry, 2, caller="us")
            grow(other, 5, caller="them")
            hears(trust, [(cp_of(other), kid_of(X))], waiting=1)
            yield trust, found, other

    def found_after(self, registry: MemoryRegistry, trust: TrustStore, found: list[SplitView]) -> None:
        """Once this side has grown past it, the split view is found."""
        grow(registry, 8, caller="us")
        trust.refresh()
        trust.refresh()
        until(lambda: bool(found), what="the split view")
        assert found[0].evidence.seen[0].source == X

    def test_a_false_key_of_the_same_service_displaces_nothing(self, registry: MemoryRegistry) -> None:
        with self.victim(registry) as (trust, found, _):
            hears(trust, [(cp_of(registry), kid_of(X, 1))], waiting=1)
            self.found_after(registry, trust, found)

    @pytest.mark.parametrize("mint", [lambda i: kid_of(f"test.internal/fake{i}"), lambda i: kid_of(X, i + 1)])
    def test_more_of_them_than_there_are_places_displace_nothing_that_waits(
        self, registry: MemoryRegistry, mint: Callable[[int], str]
    ) -> None:
        with self.victim(registry) as (trust, found, _):
            hears(trust, [(cp_of(registry), mint(number)) for number in range(2_100)], waiting=1_500)
            hears(trust, [(cp_of(registry), mint(number)) for number in range(100)], waiting=1)
            self.found_after(registry, trust, found)

    def test_a_service_that_was_known_before_still_gets_a_place(self, registry: MemoryRegistry) -> None:
        with second_view(registry) as other:
            found = list[SplitView]()
            trust = registry.trust_store(limits=LIMITS, on_split_view=found.append)
            trust.follow_ledger()
            hears(trust, [(cp_of(registry), kid_of(X))], agreed=1)
            grow(registry, 2, caller="us")
            grow(other, 5, caller="them")
            later = cp_of(registry)
            hears(trust, [(later, kid_of(f"test.internal/fake{number}")) for number in range(2_100)], waiting=1_500)
            hears(trust, [(cp_of(other), kid_of(X, 7))], waiting=1)
            self.found_after(registry, trust, found)


def hears(trust: TrustStore, told: list[tuple[str, str]], **results: int) -> None:
    """The trust store hears these, until it has each result so many times more."""
    before = {result: counted(trust, result) for result in results}
    for cp, kid in told:
        trust.heard(cp, kid)
    for result, number in results.items():
        until(lambda r=result, n=number: counted(trust, r) >= before[r] + n, what=result)  # type: ignore[misc]


def counted(trust: TrustStore, result: str) -> float:
    found = [metric for metric in trust.collect_checkpoints() if metric.name == "peerseal_checkpoints_heard_total"]
    return sum(value for metric in found for labels, value in metric.samples if labels["result"] == result)


class TestACallThatFails:
    """What it told is told again by the next one; what succeeded is not."""

    @pytest.fixture(params=[True, False])
    def world(self, request: pytest.FixtureRequest) -> Iterator[tuple[World, dict[str, bool]]]:
        with signing_service() as world:
            grow(world.registry, 3)
            world.caller = sharing(world.registry, CALLER)
            yield world, {"require_signed_response": request.param}

    @pytest.mark.parametrize("way", WAYS)
    def test_a_callee_that_is_down(self, world: tuple[World, dict[str, bool]], way: Way) -> None:
        served, options = world
        url, served.url = served.url, "http://127.0.0.1:9"
        with pytest.raises(requests.ConnectionError if way is WAYS[0] else httpx.ConnectError):
            way(served, **options)
        served.url = url
        assert [self.told(served, way, options) for _ in range(3)] == [True, False, False]

    @pytest.mark.parametrize("way", WAYS)
    def test_a_request_that_is_refused(self, world: tuple[World, dict[str, bool]], way: Way) -> None:
        served, options = world
        assert self.told(served, way, options, "/invoices")
        again = not options["require_signed_response"]  # a signed refusal proves that the callee has the checkpoint
        assert [self.told(served, way, options) for _ in range(3)] == [again, False, False]

    @pytest.mark.parametrize("way", WAYS)
    def test_an_answer_of_a_proxy(self, world: tuple[World, dict[str, bool]], way: Way) -> None:
        served, options = world
        served.between = lambda sent: Sent("502 Bad Gateway", (("Content-Length", "0"),), b"", "")
        assert self.told(served, way, {**options, "retries": 0} if way is not WAYS[1] else options)
        served.between = lambda sent: sent
        assert [self.told(served, way, options) for _ in range(3)] == [True, False, False]

    @pytest.mark.parametrize("way", WAYS)
    def test_one_that_says_nothing_takes_nothing_back(self, world: tuple[World, dict[str, bool]], way: Way) -> None:
        served, options = world
        assert self.told(served, way, options)
        assert not self.told(served, way, options, "/invoices")
        assert not self.told(served, way, options)

    def told(self, world: World, way: Way, options: dict[str, Any], path: str = "/orders") -> bool:
        """Whether the last request of one more call told a checkpoint."""
        with suppress(PeersealError):
            way(world, path, **options)
        return tells(world.sent[-1].request_token)


def test_a_token_that_is_too_long_uses_nothing_up(registry: MemoryRegistry) -> None:
    caller = sharing(registry, CALLER)

    def signed(length: int) -> bool:
        return tells(caller.sign_request(CALLEE, method="GET", target="/", headers={"x-long": "y" * length}))

    assert [signed(length) for length in (3_000, 10, 10)] == [False, True, False]
    sent = [metric.samples[0][1] for metric in caller.collect() if metric.name == "peerseal_checkpoints_sent_total"]
    assert sent == [1.0]
