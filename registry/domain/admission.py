"""Who may register a key, and which key may be registered (docs/protocol.md)."""

import re
from collections.abc import Mapping
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

    The entry commits to the token by digest, and the registry keeps it as evidence that it did not make the voucher
    up: for the owner of the service, who asks for it with the key's record. It is of no use to another reader: only
    this registry is its audience, which took it once already and takes it no second time (the replay guard wrote it
    down before the entry was), it is bound to that one body, and it expires within minutes. The same holds for the
    token with which a key ends itself (`registry.services.keys.end_keys`).
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


@dataclass(frozen=True, slots=True)
class Attested:
    """The right of a workload that its platform vouches for: a token of a configured issuer, already verified and
    mapped by rule to the service. ``subject`` is the hex SHA-256 of the token's ``sub``: entries name no accounts."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class Approved:
    """The right of an applicant whom an operator approved. ``by`` is how entries name the operator, ``thumbprint`` is
    the applicant's."""

    by: Mapping[str, str]
    thumbprint: str


Right = Vouched | Joined | Attested | Approved | FirstCome


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
