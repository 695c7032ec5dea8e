"""Who may call, and with which scopes: default deny."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.names import check_peer_name, qualify
from peerseal.protocol.policies import ANYONE, CallPolicy, check_scope


@dataclass(frozen=True, slots=True)
class AllowPolicy:
    """The callers that may call here, by service id, each with its scopes."""

    callers: Mapping[str, frozenset[str]]
    anyone: frozenset[str] | None
    domain: str

    @classmethod
    def of(cls, allow: Mapping[str, Iterable[str]], domain: str) -> Self:
        """From what code says: short names, service ids or ``"*"``, each with its scopes. Raises as `read_allow`."""
        callers = read_allow(allow)
        anyone = callers.pop(ANYONE, None)
        return cls({qualify(caller, domain): scopes for caller, scopes in callers.items()}, anyone, domain)

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


def read_allow(allow: object) -> dict[str, frozenset[str]]:
    """What code says, read once and kept, as far as it can be judged before the trust domain is known: mistakes are to
    show at the start, not at the first call.

    Raises ConfigurationError for scopes given as one string and for what is no scope, such as the empty text that is
    left of an unset variable: adapters count on no caller having it. InvalidName for a name that is none.
    """
    if not isinstance(allow, Mapping):
        raise ConfigurationError(f"allow maps callers to their scopes; it is of type {_type(allow)}")
    return {_caller(caller): frozenset(_scopes(caller, scopes)) for caller, scopes in allow.items()}


def _caller(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"a caller in allow is of type {_type(name)}; give a service's name")
    return name if name == ANYONE else check_peer_name(name)


def _scopes(caller: object, scopes: object) -> Iterator[str]:
    if isinstance(scopes, str):
        raise ConfigurationError(f"the scopes of {caller} are one string; give a set")
    if not isinstance(scopes, Iterable) or isinstance(scopes, bytes | bytearray | Mapping):
        raise ConfigurationError(f"the scopes of {caller} are of type {_type(scopes)}; give a set of texts")
    for scope in scopes:
        try:
            yield check_scope(scope)
        except MalformedToken as error:
            raise ConfigurationError(f"{caller} is given {scope!r}, which is no scope") from error


def _type(value: object) -> str:
    return type(value).__name__
