"""The registry as a key repository of ASAP, for atlassian-jwt-auth as it is on PyPI: over TLS, in both roles."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from atlassian_jwt_auth import HTTPSPublicKeyRetriever, JWTAuthVerifier
from atlassian_jwt_auth.exceptions import PublicKeyRetrieverException
from atlassian_jwt_auth.key import StaticPrivateKeyRetriever
from atlassian_jwt_auth.signer import JWTAuthSigner
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from werkzeug.serving import make_server

from peerseal import Identity, Verifier
from peerseal.errors import WrongType
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id
from registry.limits import Limits
from registry.services.documents.answer_cache import PEM
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.registry.in_process import InProcess
from tests.support.certificates import Authority
from tests.support.keys import key

SHOP = service_id(DOMAIN, "shop")


def kid_of(pair: KeyPair, service: str = SHOP) -> str:
    return make_kid(service, pair.public.thumbprint)


class TestTheRoute:
    def test_an_active_key_is_served_as_pem_at_its_kid(self, registry: Driver) -> None:
        pair = registry.joined(key(), "shop")
        answer = registry.client.get(f"/asap/{kid_of(pair)}")
        assert (answer.status_code, answer.content_type) == (200, PEM)
        assert load_pem_public_key(answer.data) == pair.public.crypto

    def test_caches_may_keep_it_and_ask_again(self, registry: Driver) -> None:
        path = f"/asap/{kid_of(registry.joined(key(), 'shop'))}"
        answer = registry.client.get(path)
        cache_control = registry.client.get("/v1/services/shop/jwks.json").headers["Cache-Control"]
        assert answer.headers["Cache-Control"] == cache_control
        assert f"max-age={Limits().max_age}" in cache_control
        again = registry.client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")

    @pytest.mark.parametrize("reason", ["retired", "compromised"])
    def test_a_key_that_has_ended_is_not_found(self, registry: Driver, reason: str) -> None:
        pair = registry.joined(key(), "shop")
        path = f"/asap/{kid_of(pair)}"
        assert registry.client.get(path).status_code == 200
        assert registry.end(pair, "shop", reason).status_code == 204
        answer = registry.client.get(path)
        assert (answer.status_code, answer.get_json()["code"]) == (404, "key_not_found")
        assert answer.headers["Cache-Control"] == "public, max-age=1, no-transform"

    def test_a_key_is_not_found_from_its_natural_end_on(self, registry: Driver, clock: Clock) -> None:
        path = f"/asap/{kid_of(registry.joined(key(), 'shop'))}"
        clock.forward(Limits().key_lifetime - 1)
        assert registry.client.get(path).status_code == 200
        clock.forward(1)
        assert registry.client.get(path).status_code == 404

    def test_an_applicants_key_is_not_found(self, sqlite_url: str, tmp_path: Path) -> None:
        registry = Driver(sqlite_url, tmp_path / "applicants", applicants=True)
        pair = key()
        assert registry.post_key("shop", {"proof": registry.proof(pair, "shop")}).status_code == 202
        assert registry.client.get(f"/asap/{kid_of(pair)}").status_code == 404
        registry.close()

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            (f"{DOMAIN}/shop/{'A' * 43}", (404, "key_not_found")),
            (f"{DOMAIN}/stranger/{'A' * 43}", (404, "service_not_found")),
            (f"{DOMAIN}/shop/{'A' * 42}", (404, "not_found")),
            (f"{DOMAIN}/sh%27op/{'A' * 43}", (400, "invalid_name")),
            (f"{DOMAIN}/../shop/{'A' * 43}", (404, "not_found")),
            (f"{DOMAIN}/shop", (404, "not_found")),
            ("", (404, "not_found")),
        ],
    )
    def test_what_is_not_there(self, registry: Driver, path: str, expected: tuple[int, str]) -> None:
        registry.joined(key(), "shop")
        answer = registry.client.get(f"/asap/{path}")
        assert (answer.status_code, answer.get_json()["code"]) == expected

    def test_a_key_is_found_below_its_own_service_and_domain_only(self, registry: Driver) -> None:
        pair = registry.joined(key(), "shop")
        registry.joined(key(), "billing")
        for owner in (service_id(DOMAIN, "billing"), "other.example/shop"):
            assert registry.client.get(f"/asap/{kid_of(pair, owner)}").status_code == 404


@dataclass(frozen=True)
class Repository:
    """The registry at a URL of https, and the certificate of its authority."""

    registry: Driver
    url: str
    ca: Path

    def verified(self, token: str | bytes, audience: str) -> dict[str, object]:
        """The claims of a token, as an ASAP verifier returns them. Raises as it does."""
        verifier = JWTAuthVerifier(HTTPSPublicKeyRetriever(f"{self.url}/asap/"))
        return verifier.verify_jwt(token, audience, leeway=30, verify=str(self.ca))


@contextmanager
def serving(registry: Driver, folder: Path) -> Iterator[Repository]:
    authority = Authority.make(folder, "web-ca")
    certificate, private_key = authority.issue("registry", server=True)
    files = str(certificate), str(private_key)
    server = make_server("127.0.0.1", 0, registry.app, threaded=True, ssl_context=files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Repository(registry, f"https://127.0.0.1:{server.port}", authority.file)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def repository(registry: Driver, tmp_path: Path) -> Iterator[Repository]:
    with serving(registry, tmp_path) as repository:
        yield repository


@pytest.fixture
def shop(registry: Driver, tmp_path: Path) -> Iterator[Identity]:
    """A service with the SDK, and an RSA key as by default."""
    join_token = registry.join_token("shop").encode()
    options = {"registry": "https://registry.test", "fetcher": InProcess(registry), "clock": registry.clock}
    identity = Identity("shop", join_token=join_token, key_dir=tmp_path / "keys", **options).start()
    yield identity
    identity.stop()


class TestAnAsapVerifier:
    def test_it_accepts_the_tokens_of_a_service_with_the_sdk(self, repository: Repository, shop: Identity) -> None:
        request_token = shop.sign_request("billing", method="GET", target="/invoices/7")
        assert repository.verified(request_token, service_id(DOMAIN, "billing"))["iss"] == SHOP
        assertion = shop.sign_assertion(audience="billing")
        assert repository.verified(assertion, "billing")["sub"] == SHOP

    def test_it_accepts_what_an_asap_signer_signs_with_a_registered_key(self, repository: Repository) -> None:
        pair = repository.registry.joined(key(), "shop")
        signer = asap_signer(pair)
        claims = repository.verified(signer.generate_jwt("billing"), "billing")
        assert (claims["iss"], claims["aud"]) == (SHOP, "billing")

    def test_it_refuses_a_key_of_another_service(self, repository: Repository) -> None:
        pair = repository.registry.joined(key(), "stranger")
        signer = asap_signer(pair, kid=kid_of(pair, service_id(DOMAIN, "stranger")))
        with pytest.raises(ValueError, match="Issuer does not own the supplied public key"):
            repository.verified(signer.generate_jwt("billing"), "billing")

    @pytest.mark.parametrize("ended", [False, True], ids=["unknown", "revoked"])
    def test_it_refuses_a_key_that_is_not_active(self, repository: Repository, ended: bool) -> None:
        pair = key()
        if ended:
            repository.registry.end(repository.registry.joined(pair, "shop"), "shop", "compromised")
        with pytest.raises(PublicKeyRetrieverException, match="404"):
            repository.verified(asap_signer(pair).generate_jwt("billing"), "billing")


def test_a_service_with_the_sdk_refuses_an_asap_token(registry: Driver, shop: Identity) -> None:
    """It binds no request."""
    pair = registry.joined(key(), "caller")
    signer = asap_signer(pair, kid=kid_of(pair, service_id(DOMAIN, "caller")), issuer=service_id(DOMAIN, "caller"))
    token = signer.generate_jwt(SHOP).decode()
    verifier = Verifier(shop.trust, audience="shop", allow={"caller": ()}, clock=registry.clock)
    with pytest.raises(WrongType):
        verifier.verify(token, method="GET", target="/", body=b"", headers={})


def asap_signer(pair: KeyPair, *, kid: str | None = None, issuer: str = SHOP) -> JWTAuthSigner:
    """atlassian-jwt-auth's signer with this key."""
    retriever = StaticPrivateKeyRetriever(kid or kid_of(pair), pair.to_pem())
    return JWTAuthSigner(issuer, retriever, algorithm=pair.public.alg)
