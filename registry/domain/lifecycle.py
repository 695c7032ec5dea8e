"""A key's life: ``pending → active → retired``, and from each of the last two ``→ revoked``. All of it is decided here.

- A key that is pending has been proven to be held by whoever asks, and no more (`Applicant`). An operator admits it, or
  it goes without a trace.
- An active key retires by its natural end, without anybody saying so, or sooner because somebody does. Its window only
  ever shrinks.
- Nothing leaves revoked, and nothing becomes active again: whatever a transition cannot be made from stays as it is.
- A service's key ends only itself; with a revoked key fall all that it vouched for, and that those did.

The use cases write down what these functions say, and `registry.domain.rebuild` reads entries by them.
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
    """An active key ends at that time; any other is left as it is."""
    return replace(key, active_until=at) if key.state(at) is KeyState.ACTIVE else key


def revoked(key: KeyRecord, at: int, seq: int) -> KeyRecord:
    """The key falls by the entry ``seq``, whether active or retired; a revoked one is left as it is."""
    return key if key.revoked_at is not None else replace(key, revoked_at=at, revoked_seq=seq)


def check_ends_itself(caller_kid: str, kid: str) -> None:
    """Passes a key that ends itself. Its sisters it cannot end: a thief of one key would end them all. Raises
    CallerNotAllowed."""
    if caller_kid != kid:
        raise CallerNotAllowed(f"{caller_kid} can end only itself")
