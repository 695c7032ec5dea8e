"""The views of the project."""

import json
from collections.abc import Iterator
from io import BytesIO

from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

from peerseal import current_transaction
from peerseal.wsgi import current_peer, require_scope


def healthz(request: HttpRequest) -> HttpResponse:
    """Open to all."""
    return HttpResponse("ok" if request.peer is None else "with a caller")


def profile(request: HttpRequest, number: int) -> JsonResponse:
    """Who calls, and for which user."""
    transaction = current_transaction()
    user = None if transaction is None else transaction.user
    return JsonResponse({"caller": request.peer.service, "user": user, "number": number, "q": request.GET.get("q")})


def orders(request: HttpRequest) -> JsonResponse:
    """The order that was sent, parsed."""
    return JsonResponse({"caller": current_peer().service, "order": json.loads(request.body)}, status=201)


def uploads(request: HttpRequest) -> JsonResponse:
    """A form with a file."""
    return JsonResponse({"note": request.POST["note"], "size": request.FILES["file"].size})


def export(request: HttpRequest) -> StreamingHttpResponse:
    """A stream, whose pieces are made after the view."""

    def pieces() -> Iterator[str]:
        for number in range(3):
            yield f"{number} {current_peer().service}\n"

    return StreamingHttpResponse(pieces())


def file(request: HttpRequest) -> FileResponse:
    """A file, which the server may send itself."""
    return FileResponse(BytesIO(b"content"), filename="a.txt")


def late(request: HttpRequest) -> HttpResponse:
    """Needs a scope that it learns of late."""
    require_scope("admin")
    return HttpResponse("not reached")


def late_stream(request: HttpRequest) -> StreamingHttpResponse:
    """A stream that needs a scope which it learns of late."""

    def pieces() -> Iterator[str]:
        yield ""
        require_scope("admin")
        yield "not reached"

    return StreamingHttpResponse(pieces())


def fails(request: HttpRequest) -> HttpResponse:
    """An error of the application's own."""
    raise LookupError("a mistake")
