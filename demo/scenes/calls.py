"""Calls from service to service, accepted and refused."""

import peerseal
from demo.attacks import forged_token
from demo.httpie import http
from demo.scenes.stage import JSON, Stage
from demo.show import bearer
from demo.stack import CLIENT, RESOURCE
from peerseal.protocol.keys import PublicKey

SEARCH = '{"name": "grace"}'
OTHER_SEARCH = '{"name": "ada"}'


def credentials(stage: Stage) -> None:
    """The public credentials of a service."""
    show = stage.show
    show.scene("The public credentials of a service", "Each service made its own key; the private half stays there.")
    shown = show.call(f"{stage.client_url}/my-public-credentials", status=200).json
    show.expect(shown["keyId"].startswith(f"{stage.stack.domain}/{CLIENT}/"), "the key id names its owner")


def key_set(stage: Stage) -> None:
    """The registry's JWK Set of that service."""
    show = stage.show
    show.scene("The registry publishes that key", "A plain RFC 7517 JWK Set, for any JWT library.")
    keys = show.call(f"{stage.stack.registry_url}/v1/services/{CLIENT}/jwks.json", status=200).json["keys"]
    thumbprints = {PublicKey.from_jwk({name: key[name] for name in ("kty", "n", "e")}).thumbprint for key in keys}
    shown = http(f"{stage.client_url}/my-public-credentials").json["keyId"]
    show.expect(shown in {key["kid"] for key in keys}, "it is the key that the service shows")
    show.expect(shown.rpartition("/")[2] in thumbprints, "and its id is the RFC 7638 thumbprint of its numbers")


def signed_call(stage: Stage) -> None:
    """Accepted calls: through client-service, and with a token made by hand."""
    show = stage.show
    show.scene(
        "A signed call is accepted",
        "client-service signs its call; resource-service checks it with the key that it fetched from the registry.",
    )
    profile = show.call(f"{stage.client_url}/profiles/1", status=200).json
    show.expect(profile["caller"] == CLIENT, f"resource-service knows that {CLIENT} called")
    token = stage.token("POST", "/profiles/search", SEARCH)
    found = show.call(*search(stage, token, SEARCH), status=200, title="With a body, which the signature covers:").json
    show.expect([profile["name"] for profile in found["profiles"]] == ["Grace Hopper"], "the search was answered")


def replay(stage: Stage) -> None:
    """One token, twice."""
    show = stage.show
    show.scene("The same token once more", "A token captured on the wire is worthless: it is accepted once.")
    call = (f"{stage.resource_url}/profiles/1", bearer(stage.token("GET", "/profiles/1")))
    show.call(*call, status=200)
    show.call(*call, status=401, code="replayed")


def bindings(stage: Stage) -> None:
    """Tokens moved to another request."""
    show, url = stage.show, stage.resource_url
    show.scene("A token moved to another request", "Each token is new and unused; only the request differs.")

    def refused(title: str, *request: str) -> None:
        show.call(*request, status=401, code="wrong_binding", title=title)

    refused("Another path:", f"{url}/profiles/2", bearer(stage.token("GET", "/profiles/1")))
    refused("Another query:", f"{url}/profiles/1?fields=all", bearer(stage.token("GET", "/profiles/1")))
    token = stage.token("PUT", "/profiles/search", SEARCH)
    refused("Another method (it was signed for PUT):", *search(stage, token, SEARCH))
    token = stage.token("POST", "/profiles/search", SEARCH)
    refused("Another body:", *search(stage, token, OTHER_SEARCH))


def unknown_key(stage: Stage) -> None:
    """An allowed name with a key that no service registered."""
    show, domain = stage.show, stage.stack.domain
    show.scene("An allowed name with an unregistered key", f"The token names {CLIENT}; the attacker made its key.")
    token = forged_token(f"{domain}/{CLIENT}", f"{domain}/{RESOURCE}", method="GET", target="/profiles/1")
    show.call(f"{stage.resource_url}/profiles/1", bearer(token), status=401, code="unknown_key")


def not_allowed(stage: Stage) -> None:
    """A registered service that no callee allows."""
    show = stage.show
    show.scene("A registered service that is not allowed", "reporting-service is registered, but not on the list.")
    reporting = peerseal.Identity.from_env(stage.stack.service_settings("reporting-service")).start()
    try:
        token = reporting.sign_request(RESOURCE, method="GET", target="/profiles/1")
    finally:
        reporting.stop()
    show.call(f"{stage.resource_url}/profiles/1", bearer(token), status=403, code="caller_not_allowed")


def search(stage: Stage, token: str, body: str) -> tuple[str, ...]:
    """HTTPie's arguments for a search with exactly that body."""
    return ("POST", f"{stage.resource_url}/profiles/search", bearer(token), f"Content-Type:{JSON}", "--raw", body)
