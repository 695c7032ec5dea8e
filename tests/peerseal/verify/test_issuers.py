"""Foreign issuers' keys: fetched, cached, kept fresh, and how little a stranger can make an issuer do."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerseal.errors import ConfigurationError, FetchError, TrustUnavailable, UnknownKey, WrongIssuer
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.tokens.oidc import MAX_DISCOVERY, UnverifiedToken
from peerseal.runtime.limits import IssuerLimits
from peerseal.testing import Clock
from peerseal.verify.issuers import IssuerKeys, OidcIssuer, check_jwks_uri
from tests.support.issuer import DISCOVERY, ENDLESS, JWKS, Issuer, private_ca, running_issuer
from tests.support.weak_keys import pair, roca_prime

NOW = 1_900_000_000
URL = "https://issuer.test"
AUDIENCE = "acme.internal/registry"
SUBJECT = "system:serviceaccount:shop:billing"
LIMITS = IssuerLimits()

# fetched, cached, kept fresh


class Source:
    """Gives the issuer's set, counts how often, and fails when it shall."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.count = 0
        self.failing = False

    def __call__(self) -> bytes:
        self.count += 1
        if self.failing:
            raise FetchError("the issuer is down")
        return json.dumps(self.issuer.jwks).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def source() -> Source:
    return Source(Issuer(URL, alg="ES256"))


@pytest.fixture
def keys(source: Source, clock: Clock) -> IssuerKeys:
    return IssuerKeys(source, LIMITS, clock)


def test_known_keys_cost_one_fetch_in_a_refresh_interval(keys: IssuerKeys, source: Source, clock: Clock) -> None:
    for _ in range(100):
        keys.key(source.issuer.kid)
    assert source.count == 1
    clock.advance(LIMITS.refresh_interval)
    for _ in range(100):
        keys.key(source.issuer.kid)
    assert source.count == 2


def test_1000_unknown_kids_cost_one_fetch_a_cooldown(keys: IssuerKeys, source: Source, clock: Clock) -> None:
    for round_ in range(3):
        codes = set()
        for number in range(1000):
            with pytest.raises((UnknownKey, TrustUnavailable)) as caught:
                keys.key(f"{round_}-{number}")
            codes.add(caught.value.code)
        assert codes == {"unknown_key", "trust_unavailable"}
        assert source.count == round_ + 1
        assert keys.key(source.issuer.kid), "the known ones are not disturbed"
        clock.advance(LIMITS.cooldown)


def test_a_kid_that_was_not_found_is_refused_without_looking_for_a_while(
    keys: IssuerKeys, source: Source, clock: Clock
) -> None:
    for _ in range(2):
        with pytest.raises(UnknownKey):
            keys.key("nobody's")
    clock.advance(LIMITS.cooldown)
    with pytest.raises(UnknownKey):
        keys.key("nobody's")
    assert source.count == 1
    clock.advance(LIMITS.negative_ttl)
    with pytest.raises(UnknownKey):
        keys.key("nobody's")
    assert source.count == 2


def test_a_new_key_is_found_after_the_cooldown_and_told_from_an_unknown_one_before(
    keys: IssuerKeys, source: Source, clock: Clock
) -> None:
    keys.key(source.issuer.kid)
    clock.advance(4)
    new = source.issuer.rotate()
    with pytest.raises(TrustUnavailable) as caught:
        keys.key(new)
    assert caught.value.retry_after == 6
    clock.advance(caught.value.retry_after)
    assert keys.key(new)


def test_a_withdrawn_key_is_refused_after_the_refresh_interval(keys: IssuerKeys, source: Source, clock: Clock) -> None:
    old = source.issuer.kid
    keys.key(old)
    source.issuer.rotate(keep=0)
    clock.advance(LIMITS.refresh_interval)
    with pytest.raises(UnknownKey):
        keys.key(old)


def test_keys_are_kept_through_failed_refreshes_up_to_the_offline_limit(
    keys: IssuerKeys, source: Source, clock: Clock
) -> None:
    kid = source.issuer.kid
    keys.key(kid)
    source.failing = True
    clock.advance(LIMITS.offline_limit - 1)
    assert keys.key(kid)
    clock.advance(1)
    with pytest.raises(TrustUnavailable):
        keys.key(kid)
    source.failing = False
    clock.advance(LIMITS.cooldown)
    assert keys.key(kid)


def test_an_issuer_that_is_down_is_asked_once_a_cooldown(keys: IssuerKeys, source: Source, clock: Clock) -> None:
    source.failing = True
    for _ in range(100):
        with pytest.raises(TrustUnavailable) as caught:
            keys.key(source.issuer.kid)
        assert 0 < caught.value.retry_after <= LIMITS.cooldown
    assert source.count == 1
    clock.advance(LIMITS.cooldown)
    source.failing = False
    assert keys.key(source.issuer.kid)


def test_a_clock_that_was_set_back_is_no_endless_cooldown(keys: IssuerKeys, source: Source, clock: Clock) -> None:
    with pytest.raises(UnknownKey):
        keys.key("nobody's")
    clock.advance(-10_000)
    source.issuer.rotate()
    assert keys.key(source.issuer.kid)


def test_what_is_remembered_of_unknown_kids_is_bounded(source: Source, clock: Clock) -> None:
    keys = IssuerKeys(source, IssuerLimits(cooldown=0.0, max_negative=10), clock)
    for number in range(100):
        with pytest.raises(UnknownKey):
            keys.key(str(number))
    fetches = source.count
    for number in range(90, 100):
        with pytest.raises(UnknownKey):
            keys.key(str(number))
    assert source.count == fetches
    with pytest.raises(UnknownKey):
        keys.key("89")
    assert source.count == fetches + 1


def test_one_thread_fetches_and_no_other_waits_for_a_slow_issuer(source: Source, clock: Clock) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        entered.set()
        go_on.wait(10)
        return source()

    keys = IssuerKeys(slow, LIMITS, clock)
    found: list[object] = []
    fetching = threading.Thread(target=lambda: found.append(keys.key(source.issuer.kid)))
    fetching.start()
    entered.wait(10)
    with pytest.raises(TrustUnavailable):
        keys.key(source.issuer.kid)
    go_on.set()
    fetching.join()
    assert len(found) == source.count == 1


# over HTTP


@pytest.fixture
def served() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


def trusting(issuer: Issuer, **options: Any) -> OidcIssuer:
    return OidcIssuer.configured(issuer.url, **options)


def subject_of(trusted: OidcIssuer, token: str) -> str:
    return trusted.verify(UnverifiedToken.parse(token), audience=AUDIENCE).subject


def test_a_token_by_a_weak_key_of_the_issuer_is_refused(served: Issuer) -> None:
    weak = pair(roca_prime(), roca_prime())
    served.answers[JWKS] = {"keys": [*served.jwks["keys"], {**weak.public.jwk, "kid": "weak"}]}
    header = b64url(canonical_json({"alg": "RS256", "kid": "weak"}))
    now = int(time.time())
    claims = {"iss": served.url, "aud": AUDIENCE, "sub": SUBJECT, "iat": now, "exp": now + 60}
    token = jose.compact(header, canonical_json(claims), weak.sign)
    trusted = trusting(served)
    with pytest.raises(UnknownKey):
        subject_of(trusted, token)
    assert subject_of(trusted, served.token(SUBJECT, AUDIENCE)) == SUBJECT


def test_a_discovery_document_has_a_size_of_its_own(served: Issuer) -> None:
    served.answers[DISCOVERY] = served.discovery | {"padding": "x" * MAX_DISCOVERY}
    with pytest.raises(TrustUnavailable, match="larger than"):
        subject_of(trusting(served), served.token(SUBJECT, AUDIENCE))


def test_keys_are_discovered_once(served: Issuer) -> None:
    trusted = trusting(served)
    assert served.fetched == {}
    assert [subject_of(trusted, served.token(SUBJECT, AUDIENCE)) for _ in range(3)] == [SUBJECT] * 3
    assert served.fetched == {DISCOVERY: 1, JWKS: 1}


def test_an_issuer_whose_name_has_a_path_is_discovered_below_it() -> None:
    with running_issuer(path="/id/7/") as issuer:
        issuer.answers = {"/id/7" + DISCOVERY: issuer.discovery | {"jwks_uri": issuer.url + "keys?v=1"}}
        issuer.answers["/id/7/keys?v=1"] = issuer.jwks
        assert subject_of(trusting(issuer), issuer.token(SUBJECT, AUDIENCE)) == SUBJECT


def test_keys_come_from_a_configured_url_or_file_without_discovery(served: Issuer, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(served.jwks))
    assert subject_of(trusting(served, jwks_file=file), served.token(SUBJECT, AUDIENCE)) == SUBJECT
    assert served.fetched == {}
    assert subject_of(trusting(served, jwks_url=served.url + JWKS), served.token(SUBJECT, AUDIENCE)) == SUBJECT
    assert served.fetched == {JWKS: 1}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (DISCOVERY, {"issuer": "https://other.test", "jwks_uri": "https://other.test/keys"}),
        (DISCOVERY, {"jwks_uri": "https://other.test/keys"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": "http://192.0.2.1/keys"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": "file:///etc/passwd"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": "https://[::1"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": "//127.0.0.1"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": 7}),
        (DISCOVERY, (302, {"Location": "/elsewhere"})),
        (DISCOVERY, (500, {})),
        (DISCOVERY, ENDLESS),
        (JWKS, (301, {"Location": "/elsewhere"})),
        (JWKS, (404, {})),
        (JWKS, ENDLESS),
        (JWKS, {"keys": 7}),
    ],
)
def test_an_issuer_that_answers_otherwise_than_agreed_is_not_believed(served: Issuer, path: str, answer: Any) -> None:
    served.answers["/elsewhere"] = served.jwks
    if type(answer) is dict and answer.get("issuer") == "SELF":
        answer = answer | {"issuer": served.url}
    served.answers[path] = answer
    with pytest.raises(TrustUnavailable):
        subject_of(trusting(served), served.token(SUBJECT, AUDIENCE))
    assert "/elsewhere" not in served.fetched


@pytest.mark.parametrize(
    ("jwks_uri", "issuer"),
    [
        ("http://127.0.0.1:6443/keys", "https://issuer.test"),
        ("https://localhost/keys", "https://issuer.test"),
        ("http://10.0.0.1/keys", "https://issuer.test"),
        ("http://10.0.0.1/keys", "http://127.0.0.1"),
        ("https://user:password@issuer.test/keys", "https://issuer.test"),
        ("https://issuer.test/keys#x", "https://issuer.test"),
    ],
)
def test_where_an_issuer_may_send_nobody(jwks_uri: str, issuer: str) -> None:
    with pytest.raises(ConfigurationError):
        check_jwks_uri(jwks_uri, issuer)


@pytest.mark.parametrize("url", ["http://issuer.test", "http://localhost.test", "issuer.test", "", "ftp://127.0.0.1"])
def test_an_issuer_that_can_be_read_on_a_network_is_a_mistake(url: str) -> None:
    with pytest.raises(ConfigurationError):
        OidcIssuer.configured(url)
    with pytest.raises(ConfigurationError):
        OidcIssuer.configured("https://issuer.test", jwks_url=url)


def test_a_private_certificate_is_believed_where_its_file_is_given_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_issuer(tls=private_ca(tmp_path)) as issuer:
        token = issuer.token(SUBJECT, AUDIENCE)
        with pytest.raises(TrustUnavailable):
            subject_of(trusting(issuer), token)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "not-there.pem"))
        assert subject_of(trusting(issuer, ca_file=tmp_path / "ca.pem"), token) == SUBJECT


@pytest.mark.parametrize("text", [None, "", "[]", '{"keys": []', "{" * 600_000])
def test_a_file_that_holds_no_keys_is_no_answer(served: Issuer, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "jwks.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(TrustUnavailable):
        subject_of(trusting(served, jwks_file=file), served.token(SUBJECT, AUDIENCE))


def test_a_token_of_another_issuer_makes_nobody_fetch_anything(served: Issuer) -> None:
    with pytest.raises(WrongIssuer):
        subject_of(trusting(served), served.token(SUBJECT, AUDIENCE, iss="https://other.test"))
    assert served.fetched == {}
