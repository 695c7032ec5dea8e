"""Derived scopes: one scope that an event has although its user's token has not, by the domain's signed settings.

The evidence is ``derived_from`` in ``rctx``: the user's scope that the event's scope was derived from. It goes along
into the transaction that a consumer mints for the event, so each verifier can compare it with the settings that hold
now. It is good for one event: nothing is derived from it, and no further event is signed with it.
"""

from collections.abc import Mapping
from typing import Any

from peerseal.protocol.policies import DERIVED_FROM, DomainSettings
from peerseal.trust.beliefs import KeySource


def derived_context(
    settings: DomainSettings, minter: str, scope: str, held: frozenset[str], authentication: Mapping[str, Any]
) -> dict[str, Any] | None:
    """``rctx`` of an event of ``minter`` for ``scope``, derived from one of the scopes ``held`` of a user who was
    authenticated so; None where the settings do not grant that, or no user was authenticated."""
    sources = held & settings.sources(minter, scope)
    if not sources or not _is_a_users(authentication):
        return None
    return {**authentication, DERIVED_FROM: min(sources)}


def derivation_fault(
    trust: KeySource, minter: str, scopes: frozenset[str], authentication: Mapping[str, Any]
) -> str | None:
    """What is wrong with a token of these ``scopes`` that stands for an event of ``minter``; None where the settings
    grant its derivation, or it claims none. Raises TrustUnavailable."""
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
