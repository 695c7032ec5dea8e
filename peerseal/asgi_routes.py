"""What each path of an ASGI application needs, and by which pattern a request is routed.

The routes are read as Starlette and FastAPI have them. No framework is imported, and of another application only its
paths are known.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cached_property
from typing import Any, Final

from peerseal.errors import ConfigurationError
from peerseal.refusals import ANY_ALLOWED, Need, check_need
from peerseal.runtime.options import shortened

log = logging.getLogger("peerseal")

Scope = MutableMapping[str, Any]

_AMBIGUOUS = re.compile(r"//|/\.\.?(?:[/;]|$)|[\\\0-\x1f\x7f]")
"""Paths that applications read in two ways: Starlette's pattern for ``/admin`` takes a newline after it, and servlet
containers take ``..;`` for ``..``."""
_PATTERN = re.compile(r"[{}<>*?%#]")
"""Characters of patterns, queries and escapes, which a path in ``needs`` would not stand for."""
_ALWAYS_REFUSED: Final = Need("")  # no caller has the empty scope


def is_ambiguous(path: str) -> bool:
    """Whether applications may read the decoded path in two ways."""
    return _AMBIGUOUS.search(path) is not None


class PathNeeds:
    """The needs of the paths of ``app``; see `peerseal.asgi.PeerAuth`. Raises ConfigurationError."""

    def __init__(self, app: Any, needs: Mapping[str, Need] | Callable[[str, str], Need] | None) -> None:
        self._app = app
        self._function = needs if callable(needs) else None
        self._by_path = [] if callable(needs) else _longest_first({"/": ANY_ALLOWED} if needs is None else needs)

    def need(self, scope: Scope) -> Need:
        """What the request needs. A path that a framework reads as another one than the path below the server's
        ``root_path`` is always refused: the check would ask for the need of the wrong path."""
        path: str = scope["path"]
        below_root = _below_root(path, scope.get("root_path", ""))
        for place, root in self._own_roots:
            if _is_below(below_root, place) and _below_root(path, root) != _below_root(below_root, place):
                return _ALWAYS_REFUSED
        if self._function is not None:
            return self._checked(self._function, scope.get("method", "GET"), below_root)
        if is_ambiguous(below_root):
            return _ALWAYS_REFUSED
        return next((need for trunk, need in self._by_path if _is_below(below_root, trunk)), _ALWAYS_REFUSED)

    def pattern(self, scope: Scope) -> str | None:
        """The pattern of the request's route; where the application does not tell, the path in ``needs``."""
        path = _below_root(scope["path"], scope.get("root_path", ""))
        trunks = (trunk for trunk, _ in self._by_path if _is_below(path, trunk))
        covering = (trunk if path == trunk else f"{trunk}/*" for trunk in trunks)
        return _route_pattern(self._app, scope) or next(covering, None)

    @cached_property
    def _own_roots(self) -> tuple[tuple[str, str], ...]:
        """Read at the first request, when all applications are mounted."""
        return tuple(_own_roots(self._app))

    def _checked(self, function: Callable[[str, str], Need], method: str, path: str) -> Need:
        try:
            return check_need(function(method, path), f"what needs gives for {path!r}")
        except ConfigurationError as error:
            log.error("a call is refused: %s", error)
            return _ALWAYS_REFUSED


def _longest_first(needs: object) -> list[tuple[str, Need]]:
    """The needs by path, without a slash at its end, the longest path first. Raises ConfigurationError, also for a path
    that no request can have."""
    if not isinstance(needs, Mapping):
        raise ConfigurationError(f"needs is of type {type(needs).__name__}; expected a mapping of paths to needs")
    by_path: dict[str, Need] = {}
    for path, need in needs.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigurationError(f"{shortened(path)} in needs is no path; paths begin with a slash")
        if _PATTERN.search(path):
            raise ConfigurationError(f"{path!r} in needs: paths are no patterns; for patterns give a function")
        if is_ambiguous(path) or path != path.strip():
            raise ConfigurationError(f"{path!r} in needs: no request is served at such a path")
        if path.rstrip("/") in by_path:
            raise ConfigurationError(f"{path!r} in needs stands there twice, with and without a slash at its end")
        by_path[path.rstrip("/")] = check_need(need, f"needs[{path!r}]")
    return sorted(by_path.items(), key=lambda item: -len(item[0]))


def _own_roots(app: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The applications that use a root path of their own in place of the server's, as FastAPI does with its option
    ``root_path``: with ``/api`` a request for ``/api/admin`` is served as ``/admin``. Gives the place where each is
    mounted, and its root path."""
    routes, root, inner = (getattr(app, name, None) for name in ("routes", "root_path", "app"))
    known = routes if isinstance(routes, list) else None  # Quart's root path is a folder, and it has no routes
    if known is not None and isinstance(root, str) and root:
        yield place, root
    place += getattr(app, "path", "")
    for below in (known or ()) if inner is None else (inner,):
        yield from _own_roots(below, place)


def _below_root(path: str, root: str) -> str:
    """The path below the root path, which servers and frameworks leave in ``path``."""
    return path.removeprefix(root) if _is_below(path, root) else path


def _is_below(path: str, trunk: str) -> bool:
    """Whether the path is that one, or below it."""
    return path == trunk or path.startswith(f"{trunk}/")


def _route_pattern(app: Any, scope: Scope) -> str | None:
    """The pattern of the request's route, such as ``/profiles/{id}``; None where the application does not tell, or
    raises an error, which is logged."""
    try:
        return _pattern(app, dict(scope))
    except Exception:
        log.warning("the application cannot say by which route a request goes", exc_info=True)
        return None


def _pattern(app: Any, scope: dict[str, Any]) -> str | None:
    """Asks each route as the framework's router does, also below mounted applications."""
    routes = getattr(app, "routes", None)
    if not isinstance(routes, list):
        inner = getattr(app, "app", None)  # a middleware
        return None if inner is None else _pattern(inner, scope)
    for route in _flattened(routes):
        match, child = route.matches(scope)
        if getattr(match, "name", "") == "FULL":
            path = str(getattr(route, "path", ""))
            mounted = getattr(route, "routes", None) is not None
            return path + (_pattern(route, {**scope, **child}) or "/*") if mounted else path or None
    return None


def _flattened(routes: list[Any]) -> Iterator[Any]:
    """The routes, with those of a router that FastAPI included in its place."""
    for route in routes:
        included = getattr(route, "effective_route_contexts", None)
        if included is None:
            yield route
        else:
            yield from (getattr(each, "starlette_route", None) or each for each in included())
