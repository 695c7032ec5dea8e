"""A key's life: ``pending → active → retired``, and from each of the last two ``→ revoked``. All rules are here.

- The sender of a pending key has proven to hold it, and nothing else (`Applicant`). An operator admits it, or it
  expires without a trace.
- An active key retires at its natural end without an entry, or sooner by an entry. Its window never grows.
- A revoked key stays revoked, and no key becomes active again. A transition that is not possible changes nothing.
- A service's key ends only itself. With a revoked key fall all keys that it vouched for, and so on.

The use cases store the results of these functions, and `registry.domain.rebuild` reads entries by them.
"""

from collections.abc import Mapping
from dataclasses import replace

from peerseal.errors import CallerNotAllowed
from peerseal.protocol.keys import PublicKey
from registry.domain.keys import KeyRecord, KeyState


def admitted(public: PublicKey, service: str, by: Mapping[str, str], *, seq: int, start: int, end: int) -> KeyRecord:
    """A key that becomes active by the entry ``seq``, from ``start`` to its natural end."""
    return KeyRecord(public.thumbprint, service, public.spki, seq, by, start, end, end)


def retired(key: KeyRecord, at: int) -> KeyRecord:
    """Ends an active key at that time; any other is left as it is."""
    return replace(key, active_until=at) if key.state(at) is KeyState.ACTIVE else key


def revoked(key: KeyRecord, at: int, seq: int) -> KeyRecord:
    """Revokes an active or retired key by the entry ``seq``; a revoked one is left as it is."""
    return key if key.revoked_at is not None else replace(key, revoked_at=at, revoked_seq=seq)


def is_listed(key: KeyRecord, at: int, retired_shown: int) -> bool:
    """Whether a key set lists the key at that time: an active key, one that retired less than ``retired_shown`` seconds
    before, and a revoked one until its natural end. `registry.storage.queries.keys` says the same in SQL."""
    if key.revoked_at is not None:
        return key.expires_at > at
    return key.active_until > at - retired_shown


def check_ends_itself(caller_kid: str, kid: str) -> None:
    """Allows a key to end itself, but no other key of its service: the thief of one key could end all of them. Raises
    CallerNotAllowed."""
    if caller_kid != kid:
        raise CallerNotAllowed(f"{caller_kid} can end only itself")
