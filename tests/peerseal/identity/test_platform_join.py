"""A service that joins by its platform's token: what it sends, when it asks for a new one, and what it refuses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerseal import Identity, RotationSchedule
from peerseal.errors import ConfigurationError, EnrolmentRefused, TokenError
from peerseal.identity.enrolment import PlatformToken
from peerseal.identity.environment import options_in
from peerseal.protocol.tokens.oidc import MAX_FOREIGN_TOKEN
from peerseal.protocol.tokens.proof import Proof
from peerseal.testing import Call, Clock, MemoryRegistry
from peerseal.testing.calls import Endpoints

SCHEDULE = RotationSchedule(every=1000.0, lead=10.0, overlap=20.0)
LIFETIME = 7 * 24 * 3600


class OidcRefused(TokenError):
    code = "oidc_refused"


class PlatformEndpoints(Endpoints):
    """Takes the tokens in ``good``: what makes a real one good is tested where it is checked."""

    good: frozenset[str] = frozenset()

    def right(self, call: Call, body: dict[str, Any], service: str, proof: Proof) -> dict[str, str]:
        if "oidc" not in body:
            return super().right(call, body, service, proof)
        if body["oidc"] not in self.good:
            raise OidcRefused("not a good one")
        return {"oidc": "https://issuer.test", "subject": "00"}


class PlatformRegistry(MemoryRegistry):
    """The registry with those endpoints."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.endpoints: PlatformEndpoints = PlatformEndpoints(self)


@pytest.fixture
def registry(clock: Clock) -> Iterator[PlatformRegistry]:
    with PlatformRegistry(clock) as registry:
        registry.endpoints.good = frozenset(["first.token.text"])
        yield registry


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """As the platform writes it."""
    file = tmp_path / "token"
    file.write_text("first.token.text\n")
    return file


def identity(registry: PlatformRegistry, token: str | Callable[[], str], **options: Any) -> Identity:
    return registry.identity("client", join_token=None, oidc_token=token, rotation=SCHEDULE, **options)


def sent(registry: PlatformRegistry) -> list[set[str]]:
    """The members of every registration."""
    return [set(json.loads(call.body)) for call in registry.log if call.method == "POST"]


def look_after(identity: Identity) -> None:
    identity.look_after_keys()


def test_a_newcomer_sends_its_proof_and_the_token(registry: PlatformRegistry) -> None:
    client = identity(registry, "first.token.text")
    assert client.credentials.key_id.startswith("test.internal/client/")
    (call,) = [call for call in registry.log if call.method == "POST"]
    assert json.loads(call.body).keys() == {"proof", "oidc"}
    assert json.loads(call.body)["oidc"] == "first.token.text"
    assert "authorization" not in call.headers


def test_the_next_key_is_vouched_for_and_no_token_is_shown(registry: PlatformRegistry, clock: Clock) -> None:
    client = identity(registry, "first.token.text")
    registry.endpoints.good = frozenset()
    clock.advance(SCHEDULE.every)
    look_after(client)
    assert sent(registry) == [{"proof", "oidc"}, {"proof"}]


def test_a_host_that_slept_past_its_last_keys_end_joins_again_with_the_newest_token(
    registry: PlatformRegistry, clock: Clock, token_file: Path
) -> None:
    client = identity(registry, token_file.read_text)
    first = client.credentials.key_id
    token_file.write_text("second.token.text")
    registry.endpoints.good = frozenset(["second.token.text"])
    clock.advance(LIFETIME + 1)
    look_after(client)
    assert client.credentials.key_id != first
    assert sent(registry) == [{"proof", "oidc"}, {"proof", "oidc"}]


def test_a_revoked_key_is_replaced_by_the_platforms_word(registry: PlatformRegistry, clock: Clock) -> None:
    client = identity(registry, "first.token.text")
    registry.revoke(client.credentials.key_id)
    clock.advance(SCHEDULE.every)
    look_after(client)
    assert sent(registry) == [{"proof", "oidc"}, {"proof"}, {"proof", "oidc"}]


def test_a_token_that_is_refused_ends_the_start(registry: PlatformRegistry) -> None:
    with pytest.raises(EnrolmentRefused) as caught:
        identity(registry, "another.token.text")
    assert caught.value.code == "oidc_refused"
    assert "another" not in str(caught.value)


def test_from_the_environment_the_file_is_read_at_each_join(
    registry: PlatformRegistry, token_file: Path, tmp_path: Path
) -> None:
    env = {
        "PEERSEAL_SERVICE": "client",
        "PEERSEAL_REGISTRY_URL": "https://registry.test",
        "PEERSEAL_REGISTRY_PIN": registry.pin,
        "PEERSEAL_OIDC_TOKEN_FILE": str(token_file),
    }
    newcomer = PlatformToken.of(options_in(env)["oidc_token"])
    assert newcomer.text() == "first.token.text"
    token_file.write_text("second.token.text")
    assert newcomer.text() == "second.token.text"
    token_file.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        newcomer.text()


@pytest.mark.parametrize("text", ["", "  \n", "sécret", "secret" * MAX_FOREIGN_TOKEN])
def test_a_token_that_is_none_is_a_mistake_and_is_not_quoted(registry: PlatformRegistry, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        identity(registry, lambda: text)
    assert "cret" not in str(caught.value)


def test_a_file_that_is_no_text_is_a_mistake_and_is_not_quoted(registry: PlatformRegistry, token_file: Path) -> None:
    token_file.write_bytes(b"secr\xe9t")
    with pytest.raises(ConfigurationError, match="not UTF-8 text") as caught:
        identity(registry, PlatformToken.in_file(token_file).get)
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://registry.test", ["http://registry.test", "https://mirror.test"], [], ""])
def test_a_token_is_never_sent_where_it_could_be_read(url: str | list[str]) -> None:
    with pytest.raises(ConfigurationError):
        Identity("client", registry=url, oidc_token="a.b.c", pin="A" * 43)


@pytest.mark.parametrize(
    "url", ["https://registry.test", "http://127.0.0.1:8080", "http://localhost,http://mirror.test"]
)
def test_a_token_is_sent_over_https_or_loopback(url: str) -> None:
    assert Identity("client", registry=url, oidc_token="a.b.c", pin="A" * 43)


def test_two_rights_are_a_mistake(registry: PlatformRegistry) -> None:
    with pytest.raises(ConfigurationError, match="which one counts"):
        registry.identity("client", oidc_token="a.b.c")
