"""Caches bounded by the bytes of their values, and how well those are estimated."""

import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from peerseal.protocol.ledger.checkpoint import levels_of
from registry.services.bounded_cache import BoundedCache
from registry.services.documents.answer_cache import JWT, PublicAnswer
from registry.services.documents.tile_cache import size_of_tile

KIB = 1024


@pytest.fixture
def cache() -> BoundedCache[str, bytes]:
    return BoundedCache(100, len)


def test_it_holds_no_more_bytes_than_its_limit_and_drops_the_oldest(cache: BoundedCache[str, bytes]) -> None:
    for name in "abc":
        cache.put(name, bytes(40))
    assert [cache.get(name) is None for name in "abc"] == [True, False, False]
    assert (cache.held, len(cache)) == (80, 2)


def test_a_value_that_is_put_again_counts_once_and_is_the_newest(cache: BoundedCache[str, bytes]) -> None:
    for name, size in (("a", 40), ("b", 40), ("a", 50), ("c", 50)):
        cache.put(name, bytes(size))
    assert [cache.get(name) is None for name in "abc"] == [False, True, False]
    assert cache.held == 100


def test_a_value_larger_than_the_limit_is_not_kept_and_drops_no_other(cache: BoundedCache[str, bytes]) -> None:
    cache.put("a", bytes(40))
    assert len(cache.put("b", bytes(101))) == 101
    assert (cache.get("b"), cache.held) == (None, 40)
    cache.put("a", bytes(101))
    assert (cache.get("a"), cache.held) == (None, 0), "not the old value"


def test_after_clear_it_holds_nothing(cache: BoundedCache[str, bytes]) -> None:
    cache.put("a", bytes(40))
    cache.clear()
    assert (cache.held, len(cache)) == (0, 0)


def test_without_sizes_it_counts_its_values() -> None:
    cache: BoundedCache[int, bytes] = BoundedCache(2)
    for number in range(3):
        cache.put(number, bytes(1000))
    assert (cache.held, cache.get(0)) == (2, None)


def answers(count: int, body: int, readers: int) -> Iterator[PublicAnswer]:
    """Answers that share nothing."""
    for number in range(count):
        names = frozenset(f"domain.internal/service-{number}-{reader}" for reader in range(readers))
        place = number, number + 1, number + 2, number + 3
        yield PublicAnswer.of(f"{number:0{body}}".encode(), JWT, *place, readers=names)


@pytest.mark.parametrize(("body", "readers"), [(100, 0), (1_300, 0), (500_000, 0), (1_300, 40)])
def test_answers_take_no_more_memory_than_the_cache_counts(body: int, readers: int) -> None:
    cache: BoundedCache[tuple[str, str, str], PublicAnswer] = BoundedCache(10**9, lambda answer: answer.size)
    gc.collect()
    tracemalloc.start()
    try:
        for answer in answers(100, body, readers):
            cache.put(("statement", f"service-{answer.seq}", f"{answer.seq:043}"), answer)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.held / 4 < taken <= cache.held


def test_tiles_take_no_more_memory_than_their_cache_counts() -> None:
    tile = b"".join(number.to_bytes(32) for number in range(256))
    gc.collect()
    tracemalloc.start()
    try:
        levels = levels_of(tile)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size_of_tile(levels) / 2 < taken <= size_of_tile(levels)
    assert size_of_tile(levels) < 41 * KIB
