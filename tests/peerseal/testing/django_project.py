"""A Django project in one file, whose middleware verifies callers; then calls of it by a signed test client."""

from collections.abc import Callable
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.test import AsyncClient, Client
from django.urls import path

from peerseal import Verifier
from peerseal.errors import ConfigurationError, PeersealError
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.testing import MemoryRegistry, sign_calls
from peerseal.wsgi import EnvironHeaders, wsgi_target

REGISTRY = MemoryRegistry()
VERIFIER = Verifier(REGISTRY, audience="billing", allow={"shop": ()}, clock=REGISTRY.clock)


def as_served(environ: dict[str, Any]) -> dict[str, Any]:
    """The environ as the server made it: Django decodes its path as UTF-8."""
    return {**environ, "PATH_INFO": environ["PATH_INFO"].encode().decode("latin-1")}


def verified(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware."""

    def middleware(request: Any) -> HttpResponse:
        try:
            request.peer = VERIFIER.verify(
                bearer_token(request.META.get("HTTP_AUTHORIZATION")),
                method=request.method,
                target=wsgi_target(as_served(request.META)),
                body=request.body,
                headers=EnvironHeaders(request.META),
            )
        except PeersealError as error:
            return JsonResponse({"code": error.code}, status=error.status)
        return get_response(request)

    return middleware


def echo(request: Any, name: str) -> HttpResponse:
    return HttpResponse(f"{request.peer.service} {request.body.decode()}".strip())


def item(request: Any, name: str) -> HttpResponse:
    return HttpResponse(f"{name} {request.GET.get('q', '')}".strip())


def moved(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/echo/again?x=1")


urlpatterns = [path("echo/<name>", echo), path("items/<name>", item), path("moved", moved)]


def main() -> None:
    """Calls, one line each."""
    settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.verified"], ALLOWED_HOSTS=["testserver"])
    django.setup()
    with REGISTRY:
        client = sign_calls(Client(), REGISTRY.identity("shop"), "billing")
        answers = [
            client.get("/echo/7?a=1&b=%2F"),
            client.post("/echo/7", [1], content_type="application/json"),
            client.get("/echo/caf%C3%A9;v=1"),
            client.get("/moved", follow=True),
            *(client.get(target) for target in ("/items/Köln", "items/7", "/items/a b", "/items/7?q=ü [1]?")),
        ]
        for answer in answers:
            print(answer.status_code, answer.content.decode())
        unsigned = Client().get("/echo/7")
        print(unsigned.status_code, unsigned.json()["code"])
        try:
            sign_calls(AsyncClient(), REGISTRY.identity("shop"), "billing")
        except ConfigurationError as error:
            print(error)


if __name__ == "__main__":
    main()
