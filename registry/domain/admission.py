"""Who may register a key, and which key may be registered (SPEC section 5)."""

import re
from dataclasses import dataclass, field

from peerseal.errors import CallerNotAllowed, InvalidName, RevokedKey
from peerseal.protocol.names import REGISTRY, check_service
from registry.domain.errors import KeyTaken
from registry.domain.keys import KeyRecord, KeyState

TOKEN_ID = re.compile("[A-Za-z0-9_-]{1,32}")
"""The shape of a join token's id."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """The right of a rotation: a current key of the same service, proven by its request token, vouches.

    The token goes into the entry, which everybody may read, as evidence that the registry did not make the voucher up.
    It is of no use to a reader: only this registry is its audience, which took it once already and takes it no second
    time (the replay guard wrote it down before the entry was), it is bound to that one body, and it expires within
    minutes. The same holds for the token with which a key ends itself (`registry.services.end_keys`). No other token
    gets into an entry.
    """

    thumbprint: str
    request_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Joined:
    """The right of a newcomer: a MAC over the proof, keyed with a join token's secret."""

    token_id: str
    mac: str


@dataclass(frozen=True, slots=True)
class FirstCome:
    """The right of the laptop mode (``serve --dev``): whoever comes first to a name that has no active key."""


Right = Vouched | Joined | FirstCome


def check_registrable(service: str) -> str:
    """The name itself if keys can be registered under it. Raises InvalidName."""
    if check_service(service) == REGISTRY:
        raise InvalidName("the name is the registry's own")
    return service


def already_registered(known: KeyRecord, service: str, now: float) -> KeyRecord:
    """The record of a key that is registered for the same service and active: registering it again changes nothing.

    Raises KeyTaken otherwise: a key is of one service for ever, and neither a revoked nor a retired one comes back.
    """
    if known.service != service:
        raise KeyTaken("key_of_another_service")
    state = known.state(now)
    if state is KeyState.ACTIVE:
        return known
    raise KeyTaken("key_revoked" if state is KeyState.REVOKED else "key_retired")


def check_voucher(voucher: KeyRecord | None, service: str, now: float) -> None:
    """Passes an active key of the same service. Raises RevokedKey or CallerNotAllowed."""
    if voucher is None or voucher.service != service:
        raise CallerNotAllowed("only a key of the service itself can vouch for its next one")
    state = voucher.state(now)
    if state is KeyState.REVOKED:
        raise RevokedKey("the vouching key is revoked")
    if state is KeyState.RETIRED:
        raise CallerNotAllowed("the vouching key is retired")
