"""Trees of keys that vouched for one another."""

from registry.domain.keys import KeyRecord
from registry.domain.vouching import Branch, trees


def key(number: int, voucher: int | None = None) -> KeyRecord:
    by = {"join_token": "x"} if voucher is None else {"kid": f"acme.internal/shop/{voucher}"}
    return KeyRecord(str(number), "shop", b"", number, by, 0, 1, 1)


def shape(branch: Branch) -> tuple[list[int], list[object]]:
    return [each.admitted_seq for each in branch.keys], [shape(each) for each in branch.branches]


def test_a_chain_is_one_branch_and_several_keys_of_one_voucher_are_branches() -> None:
    records = [key(6, 4), key(5, 3), key(4, 2), key(3, 2), key(2, 1), key(1)]
    assert [shape(each) for each in trees(records, 5)] == [([1, 2], [([3, 5], []), ([4, 6], [])])]


def test_a_key_whose_voucher_is_not_shown_begins_a_tree() -> None:
    assert [shape(each) for each in trees([key(5, 4), key(4, 3), key(2)], 5)] == [([2], []), ([4, 5], [])]


def test_branches_below_the_depth_are_counted_and_not_shown() -> None:
    records = [key(1), key(2, 1), key(3, 1), key(4, 2), key(5, 2), key(6, 5)]
    [top] = trees(records, 2)
    assert [(shape(each), each.more) for each in top.branches] == [(([2], []), 3), (([3], []), 0)]
    [top] = trees(records, 1)
    assert (shape(top), top.more) == (([1], []), 5)


def test_a_caterpillar_of_any_length_stays_within_the_depth() -> None:
    records = [key(1)]
    for number in range(1, 2000, 2):
        records += [key(number + 1, number), key(number + 2, number)]
    [top] = trees(records, 3)
    deepest, depth = top, 1
    while deepest.branches:
        deepest, depth = deepest.branches[-1], depth + 1
    assert depth == 3


def test_keys_that_vouch_for_themselves_in_altered_rows_end_nothing() -> None:
    assert [shape(each) for each in trees([key(1, 2), key(2, 1), key(3, 3)], 5)] == [([1, 2], []), ([3], [])]
