"""The middleware of the project."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from peerseal.wsgi import PEER

Next = Callable[[HttpRequest], HttpResponseBase]

seen: list[tuple[str, str | None]] = []
"""Each request that has reached Django: its path, and who called."""


class PeerMiddleware:
    """Sets ``request.peer``: the verified caller, or None."""

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.peer = request.META.get(PEER)
        return self.get_response(request)


class SeenMiddleware:
    """Notes who calls."""

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        seen.append((request.path_info, request.peer.service if request.peer else None))
        return self.get_response(request)
