"""Which key vouched for which, as trees to show: chains of keys, and branches where a key vouched for several."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from registry.domain.keys import KeyRecord


@dataclass(frozen=True, slots=True)
class Branch:
    """A chain of keys, oldest first. Each key vouched for the next one alone; the last key vouched for the first key of
    each of ``branches``. ``more`` counts the keys below that are left out."""

    keys: Sequence[KeyRecord]
    branches: Sequence["Branch"]
    more: int = 0


def voucher_of(record: KeyRecord) -> str | None:
    """The thumbprint of the key that vouched for this one; None where another right admitted it."""
    kid = record.admitted_by.get("kid")
    return None if kid is None else kid.rpartition("/")[2]


def trees(records: Iterable[KeyRecord], depth: int) -> list[Branch]:
    """The trees that these keys make, oldest first. A key whose voucher is not among them begins a tree. ``depth`` is
    the number of branches below one another, at most."""
    below, roots, known = defaultdict[str, list[KeyRecord]](list), list[KeyRecord](), set[str]()
    for record in sorted(records, key=attrgetter("admitted_seq")):
        voucher = voucher_of(record)
        if voucher is not None and voucher in known:
            below[voucher].append(record)
        else:
            roots.append(record)
        known.add(record.thumbprint)
    return [_branch(root, below, depth) for root in roots]


def _branch(first: KeyRecord, below: Mapping[str, Sequence[KeyRecord]], depth: int) -> Branch:
    chain = [first]
    while len(following := below.get(chain[-1].thumbprint, ())) == 1:
        chain += following
    if depth > 1:
        return Branch(chain, [_branch(each, below, depth - 1) for each in following])
    return Branch(chain, (), _number(following, below))


def _number(keys: Sequence[KeyRecord], below: Mapping[str, Sequence[KeyRecord]]) -> int:
    """The number of these keys and of all below them."""
    found = list(keys)
    for each in found:  # it grows meanwhile
        found += below.get(each.thumbprint, ())
    return len(found)
