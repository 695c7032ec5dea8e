"""Two trust domains, each with a registry in memory, and one service each: a shop and a partner who bills."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from peerseal import Identity, TrustLimits, TrustStore, Verifier
from peerseal.errors import PeersealError
from peerseal.testing import Clock, MemoryRegistry
from peerseal.verify.request import Peer

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0, refresh_interval=10 * 24 * 3600.0)
"""The background threads sleep through the test, which calls ``refresh`` itself; time alone makes nothing due."""
BILLING = "partner.example/billing"
SHOP = "acme.internal/shop"


@dataclass(frozen=True)
class TwoDomains:
    """The registries of ``acme.internal`` and ``partner.example``, and their services ``shop`` and ``billing``."""

    acme: MemoryRegistry
    partner: MemoryRegistry
    shop: Identity
    billing: Identity
    clock: Clock

    @property
    def trust(self) -> TrustStore:
        """The trust store of the shop."""
        return self.shop.trust

    def verifier(self, allow: Mapping[str, Iterable[str]] | None = None) -> Verifier:
        """The shop's verifier; by default it lets the partner's billing read and write."""
        wanted = {BILLING: {"read", "write"}} if allow is None else allow
        return Verifier(self.trust, audience="shop", allow=wanted, clock=self.clock)

    def call(
        self,
        verifier: Verifier,
        by: Identity | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Peer:
        """A call to the shop: by the partner's billing, where no other is given."""
        given = {} if headers is None else headers
        token = (by or self.billing).sign_request(SHOP, method="GET", target="/", headers=given)
        return verifier.verify(token, method="GET", target="/", headers=given, **options)

    def federate(self, **limits: Any) -> None:
        """Let acme believe the partner, as of now."""
        self.acme.federate(self.partner, **limits)
        self.trust.refresh()


@contextmanager
def two_domains(clock: Clock, limits: TrustLimits = QUIET) -> Iterator[TwoDomains]:
    """Both domains, which do not believe each other yet."""
    with (
        MemoryRegistry("acme.internal", clock=clock) as acme,
        MemoryRegistry("partner.example", clock=clock) as partner,
    ):
        shop, billing = acme.identity("shop", limits=limits), partner.identity("billing", limits=limits)
        yield TwoDomains(acme, partner, shop, billing, clock)


def code_of(do: Callable[[], Any]) -> str:
    """The code of the error that the call raises."""
    with pytest.raises(PeersealError) as caught:
        do()
    return caught.value.code
