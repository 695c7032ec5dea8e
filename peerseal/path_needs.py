"""What a call needs, by its path and its method, in applications of any framework."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Final

from peerseal.errors import ConfigurationError
from peerseal.refusals import ANY_ALLOWED, Need, check_need
from peerseal.runtime.options import shortened

log = logging.getLogger("peerseal")

Needs = Mapping[str, Need | Mapping[str, Need]] | Callable[[str, str], Need]
"""Paths with what they need, for all methods or for each; or a function of method and path."""

ALWAYS_REFUSED: Final = Need("")
"""No caller has the empty scope."""

_AMBIGUOUS = re.compile(r"//|/\.\.?(?:[/;]|$)|/@@|[\\\0-\x1f\x7f\ud800-\udfff\ufffd]")
"""Paths that applications read in two ways. Starlette's pattern for ``/admin`` takes a newline after it, and servlet
containers take ``..;`` for ``..``. Bottle leaves out bytes that are no UTF-8, which are surrogates or U+FFFD here.
Pyramid's traversal takes ``/@@admin`` for ``/admin``."""
_PATTERN = re.compile(r"[{}<>*?%#]")
"""Characters of patterns, queries and escapes, which a path in ``needs`` would not stand for."""
_METHOD = re.compile(r"[A-Z][A-Z0-9-]*")


class PathNeeds:
    """The needs of an application's paths.

    ``needs`` maps paths to what they and all paths below them need; the longest path counts. A value is a `Need`, or a
    mapping of methods to needs, in which a method that is missing is refused (HEAD needs what GET needs). Ambiguous
    paths (dot segments, two slashes in a row, backslashes, control characters) are refused. Or ``needs`` is a function
    of method and path, which gets ambiguous paths too. In both cases the path is decoded. Without ``needs``, each
    path is open to each allowed caller. Raises ConfigurationError.
    """

    def __init__(self, needs: Needs | None) -> None:
        self._function = needs if callable(needs) else None
        self._by_path = [] if callable(needs) else _longest_first({"/": ANY_ALLOWED} if needs is None else needs)

    def need(self, method: str, path: str) -> Need:
        """What a call needs. ``path`` is decoded."""
        if self._function is not None:
            return self._checked(self._function, method, path) if _is_usual(method, path) else ALWAYS_REFUSED
        if is_ambiguous(path):
            return ALWAYS_REFUSED
        need = next((need for trunk, need in self._by_path if is_below(path, trunk)), ALWAYS_REFUSED)
        return need if isinstance(need, Need) else _of_method(need, method)

    def covering(self, path: str) -> str | None:
        """The path in ``needs`` that decides, such as ``/profiles/*``."""
        trunks = (trunk for trunk, _ in self._by_path if is_below(path, trunk))
        return next((trunk if path == trunk else f"{trunk}/*" for trunk in trunks), None)

    def _checked(self, function: Callable[[str, str], Need], method: str, path: str) -> Need:
        try:
            return check_need(function(method, path), f"what needs gives for {path!r}")
        except ConfigurationError as error:
            log.error("a call is refused: %s", error)
            return ALWAYS_REFUSED


def is_ambiguous(path: str) -> bool:
    """Whether applications may read the decoded path in two ways."""
    return _AMBIGUOUS.search(path) is not None


def _is_usual(method: str, path: str) -> bool:
    """Whether a function of method and path knows what the application runs. Some servers pass a target in absolute
    form on, and the application takes its path. Some frameworks take ``post`` for ``POST``."""
    return (not path or path.startswith("/")) and _METHOD.fullmatch(method) is not None


def is_below(path: str, trunk: str) -> bool:
    """Whether the path is that one, or below it."""
    return path == trunk or path.startswith(f"{trunk}/")


def _of_method(needs: Mapping[str, Need], method: str) -> Need:
    """A method that is not named is refused. HEAD needs what GET needs, whose handler answers it in all frameworks."""
    need = needs.get(method)
    if need is None and method == "HEAD":
        need = needs.get("GET")
    return need or ALWAYS_REFUSED


def _longest_first(needs: object) -> list[tuple[str, Need | Mapping[str, Need]]]:
    """The needs by path, without a slash at its end, the longest path first. Raises ConfigurationError, also for a path
    that no request can have."""
    if not isinstance(needs, Mapping):
        raise ConfigurationError(f"needs is of type {type(needs).__name__}; expected a mapping of paths to needs")
    by_path: dict[str, Need | Mapping[str, Need]] = {}
    for path, need in needs.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigurationError(f"{shortened(path)} in needs is no path; paths begin with a slash")
        if _PATTERN.search(path):
            raise ConfigurationError(f"{path!r} in needs: paths are no patterns; for patterns give a function")
        if _AMBIGUOUS.search(path) or path != path.strip():
            raise ConfigurationError(f"{path!r} in needs: no request is served at such a path")
        if path.rstrip("/") in by_path:
            raise ConfigurationError(f"{path!r} in needs stands there twice, with and without a slash at its end")
        by_path[path.rstrip("/")] = _checked_value(path, need)
    return sorted(by_path.items(), key=lambda item: -len(item[0]))


def _checked_value(path: str, need: object) -> Need | Mapping[str, Need]:
    if not isinstance(need, Mapping):
        return check_need(need, f"needs[{path!r}]")
    for method in need:
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise ConfigurationError(f"needs[{path!r}]: {shortened(method)} is no method; write it as in 'POST'")
    return {method: check_need(each, f"needs[{path!r}][{method!r}]") for method, each in need.items()}
