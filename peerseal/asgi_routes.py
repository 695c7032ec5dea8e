"""What each path of an ASGI application needs, and by which pattern a request is routed.

The routes are read as Starlette and FastAPI have them. No framework is imported, and of another application only its
paths are known.
"""

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cached_property
from typing import Any

from peerseal.errors import ConfigurationError
from peerseal.path_needs import ALWAYS_REFUSED, Needs, PathNeeds, is_below
from peerseal.refusals import Need

log = logging.getLogger("peerseal")

Scope = MutableMapping[str, Any]


class AppNeeds:
    """The needs of the paths of ``app``; see `PathNeeds` and `peerseal.asgi.PeerAuth`. Raises ConfigurationError."""

    def __init__(self, app: Any, needs: Needs | None) -> None:
        self._app = app
        self._needs = PathNeeds(needs)
        if isinstance(needs, Mapping) and set(needs) != {"/"} and _is_litestar(app):
            raise ConfigurationError(
                "needs: Litestar serves /admx at a mount at /adm, and cuts the root path out of the middle of a path:"
                " give a need for '/' alone, and let handlers ask for more with require_scope"
            )

    def need(self, scope: Scope) -> Need:
        """What the request needs. A path that a framework reads as another one than the path below the server's
        ``root_path`` is always refused: the check would ask for the need of the wrong path."""
        path: str = scope["path"]
        below_root = _below_root(path, scope.get("root_path", ""))
        for place, root in self._own_roots:
            if is_below(below_root, place) and _below_root(path, root) != _below_root(below_root, place):
                return ALWAYS_REFUSED
        return self._needs.need(scope.get("method", "GET"), below_root)

    def pattern(self, scope: Scope) -> str | None:
        """The pattern of the request's route; where the application does not tell, the path in ``needs``."""
        path = _below_root(scope["path"], scope.get("root_path", ""))
        return _route_pattern(self._app, scope) or self._needs.covering(path)

    @cached_property
    def _own_roots(self) -> tuple[tuple[str, str], ...]:
        """Read at the first request, when all applications are mounted."""
        return tuple(_own_roots(self._app))


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


def _is_litestar(app: Any) -> bool:
    """Whether it is an application of Litestar, also within middleware. Its rules for paths are not segment by
    segment."""
    while app is not None:
        if type(app).__module__.split(".")[0] == "litestar":
            return True
        app = getattr(app, "app", None)
    return False


def _below_root(path: str, root: str) -> str:
    """The path below the root path, which servers and frameworks leave in ``path``."""
    return path.removeprefix(root) if is_below(path, root) else path


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
