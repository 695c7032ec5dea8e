"""Which services may call, and with which scopes: none unless named."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.names import check_name_or_id, check_scope, qualify
from peerseal.protocol.plain import kind_of
from peerseal.protocol.policies import ANYONE, CallPolicy


@dataclass(frozen=True, slots=True)
class AllowedCallers:
    """The services that may call, by service id, each with its scopes. ``anyone`` holds the scopes of every other
    service of the trust domain; None if no other service may call."""

    callers: Mapping[str, frozenset[str]]
    anyone: frozenset[str] | None
    domain: str

    @classmethod
    def of(cls, allow: Mapping[str, Iterable[str]], domain: str) -> Self:
        """From short names, service ids or ``"*"``, each with its scopes. Raises as `read_allow`."""
        callers = read_allow(allow)
        anyone = callers.pop(ANYONE, None)
        return cls({qualify(caller, domain): scopes for caller, scopes in callers.items()}, anyone, domain)

    def narrowed_by(self, policy: CallPolicy) -> Self:
        """The callers and scopes that both this and the registry's policy allow. In the policy ``"*"`` stands for
        services of the registry's own trust domain only; a caller of another domain must be named."""
        anyone = policy.allow.get(ANYONE)
        callers = {}
        for caller in {*self.callers, *policy.allow} - {ANYONE}:
            ours = self.scopes(caller)
            theirs = policy.allow.get(caller, anyone if self._is_local(caller) else None)
            if ours is not None and theirs is not None:
                callers[caller] = ours & theirs
        both = None if self.anyone is None or anyone is None else self.anyone & anyone
        return type(self)(callers, both, self.domain)

    def scopes(self, caller: str) -> frozenset[str] | None:
        """The scopes of the service with id ``caller``; None where it may not call."""
        scopes = self.callers.get(caller)
        return self.anyone if scopes is None and self._is_local(caller) else scopes

    def _is_local(self, caller: str) -> bool:
        return caller.startswith(f"{self.domain}/")


def read_allow(allow: object) -> dict[str, frozenset[str]]:
    """The callers and scopes in ``allow``, copied and checked before the trust domain is known, so that a mistake shows
    at the start and not at the first call.

    Raises ConfigurationError for scopes given as one string and for an invalid scope, such as the empty text of an
    unset variable: adapters rely on the fact that no caller has the empty scope. Raises InvalidName for an invalid
    name.
    """
    if not isinstance(allow, Mapping):
        raise ConfigurationError(f"allow maps callers to their scopes; it is of type {kind_of(allow)}")
    return {_caller(caller): frozenset(_scopes(caller, scopes)) for caller, scopes in allow.items()}


def _caller(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"a caller in allow is of type {kind_of(name)}; expected a service's name")
    return name if name == ANYONE else check_name_or_id(name)


def _scopes(caller: object, scopes: object) -> Iterator[str]:
    if isinstance(scopes, str):
        raise ConfigurationError(f"allow[{caller!r}] is one string; expected a set of scopes")
    if not isinstance(scopes, Iterable) or isinstance(scopes, bytes | bytearray | Mapping):
        raise ConfigurationError(f"allow[{caller!r}] is of type {kind_of(scopes)}; expected a set of scopes")
    for scope in scopes:
        try:
            yield check_scope(scope)
        except MalformedToken as error:
            raise ConfigurationError(f"allow[{caller!r}] holds {scope!r}, which is no scope") from error
