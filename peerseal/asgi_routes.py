"""What an ASGI application says of its routes, as Starlette and FastAPI do: where they are mounted, and by which
pattern a request is routed. Nothing of a framework is imported; of another application nothing is known."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

log = logging.getLogger("peerseal")


def own_roots(app: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """What takes a root path of its own for the server's, as FastAPI does with its option of that name, at whatever
    place it is mounted: a request for ``/api/admin`` would be served as ``/admin``. Each place, and that root path."""
    routes, root, inner = (getattr(app, name, None) for name in ("routes", "root_path", "app"))
    known = routes if isinstance(routes, list) else None  # Quart's root path is a folder, and it has no routes
    if known is not None and isinstance(root, str) and root:
        yield place, root
    place += getattr(app, "path", "")
    for below in (known or ()) if inner is None else (inner,):
        yield from own_roots(below, place)


def route_path(path: str, root: str) -> str:
    """The path below the root path, which servers and frameworks leave in ``path``."""
    return path.removeprefix(root) if is_below(path, root) else path


def is_below(path: str, trunk: str) -> bool:
    """Whether the path is that one, or lies below it."""
    return path == trunk or path.startswith(f"{trunk}/")


def route_pattern(app: Any, scope: Mapping[str, Any]) -> str | None:
    """The pattern by which the request will be routed, such as ``/profiles/{id}``; None where the application does not
    tell. What it raises while it is asked is logged, and means the same."""
    try:
        return _pattern(app, dict(scope))
    except Exception:
        log.warning("the application cannot say by which route a request goes", exc_info=True)
        return None


def _pattern(app: Any, scope: dict[str, Any]) -> str | None:
    """Asks each route as the framework's router will, and looks below what is mounted."""
    routes = getattr(app, "routes", None)
    if not isinstance(routes, list):
        inner = getattr(app, "app", None)  # a middleware
        return None if inner is None else _pattern(inner, scope)
    for route in _each(routes):
        match, child = route.matches(scope)
        if getattr(match, "name", "") == "FULL":
            path = str(getattr(route, "path", ""))
            mounted = getattr(route, "routes", None) is not None
            return path + (_pattern(route, {**scope, **child}) or "/*") if mounted else path or None
    return None


def _each(routes: list[Any]) -> Iterator[Any]:
    """The routes, and in the place of a router that FastAPI included the routes of that."""
    for route in routes:
        included = getattr(route, "effective_route_contexts", None)
        if included is None:
            yield route
        else:
            yield from (getattr(each, "starlette_route", None) or each for each in included())
