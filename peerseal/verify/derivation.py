"""Derived scopes: a scope that an event has by the domain's signed settings, and its user's token has not.

``derived_from`` in ``rctx`` names the user's scope from which the event's scope was derived. The transaction that a
consumer mints for the event has it too, so each verifier compares it with the present settings. A derived scope is good
for one event: no other scope is derived from it, and no other event is signed with it.
"""

from collections.abc import Mapping
from typing import Any

from peerseal.protocol.policies import DERIVED_FROM, DomainSettings
from peerseal.trust.beliefs import KeySource


def derived_context(
    settings: DomainSettings, minter: str, scope: str, held: frozenset[str], authentication: Mapping[str, Any]
) -> dict[str, Any] | None:
    """``rctx`` of an event of ``minter`` for ``scope``, derived from one of the scopes ``held`` of a user with this
    ``authentication``; None where the settings do not grant it, or no user was authenticated."""
    sources = held & settings.sources(minter, scope)
    if not sources or not _is_a_users(authentication):
        return None
    return {**authentication, DERIVED_FROM: min(sources)}


def derivation_fault(
    trust: KeySource, minter: str, scopes: frozenset[str], authentication: Mapping[str, Any]
) -> str | None:
    """Why a token with these ``scopes`` for an event of ``minter`` is refused; None if the settings grant its derived
    scope, or it has none. Raises TrustUnavailable."""
    if DERIVED_FROM not in authentication:
        return None
    source = authentication[DERIVED_FROM]
    if len(scopes) != 1 or not _is_a_users(authentication):
        return "a derived scope is the only one of its token, and a user's"
    [scope] = scopes
    if type(source) is not str or source not in trust.settings().sources(minter, scope):
        return f"the domain's settings do not derive {scope} for {minter} as the token says"
    return None


def _is_a_users(authentication: Mapping[str, Any]) -> bool:
    return type(authentication.get("iss")) is str
