"""Opaque users' tokens: the issuer is asked, seldom, and what it said never outlives the token."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Response

from peerseal import Identity, IntrospectionClient, RotationSchedule, UserVerifier
from peerseal.errors import (
    BadSignature,
    ConfigurationError,
    Expired,
    MalformedToken,
    MissingToken,
    TokenError,
    TrustUnavailable,
    WrongAudience,
    WrongIssuer,
)
from peerseal.protocol.policies import UserIssuer
from peerseal.runtime.limits import IssuerLimits
from peerseal.testing import Clock, MemoryRegistry
from tests.peerseal.served import Child
from tests.support.introspecting import Client, Introspecting, running_introspection
from tests.support.issuer import running_issuer
from tests.support.misbehaving import refused
from tests.support.waiting import until

LIMITS = IssuerLimits()
SECRET = "s3cr:t/ü +%"  # every character that RFC 6749 section 2.3.1 has to encode


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def issuer(clock: Clock) -> Iterator[Introspecting]:
    with running_introspection(now=clock) as issuer:
        issuer.clients["edge-client"] = Client("edge-client", SECRET)
        yield issuer


@pytest.fixture
def registry(issuer: Introspecting, clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        registry.set_domain(minters=["edge"], issuers=[setting(issuer)])
        yield registry


def setting(issuer: Introspecting, **changes: Any) -> UserIssuer:
    return UserIssuer(issuer.issuer.url, "edge", introspection_url=issuer.url, **changes)


def credentials(issuer: Introspecting, secret: str = SECRET, **options: Any) -> IntrospectionClient:
    return IntrospectionClient(issuer.issuer.url, "edge-client", secret, **options)


def verifier(registry: MemoryRegistry, issuer: Introspecting, **options: Any) -> UserVerifier:
    options = {"introspection": credentials(issuer), "clock": registry.clock, **options}
    return UserVerifier(registry.trust_store(), **options)


def by_key(issuer: Introspecting, identity: Identity) -> IntrospectionClient:
    return IntrospectionClient(issuer.issuer.url, "edge-client", private_key_jwt=identity.sign_assertion)


def published(registry: MemoryRegistry, service: str) -> list[dict[str, Any]]:
    return [{**key.public.jwk, "kid": key.kid} for key in registry.jwk_set(service).keys]


@pytest.fixture
def users(registry: MemoryRegistry, issuer: Introspecting) -> UserVerifier:
    return verifier(registry, issuer)


class TestWhoAUserIs:
    def test_is_what_the_issuer_answers(self, issuer: Introspecting, users: UserVerifier, clock: Clock) -> None:
        user = users.verify(issuer.issue("opaque-1"))
        assert (user.name, user.issuer, user.scopes) == ("ada", issuer.issuer.url, {"orders:write", "orders:read"})
        assert user.expires_at == clock() + 600
        assert user.authentication == {"iss": issuer.issuer.url, "jti": "id-of-ada"}
        assert user.claims["client_id"] == "spa"
        assert issuer.forms == [{"token": "opaque-1", "token_type_hint": "access_token"}]

    def test_a_transaction_is_minted_for_it(
        self, issuer: Introspecting, registry: MemoryRegistry, users: UserVerifier
    ) -> None:
        transaction = registry.identity("edge").mint_transaction(
            users.verify(issuer.issue("opaque-1")), scope=["orders:read"]
        )
        assert transaction.user == "ada"
        assert transaction.authentication == {"iss": issuer.issuer.url, "jti": "id-of-ada"}

    @pytest.mark.parametrize("jti", [None, "opaque-1"])
    def test_the_token_itself_is_no_evidence_of_it(
        self, issuer: Introspecting, users: UserVerifier, jti: str | None
    ) -> None:
        """Some issuers call an opaque token its own jti: in a transaction every callee could read it."""
        user = users.verify(issuer.issue("opaque-1", jti=jti))
        assert user.authentication == {"iss": issuer.issuer.url}
        assert "opaque-1" not in user.claims.values()

    def test_a_token_without_an_end_is_good_as_long_as_the_answer(
        self, issuer: Introspecting, users: UserVerifier, clock: Clock
    ) -> None:
        assert users.verify(issuer.issue("opaque-1", exp=None)).expires_at == clock() + LIMITS.introspection_ttl

    @pytest.mark.parametrize("aud", [["billing", "edge"], "edge"])
    def test_is_for_the_audience_in_the_settings(self, issuer: Introspecting, users: UserVerifier, aud: Any) -> None:
        assert users.verify(issuer.issue("opaque-1", aud=aud)).name == "ada"

    @pytest.mark.parametrize("aud", ["billing", ["billing"], [], None])
    def test_is_nobody_where_the_answer_names_no_such_audience(
        self, issuer: Introspecting, registry: MemoryRegistry, users: UserVerifier, aud: Any
    ) -> None:
        token = issuer.issue("opaque-1", aud=aud)
        with pytest.raises(WrongAudience):
            users.verify(token)
        lenient = verifier(registry, issuer, introspection=credentials(issuer, unsafe_any_audience=True))
        assert lenient.verify(token).name == "ada"

    @pytest.mark.parametrize(
        "changes", [{"token_type": "Bearer"}, {"token_use": "access_token"}, {"token_type": "DPoP"}, {"typ": "JWT"}]
    )
    def test_an_answer_may_say_that_it_is_about_an_access_token(
        self, issuer: Introspecting, users: UserVerifier, changes: dict[str, Any]
    ) -> None:
        assert users.verify(issuer.issue("opaque-1", **changes)).name == "ada"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"iss": "https://evil.example"}, "wrong_issuer"),
            ({"exp": 1_800_000_000 - 30}, "expired"),
            ({"nbf": 1_800_000_000 + 31}, "not_yet_valid"),
            ({"iat": 1_800_000_000 + 31}, "not_yet_valid"),
            ({"sub": None}, "malformed_token"),
            ({"sub": ""}, "malformed_token"),
            ({"sub": "ada\nroot"}, "malformed_token"),
            ({"scope": 'a"b'}, "malformed_token"),
            ({"scp": ["x"]}, "malformed_token"),
            ({"token_use": "refresh_token"}, "wrong_type"),
            ({"token_type": "refresh_token"}, "wrong_type"),
            ({"token_type": "Bearer", "typ": "Refresh"}, "wrong_type"),
        ],
        ids=str,
    )
    def test_is_nobody_where_the_answer_does_not_say_so(
        self, issuer: Introspecting, users: UserVerifier, changes: dict[str, Any], code: str
    ) -> None:
        with pytest.raises(TokenError) as refusal:
            users.verify(issuer.issue("opaque-1", **changes))
        assert refusal.value.code == code

    def test_is_nobody_without_an_active_token(self, issuer: Introspecting, users: UserVerifier) -> None:
        with pytest.raises(Expired, match="not active"):
            users.verify("made-up")

    @pytest.mark.parametrize("token", ["", "a b", "a\n", "é", "a" * 16385, 7])
    def test_what_no_issuer_issues_is_not_asked_about(
        self, issuer: Introspecting, users: UserVerifier, token: Any
    ) -> None:
        with pytest.raises(MalformedToken):
            users.verify(token)
        with pytest.raises(MissingToken):
            users.verify(None)  # type: ignore[arg-type]
        assert issuer.calls == 0


class TestHowTheServiceProvesItself:
    def test_by_its_registered_key(self, issuer: Introspecting) -> None:
        """The issuer reads the service's keys from the registry, so a rotation needs no change at the issuer."""
        with MemoryRegistry(clock=(clock := Clock())) as registry:
            issuer.now = clock
            edge = registry.identity("edge")
            registry.set_domain(issuers=[setting(issuer)])
            users = verifier(registry, issuer, introspection=by_key(issuer, edge))
            issuer.clients["edge-client"] = Client("edge-client", published=lambda: published(registry, "edge"))
            assert users.verify(issuer.issue("opaque-1")).name == "ada"
            before = edge.credentials
            edge.rotate()
            clock.advance(RotationSchedule().lead)
            assert edge.credentials != before
            assert users.verify(issuer.issue("opaque-2", "grace")).name == "grace"

    def test_not_by_another_services_key(self, issuer: Introspecting, caplog: pytest.LogCaptureFixture) -> None:
        with MemoryRegistry() as registry:
            issuer.now = registry.clock
            registry.set_domain(issuers=[setting(issuer)])
            users = verifier(registry, issuer, introspection=by_key(issuer, registry.identity("billing")))
            registry.identity("edge")
            issuer.clients["edge-client"] = Client("edge-client", published=lambda: published(registry, "edge"))
            with pytest.raises(TrustUnavailable, match="refuses this service's credentials"):
                users.verify(issuer.issue("opaque-1"))
        assert "has this service's current keys" in caplog.text

    @pytest.mark.parametrize("secret", ["wrong", SECRET + "x"])
    def test_credentials_that_the_issuer_refuses_are_no_fault_of_the_user(
        self, issuer: Introspecting, registry: MemoryRegistry, secret: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        users = verifier(registry, issuer, introspection=credentials(issuer, secret))
        with pytest.raises(TrustUnavailable, match="refuses this service's credentials") as refusal:
            users.verify(issuer.issue("opaque-1"))
        assert refusal.value.retry_after >= 1
        assert "check PEERSEAL_INTROSPECTION_CLIENT_ID" in caplog.text
        assert secret not in caplog.text

    def test_nowhere_but_at_the_issuer_that_the_credentials_name(
        self, issuer: Introspecting, registry: MemoryRegistry
    ) -> None:
        other = IntrospectionClient("https://other.example", "edge-client", SECRET)
        users = verifier(registry, issuer, introspection=other)
        with pytest.raises(WrongIssuer):
            users.verify(issuer.issue("opaque-1"))
        with pytest.raises(TrustUnavailable, match="no credentials"):
            users.verify("opaque-1", issuer=issuer.issuer.url)
        assert issuer.calls == 0

    def test_from_the_environment(self, registry: MemoryRegistry, tmp_path: Path) -> None:
        identity = registry.identity("edge")
        file = tmp_path / "secret"
        file.write_text("in a file\n")
        names = {"PEERSEAL_INTROSPECTION_ISSUER": "https://i", "PEERSEAL_INTROSPECTION_CLIENT_ID": "edge"}
        from_file = {**names, "PEERSEAL_INTROSPECTION_SECRET_FILE": str(file)}
        assert IntrospectionClient.from_env(identity, {}) is None
        assert IntrospectionClient.from_env(identity, from_file) == IntrospectionClient(
            "https://i", "edge", "in a file"
        )
        by_key = IntrospectionClient.from_env(identity, names)
        assert by_key is not None
        assert by_key.secret is None
        assert by_key.authentication()[1]["client_assertion"].count(".") == 2

    @pytest.mark.parametrize("missing", ["ISSUER", "CLIENT_ID"])
    def test_half_of_the_environment_is_an_error_that_names_the_other(
        self, registry: MemoryRegistry, missing: str
    ) -> None:
        names = {f"PEERSEAL_INTROSPECTION_{name}": "x" for name in ("ISSUER", "CLIENT_ID", "SECRET")}
        del names[f"PEERSEAL_INTROSPECTION_{missing}"]
        with pytest.raises(ConfigurationError, match=f"PEERSEAL_INTROSPECTION_{missing} is not set"):
            IntrospectionClient.from_env(registry.identity("edge"), names)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"secret": ""},
            {"secret": 7},
            {"private_key_jwt": "key"},
            {"secret": "x", "private_key_jwt": str},
            {"secret": "x", "client_id": ""},
            {"secret": "x", "issuer": None},
            {"secret": "x", "unsafe_any_audience": "no"},
        ],
        ids=str,
    )
    def test_mistakes_are_errors_when_it_is_made(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            IntrospectionClient(**{"issuer": "https://i", "client_id": "edge", **options})

    def test_a_secret_is_not_shown(self) -> None:
        assert "hidden" not in repr(IntrospectionClient("https://i", "edge", "hidden"))


class TestWhichIssuerIsAsked:
    def test_the_caller_names_it_where_there_are_two(
        self, issuer: Introspecting, registry: MemoryRegistry, clock: Clock
    ) -> None:
        with running_introspection(now=clock) as other:
            other.clients["edge-client"] = Client("edge-client", SECRET)
            registry.set_domain(issuers=[setting(issuer), setting(other)])
            users = verifier(registry, issuer, introspection=[credentials(issuer), credentials(other)])
            token = other.issue("opaque-1", "grace")
            with pytest.raises(WrongIssuer, match="2 issuers"):
                users.verify(token)
            assert users.verify(token, issuer=other.issuer.url).name == "grace"
            assert (issuer.calls, other.calls) == (0, 1)

    def test_one_of_two_is_enough_where_this_service_has_credentials_at_one(
        self, issuer: Introspecting, registry: MemoryRegistry
    ) -> None:
        elsewhere = UserIssuer("https://other.example", "edge", introspection_url="https://other.example/introspect")
        registry.set_domain(issuers=[elsewhere, setting(issuer)])
        assert verifier(registry, issuer).verify(issuer.issue("opaque-1")).name == "ada"

    def test_none_that_an_operator_took_out(
        self, issuer: Introspecting, registry: MemoryRegistry, clock: Clock
    ) -> None:
        users = UserVerifier(registry, introspection=credentials(issuer), clock=clock)
        token = issuer.issue("opaque-1")
        assert users.verify(token).name == "ada"
        registry.set_domain(issuers=[])
        for named in (None, issuer.issuer.url):
            with pytest.raises(WrongIssuer):
                users.verify(token, issuer=named)

    def test_none_about_a_jwt(self, issuer: Introspecting, users: UserVerifier, clock: Clock) -> None:
        token = issuer.issuer.token("grace", "edge", now=clock(), scope="orders:read")
        assert users.verify(token).name == users.verify(token, issuer=issuer.issuer.url).name == "grace"
        with pytest.raises(WrongIssuer, match="expected a token of"):
            users.verify(token, issuer="https://other.example")
        assert issuer.calls == 0

    def test_an_issuer_of_jwts_alone_is_not_asked(self, issuer: Introspecting, registry: MemoryRegistry) -> None:
        with running_issuer() as plain:
            registry.set_domain(issuers=[UserIssuer(plain.url, "edge"), setting(issuer)])
            with pytest.raises(WrongIssuer, match="introspection_url"):
                verifier(registry, issuer).verify(issuer.issue("opaque-1"), issuer=plain.url)

    def test_also_about_jwts_where_the_settings_say_so(
        self, issuer: Introspecting, registry: MemoryRegistry, clock: Clock
    ) -> None:
        """A JWT that was revoked is then refused before its end; one with a bad signature is not asked about."""
        registry.set_domain(issuers=[setting(issuer, introspect_jwts=True)])
        users = verifier(registry, issuer)
        token = issuer.issue(issuer.issuer.token("ada", "edge", now=clock(), scope="everything"))
        assert users.verify(token).scopes == {"orders:write", "orders:read"}
        issuer.tokens[token].revoked = True
        clock.advance(LIMITS.introspection_ttl)
        with pytest.raises(Expired):
            users.verify(token)
        calls = issuer.calls
        with pytest.raises(BadSignature):
            users.verify(token[:-8] + "AAAAAAAA")
        assert issuer.calls == calls

    def test_an_answer_about_another_user_than_the_jwt_names_is_none(
        self, issuer: Introspecting, registry: MemoryRegistry, clock: Clock
    ) -> None:
        registry.set_domain(issuers=[setting(issuer, introspect_jwts=True)])
        token = issuer.issue(issuer.issuer.token("ada", "edge", now=clock()), "grace")
        with pytest.raises(TrustUnavailable):
            verifier(registry, issuer).verify(token)


class TestWhatIsRemembered:
    def test_an_active_token_for_its_time_to_live(
        self, issuer: Introspecting, users: UserVerifier, clock: Clock
    ) -> None:
        token = issuer.issue("opaque-1")
        for _ in range(5):
            users.verify(token)
        clock.advance(LIMITS.introspection_ttl - 1)
        users.verify(token)
        assert issuer.calls == 1
        issuer.tokens[token].revoked = True
        assert users.verify(token).name == "ada", "a revocation is in force within the time to live"
        clock.advance(1)
        with pytest.raises(Expired):
            users.verify(token)
        assert issuer.calls == 2

    def test_never_beyond_the_tokens_end(self, issuer: Introspecting, users: UserVerifier, clock: Clock) -> None:
        token = issuer.issue("opaque-1", exp=int(clock()) + 10)
        users.verify(token)
        issuer.tokens[token].revoked = True
        clock.advance(10)
        with pytest.raises(Expired):
            users.verify(token)
        assert issuer.calls == 2

    def test_not_after_the_clock_was_set_back(self, issuer: Introspecting, users: UserVerifier, clock: Clock) -> None:
        users.verify(issuer.issue("opaque-1"))
        clock.advance(-20)
        users.verify("opaque-1")
        assert issuer.calls == 2

    def test_a_refusal_for_seconds(self, issuer: Introspecting, users: UserVerifier, clock: Clock) -> None:
        for _ in range(5):
            with pytest.raises(Expired):
                users.verify("opaque-1")
        assert issuer.calls == 1
        issuer.issue("opaque-1")
        clock.advance(LIMITS.introspection_negative_ttl)
        assert users.verify("opaque-1").name == "ada"

    def test_nothing_about_a_token_that_is_forgotten(self, issuer: Introspecting, users: UserVerifier) -> None:
        token = issuer.issue("opaque-1")
        users.verify(token)
        issuer.tokens[token].revoked = True
        users.forget(token)
        with pytest.raises(Expired):
            users.verify(token)

    def test_nothing_about_a_token_that_is_forgotten_while_the_issuer_answers(
        self, issuer: Introspecting, users: UserVerifier
    ) -> None:
        token = issuer.issue("opaque-1")
        users.verify(issuer.issue("another"))  # so that there is something to forget
        issuer.open.clear()
        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(users.verify, token)
            until(lambda: issuer.waiting == 1)
            users.forget(token)
            issuer.open.set()
            assert early.result().name == "ada"
        issuer.tokens[token].revoked = True
        with pytest.raises(Expired):
            users.verify(token)

    def test_as_many_tokens_as_are_agreed(self, issuer: Introspecting, registry: MemoryRegistry) -> None:
        users = verifier(registry, issuer, limits=IssuerLimits(max_introspected=3))
        tokens = [issuer.issue(f"opaque-{count}") for count in range(4)]
        for token in tokens:
            users.verify(token)
        users.verify(tokens[-1])
        assert issuer.calls == 4
        users.verify(tokens[0])
        assert issuer.calls == 5, "the oldest was forgotten"

    def test_by_a_forked_child_too_which_asks_over_a_connection_of_its_own(
        self, issuer: Introspecting, users: UserVerifier
    ) -> None:
        known, new = issuer.issue("opaque-1"), issuer.issue("opaque-2", "grace")
        users.verify(known)
        child = Child(lambda: [users.verify(known).name, users.verify(new).name])
        assert child.result() == ["ada", "grace"]
        assert users.verify(new).name == "grace"
        assert issuer.calls == 3

    def test_a_child_that_is_forked_while_a_thread_asks_asks_for_itself(
        self, issuer: Introspecting, users: UserVerifier
    ) -> None:
        token = issuer.issue("opaque-1")
        issuer.open.clear()
        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(users.verify, token)
            until(lambda: issuer.waiting == 1)
            child = Child(lambda: users.verify(token).name)
            until(lambda: issuer.waiting == 2)
            issuer.open.set()
            assert child.result() == early.result().name == "ada"


class TestManyCallers:
    def test_with_one_token_make_one_call(self, issuer: Introspecting, users: UserVerifier) -> None:
        token, callers = issuer.issue("opaque-1"), 20
        issuer.open.clear()
        started = threading.Barrier(callers)

        def call() -> str:
            started.wait()
            return users.verify(token).name

        with ThreadPoolExecutor(callers) as pool:
            answers = [pool.submit(call) for _ in range(callers)]
            until(lambda: issuer.waiting == 1)
            issuer.open.set()
            assert {answer.result() for answer in answers} == {"ada"}
        assert issuer.calls == 1

    def test_with_different_tokens_get_each_their_own_user(self, issuer: Introspecting, users: UserVerifier) -> None:
        tokens = {issuer.issue(f"opaque-{count}", f"user-{count}"): f"user-{count}" for count in range(40)}
        with ThreadPoolExecutor(40) as pool:
            names = list(pool.map(lambda token: users.verify(token).name, tokens))
        assert names == list(tokens.values())
        assert issuer.most_at_once <= LIMITS.introspections

    def test_wait_no_longer_than_agreed_for_an_issuer_that_is_slow(
        self, issuer: Introspecting, registry: MemoryRegistry
    ) -> None:
        limits = IssuerLimits(introspections=2, introspection_patience=0.3)
        users = verifier(registry, issuer, limits=limits)
        issuer.open.clear()

        def call(token: str) -> int:
            with pytest.raises(TrustUnavailable) as refusal:
                users.verify(token)
            return refusal.value.retry_after

        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(call, [issuer.issue(f"opaque-{count % 5}") for count in range(10)]))
        assert min(answers) >= 1
        assert issuer.calls <= 2

    def test_who_make_tokens_up_do_not_hold_up_users_who_are_known(
        self, issuer: Introspecting, registry: MemoryRegistry, clock: Clock
    ) -> None:
        users = verifier(registry, issuer, limits=IssuerLimits(introspection_burst=10, introspection_rate=2))
        known = issuer.issue("opaque-1")
        users.verify(known)
        clock.advance(LIMITS.introspection_ttl)
        outcomes = [outcome(users, f"made-up-{count}") for count in range(50)]
        assert outcomes == ["expired"] * 10 + ["trust_unavailable"] * 40
        assert issuer.calls == 11
        assert users.verify(known).name == "ada"
        clock.advance(1)
        assert [outcome(users, f"more-{count}") for count in range(3)] == ["expired"] * 2 + ["trust_unavailable"]


def outcome(users: UserVerifier, token: str) -> str:
    with pytest.raises((Expired, TrustUnavailable)) as refusal:
        users.verify(token)
    return refusal.value.code


class TestAnIssuerThatDoesNotAnswer:
    def test_is_no_fault_of_the_user(self, issuer: Introspecting, registry: MemoryRegistry, clock: Clock) -> None:
        down = UserIssuer(issuer.issuer.url, "edge", introspection_url=refused() + "/introspect")
        registry.set_domain(issuers=[down])
        users = verifier(registry, issuer)
        with pytest.raises(TrustUnavailable, match="cannot be asked") as refusal:
            users.verify("opaque-1")
        assert refusal.value.retry_after >= 1
        with pytest.raises(TrustUnavailable, match="a moment ago"):
            users.verify("opaque-2")

    def test_does_not_take_back_what_it_said(self, issuer: Introspecting, users: UserVerifier, clock: Clock) -> None:
        token = issuer.issue("opaque-1")
        users.verify(token)
        issuer.override = lambda _: Response(status=500)
        clock.advance(LIMITS.introspection_ttl - 1)
        assert users.verify(token).name == "ada"
        clock.advance(1)
        with pytest.raises(TrustUnavailable):
            users.verify(token)

    def test_is_asked_again_when_it_is_back(self, issuer: Introspecting, users: UserVerifier) -> None:
        token = issuer.issue("opaque-1")
        for status in (500, 503, 404, 429, 400, 201):
            issuer.override = lambda _, status=status: Response(status=status)  # type: ignore[misc]
            with pytest.raises(TrustUnavailable, match=f"answered {status}"):
                users.verify(token)
        issuer.override = None
        assert users.verify(token).name == "ada"


class TestSignedAnswers:
    @pytest.mark.parametrize("required", [False, True])
    def test_are_believed_by_the_issuers_key(
        self, issuer: Introspecting, registry: MemoryRegistry, required: bool
    ) -> None:
        registry.set_domain(issuers=[setting(issuer, introspection_signed=required)])
        issuer.signs = True
        assert verifier(registry, issuer).verify(issuer.issue("opaque-1")).name == "ada"

    def test_say_that_a_token_is_not_active(self, issuer: Introspecting, users: UserVerifier) -> None:
        issuer.signs = True
        with pytest.raises(Expired):
            users.verify("made-up")


class TestSettings:
    def test_are_as_before_where_nothing_is_introspected(self) -> None:
        said = UserIssuer("https://i", "edge").to_json()
        assert said == {"issuer": "https://i", "audience": "edge", "jwks_url": None}

    def test_are_read_as_they_were_written(self) -> None:
        for flags in ({}, {"introspection_signed": True}, {"introspection_signed": True, "introspect_jwts": True}):
            written = UserIssuer("https://i", "edge", introspection_url="https://i/introspect", **flags)
            assert UserIssuer.from_json(written.to_json()) == written

    @pytest.mark.parametrize(
        "members",
        [
            {"introspection_url": "http://login.example.com/introspect"},
            {"introspection_url": "https://login.example.com/introspect?a=b"},
            {"introspection_url": "https://user@login.example.com/introspect"},
            {"introspection_url": 7},
            {"introspection_signed": True},
            {"introspect_jwts": True},
            {"introspection_url": "https://i/introspect", "introspect_jwts": 1},
            {"introspection_url": "https://i/introspect", "introspection_secret": "x"},
        ],
        ids=str,
    )
    def test_that_nobody_may_follow_are_refused(self, members: dict[str, Any]) -> None:
        with pytest.raises(MalformedToken):
            UserIssuer.from_json({"issuer": "https://i", "audience": "edge", **members})

    def test_two_credentials_for_one_issuer_are_a_mistake(self, registry: MemoryRegistry) -> None:
        twice = [IntrospectionClient("https://i", name, "x") for name in ("a", "b")]
        with pytest.raises(ConfigurationError, match="two"):
            UserVerifier(registry, introspection=twice)
        with pytest.raises(ConfigurationError):
            UserVerifier(registry, introspection=["https://i"])  # type: ignore[list-item]


def test_no_token_and_no_secret_is_logged(
    issuer: Introspecting, users: UserVerifier, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    users.verify(issuer.issue("opaque-secret-1"))
    with pytest.raises(Expired):
        users.verify("opaque-secret-2")
    issuer.override = lambda _: Response(status=500)
    with pytest.raises(TrustUnavailable) as refusal:
        users.verify("opaque-secret-3")
    assert "opaque-secret" not in caplog.text + str(refusal.value)
    assert SECRET not in caplog.text
