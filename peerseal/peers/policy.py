"""Who may call, and with which scopes: default deny."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from peerseal.errors import ConfigurationError
from peerseal.protocol.names import check_service, qualify, split_service_id
from peerseal.protocol.policies import ANYONE, CallPolicy


@dataclass(frozen=True, slots=True)
class AllowPolicy:
    """The callers that may call here, by service id, each with its scopes."""

    callers: Mapping[str, frozenset[str]]
    anyone: frozenset[str] | None
    domain: str

    @classmethod
    def of(cls, allow: Mapping[str, Iterable[str]], domain: str) -> Self:
        """From what code says: short names, service ids or ``"*"``, each with its scopes.

        Raises ConfigurationError for scopes given as one string, InvalidName for a name that is none.
        """
        check_allow(allow)
        callers = {qualify(caller, domain): frozenset(allow[caller]) for caller in allow if caller != ANYONE}
        return cls(callers, frozenset(allow[ANYONE]) if ANYONE in allow else None, domain)

    def within(self, laid_down: CallPolicy) -> Self:
        """What this and a policy of the registry both allow. The registry speaks for its own domain only: it allows a
        caller of another one no more than it names it."""
        named = {*self.callers, *(caller for caller in laid_down.allow if caller != ANYONE)}
        callers = {}
        for caller in named:
            ours, theirs = self.scopes(caller), laid_down.allow.get(caller)
            if theirs is None and caller.startswith(f"{self.domain}/"):
                theirs = laid_down.allow.get(ANYONE)
            if ours is not None and theirs is not None:
                callers[caller] = ours & theirs
        anyone = laid_down.allow.get(ANYONE)
        both = None if self.anyone is None or anyone is None else self.anyone & anyone
        return type(self)(callers, both, self.domain)

    def scopes(self, caller: str) -> frozenset[str] | None:
        """The scopes of the service with id ``caller``; None where it may not call at all."""
        scopes = self.callers.get(caller)
        if scopes is None and self.anyone is not None and caller.startswith(f"{self.domain}/"):
            return self.anyone
        return scopes


def check_allow(allow: Mapping[str, Iterable[str]]) -> None:
    """What can be said of it before the trust domain is known: mistakes are to show at the start, not at the first
    call. Raises ConfigurationError for scopes given as one string, InvalidName for a name that is none."""
    for caller, scopes in allow.items():
        if isinstance(scopes, str):
            raise ConfigurationError(f"the scopes of {caller} are one string; give a set")
        if caller != ANYONE:
            split_service_id(caller) if "/" in caller else check_service(caller)
