"""Who may register a key, and which keys may be registered (docs/protocol.md)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from peerseal.errors import CallerNotAllowed, InvalidName, RevokedKey
from peerseal.protocol.names import REGISTRY, check_service
from registry.domain.errors import KeyTaken
from registry.domain.keys import KeyRecord, KeyState

TOKEN_ID = re.compile("[A-Za-z0-9_-]{1,32}")
"""The shape of a join token's id."""


class JoinTokenUses:
    """The use that is left of a join token. Its subclasses are frozen dataclasses with these members."""

    __slots__ = ()

    expires_at: int
    uses: int
    used: int
    withdrawn: bool

    def good(self, now: float) -> bool:
        """Whether it admits a key at that time."""
        return not self.withdrawn and now < self.expires_at and self.used < self.uses


@dataclass(frozen=True, slots=True)
class Vouched:
    """The right of a rotation: a current key of the same service vouches for the new key by its request token.

    The entry holds the token's digest, and the registry keeps the token as evidence that it did not invent the voucher.
    The owner of the service reads it with the key's record. Another reader has no use for it: its audience is this
    registry, whose replay guard recorded it before the entry and refuses it from then on. It is bound to that one body,
    and expires within minutes. The same holds for the token with which a key ends itself
    (`registry.services.keys.records`).
    """

    thumbprint: str
    request_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Joined:
    """The right of a service's first key: a MAC over the proof, keyed with a join token's secret."""

    token_id: str
    mac: str


@dataclass(frozen=True, slots=True)
class FirstCome:
    """The right of the laptop mode (``serve --dev``): the first caller gets a name that has no active key."""


@dataclass(frozen=True, slots=True)
class Attested:
    """The right of a workload with a token of its platform: of a configured issuer, verified, and mapped to the service
    by a rule. ``subject`` is the hex SHA-256 of the token's ``sub``: entries name no accounts."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class Approved:
    """The right of an applicant that an operator approved. ``by`` names the operator as entries do, ``thumbprint`` is
    the applicant's."""

    by: Mapping[str, str]
    thumbprint: str


Right = Vouched | Joined | Attested | Approved | FirstCome


def check_registrable(service: str) -> str:
    """The name itself if keys can be registered under it. Raises InvalidName."""
    if check_service(service) == REGISTRY:
        raise InvalidName(f"{REGISTRY} is the name of the registry itself")
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
    """Accepts an active key of the same service. Raises RevokedKey or CallerNotAllowed."""
    if voucher is None or voucher.service != service:
        raise CallerNotAllowed(f"only a key of {service} can vouch for its next key")
    state = voucher.state(now)
    if state is KeyState.REVOKED:
        raise RevokedKey(f"the vouching key {voucher.thumbprint} is revoked")
    if state is KeyState.RETIRED:
        raise CallerNotAllowed(f"the vouching key {voucher.thumbprint} is retired")
