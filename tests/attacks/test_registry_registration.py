"""Attacks on who may have a key in the registry: moved and replayed registrations, odd keys, a stolen key, the wire."""

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

import peerseal
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.proof import PROOF_LIFETIME, PROOF_TYP
from registry.limits import Limits
from registry.services.access.operators import Role
from tests.registry.driver import BY, DOMAIN, JSON, Clock, Driver, entries_of, tables_of


def key() -> KeyPair:
    return KeyPair.generate("ES256")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    """A registry on either database that refuses as often as it is asked to."""
    driver = Driver(registry_database, tmp_path / "home", clock, limits=Limits(refusals_per_minute=10**9))
    yield driver
    driver.close()


def code(response: TestResponse) -> str:
    assert response.status_code < 500, response.data
    return str(response.get_json()["code"])


def proof_with(registry: Driver, pair: KeyPair, *, typ: str = PROOF_TYP, **claims: object) -> str:
    """A proof by that key for billing, with other claims than it should have; None leaves one out."""
    now, owner = int(registry.clock()), service_id(DOMAIN, "billing")
    said = {"iss": owner, "aud": registry_id(DOMAIN), "iat": now, "exp": now + PROOF_LIFETIME, "jti": new_jti()}
    everything = {**said, "jwk": dict(pair.public.jwk), **claims}
    header = jose.encode_header(jose.Header(pair.public.alg, make_kid(owner, pair.public.thumbprint), typ))
    body = canonical_json({name: value for name, value in everything.items() if value is not None})
    return jose.compact(header, body, pair.sign)


def join_with(registry: Driver, token: JoinToken, proof: str) -> TestResponse:
    return registry.post_key(
        "billing", {"proof": proof, "join": {"id": token.id, "mac": join_mac(token.mac_key, proof)}}
    )


# the proof


def test_a_proof_that_is_not_one_is_refused_and_spends_no_join_token(registry: Driver) -> None:
    token, mine, other = registry.join_token("billing"), key(), key()
    now = int(registry.clock())
    staging = {"iss": "staging.internal/billing", "aud": "staging.internal/registry"}
    attempts = {
        "another registry, as a whole": (proof_with(registry, mine, **staging), "wrong_issuer"),
        "another kind of token": (proof_with(registry, mine, typ="peerseal-request+jwt"), "wrong_type"),
        "no key in it": (proof_with(registry, mine, jwk=None), "malformed_token"),
        "another key in it": (proof_with(registry, mine, jwk=dict(other.public.jwk)), None),
        "several audiences": (proof_with(registry, mine, aud=[registry_id(DOMAIN)]), "malformed_token"),
        "the bare domain": (proof_with(registry, mine, aud=DOMAIN), "wrong_audience"),
        "a life of an hour": (proof_with(registry, mine, exp=now + 3600), "lifetime_too_long"),
        "from the future": (proof_with(registry, mine, iat=now + 120, exp=now + 180), "not_yet_valid"),
        "long past": (proof_with(registry, mine, iat=now - 3600, exp=now - 3540), "expired"),
        "no end": (proof_with(registry, mine, exp=None), "malformed_token"),
    }
    for name, (proof, expected) in attempts.items():
        refused = join_with(registry, token, proof)
        assert refused.status_code in (400, 401), name
        assert expected in (None, code(refused)), name
    assert tables_of(registry.store).keys == {}
    assert registry.join(mine, "billing", token).status_code == 201


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_a_jwk_with_private_members_is_refused_and_not_kept_anywhere(
    registry: Driver, member: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    mine, secret, size = key(), b64url(b"a very private half"), len(entries_of(registry.store))
    proof = proof_with(registry, mine, jwk={**mine.public.jwk, member: secret})
    refused = registry.post_key("billing", {"proof": proof})
    assert (refused.status_code, code(refused)) == (400, "key_private_members")
    assert secret not in caplog.text + refused.text
    assert len(entries_of(registry.store)) == size


def test_a_jwk_of_a_megabyte_is_refused_before_it_is_parsed(registry: Driver) -> None:
    mine = key()
    proof = proof_with(registry, mine, jwk={"kty": "RSA", "e": "AQAB", "n": "A" * 1_000_000})
    assert registry.post_key("billing", {"proof": proof}).status_code == 413
    proof = proof_with(registry, mine, jwk={"kty": "RSA", "e": "AQAB", "n": "A" * 40_000})
    assert code(registry.post_key("billing", {"proof": proof})) == "malformed_token"
    flat = canonical_json({"proof": "x", "join": {str(number): "x" for number in range(4_000)}})
    assert code(registry.post_key("billing", flat)) in ("malformed_body", "malformed_token")


def test_a_registration_sent_again_brings_no_ended_key_back_and_spends_nothing(registry: Driver) -> None:
    token, retired, revoked = registry.join_token("billing", uses=5), key(), key()
    proofs = [registry.proof(pair, "billing") for pair in (retired, revoked)]
    macs = [{"id": token.id, "mac": join_mac(token.mac_key, proof)} for proof in proofs]
    of_retired, of_revoked = ({"proof": proof, "join": mac} for proof, mac in zip(proofs, macs, strict=True))
    assert [registry.post_key("billing", sent).status_code for sent in (of_retired, of_revoked)] == [201, 201]
    assert registry.end(retired, "billing", "retired").status_code == 204
    assert registry.end(revoked, "billing", "compromised").status_code == 204
    size = len(entries_of(registry.store))
    assert code(registry.post_key("billing", of_retired)) == "key_retired"
    assert code(registry.post_key("billing", of_revoked)) == "key_revoked"
    assert code(registry.post_key("shipping", of_revoked)) == "wrong_issuer"
    assert len(entries_of(registry.store)) == size
    assert tables_of(registry.store).join_tokens[token.id].used == 2


def test_a_right_of_another_service_is_none(registry: Driver) -> None:
    """A join token, a voucher and an operator's token of the wrong sort, each with a good proof."""
    theirs, mine = registry.joined(key(), "shipping"), key()
    foreign = registry.join_token("shipping")
    size = len(entries_of(registry.store))
    assert code(registry.join(mine, "billing", foreign)) == "join_refused"
    assert code(registry.rotate(theirs, mine, "billing", voucher_of="shipping")) == "caller_not_allowed"
    body = canonical_json({"proof": registry.proof(mine, "billing")})
    for role in Role:
        _, token = registry.registry.operators.create(role, 600)
        refused = registry.post_key("billing", body, {"Authorization": f"Bearer {token}"})
        assert refused.status_code in (401, 403), "an operator does not register keys for others"
    assert len(entries_of(registry.store)) == size + len(Role)
    assert registry.join(key(), "shipping", foreign).status_code == 201, "and the token is as good as before"


# a stolen key


def test_all_that_a_stolen_key_admitted_falls_with_it_and_nothing_else(registry: Driver) -> None:
    stolen, sibling = registry.joined(key(), "billing"), registry.joined(key(), "billing")
    brood = [stolen]
    for _ in range(6):  # a chain and a bush
        brood.append(key())
        assert registry.rotate(brood[-2], brood[-1], "billing").status_code == 201
        brood.append(key())
        assert registry.rotate(stolen, brood[-1], "billing").status_code == 201
    assert registry.operator_ends(stolen, "billing").status_code == 204
    shown = registry.key_set("billing")
    assert [signed.kid.rpartition("/")[2] for signed in shown.keys] == [sibling.public.thumbprint]
    assert len(shown.revoked) == len(brood)
    for fallen in brood:
        assert code(registry.rotate(fallen, key(), "billing")) == "revoked_key"
        assert code(registry.end(fallen, "billing", "retired")) == "revoked_key"


def test_a_stolen_key_ends_no_sibling_and_writes_nothing_of_an_operators(registry: Driver) -> None:
    stolen, sibling = registry.joined(key(), "billing"), registry.joined(key(), "billing")
    other = registry.joined(key(), "shipping")
    size = len(entries_of(registry.store))
    for service, victim in (("billing", sibling), ("shipping", other)):
        for reason in ("retired", "compromised"):
            assert code(registry.end(victim, service, reason, by=stolen, by_service="billing")) == "caller_not_allowed"
    bodies: dict[tuple[str, str], object] = {
        ("PUT", "/v1/services/billing/policy"): {"allow": {"*": ["everything"]}},
        ("PUT", "/v1/services/shipping/policy"): {"allow": {"billing": ["everything"]}},
        ("PUT", "/v1/domain"): {"minters": ["billing"], "issuers": []},
        ("POST", "/v1/join-tokens"): {"service": "billing"},
        ("POST", "/v1/operator-tokens"): {"role": "admin", "ttl": 600},
        ("POST", f"/v1/services/billing/keys/{sibling.public.thumbprint}/approve"): {},
        ("DELETE", "/v1/join-tokens/x"): {},
        ("GET", "/v1/services"): {},
        ("GET", "/v1/audit"): {},
        ("GET", "/v1/join-tokens"): {},
    }
    for (method, path), members in bodies.items():
        body = canonical_json(members) if method in ("PUT", "POST") else b""
        bound = {"content-type": "application/json"} if body else {}
        headers = registry.signed(stolen, "billing", method, path, body, bound)
        sent = {**headers, **(JSON if body else {}), "If-Match": '"0"'}
        refused = registry.client.open(path, method=method, data=body, headers=sent)
        assert refused.status_code in (401, 403), (method, path, refused.data)
        assert code(refused) in ("caller_not_allowed", "operator_refused"), path
    assert len(entries_of(registry.store)) == size


# what passes over the wire, and what is told afterwards


class Recorder:
    """Passes bytes on between a client and a server, and keeps them all."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = port
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server, contextlib.suppress(OSError):
            ends = {client: server, server: client}
            while True:
                for source in select.select([*ends], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    self.bytes += data
                    ends[source].sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def wire(registry_database: str, tmp_path: Path) -> Iterator[tuple[Driver, Recorder]]:
    """A registry on a real socket, and what passes over it."""
    driver = Driver(registry_database, tmp_path / "home")
    server = make_server("127.0.0.1", 0, driver.app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    recorder = Recorder(server.server_port)
    yield driver, recorder
    recorder.close()
    server.shutdown()
    driver.close()


def test_what_a_newcomer_sends_and_gets_holds_no_secret(wire: tuple[Driver, Recorder], tmp_path: Path) -> None:
    registry, recorder = wire
    text = registry.registry.join_tokens.create("billing", 600, 1, BY).token
    token = JoinToken.parse(text)
    identity = peerseal.Identity("billing", registry=recorder.url, join_token=text, key_dir=tmp_path / "keys")
    identity.start()
    identity.rotate()
    identity.stop()
    assert token.id.encode() in recorder.bytes, "this is the wire on which it registered"
    assert b"POST /v1/services/billing/keys" in recorder.bytes
    secrets: list[str | bytes] = [token.secret, b64url(token.mac_key), token.mac_key, text, b"PRIVATE KEY"]
    for secret in secrets:
        assert (secret if isinstance(secret, bytes) else secret.encode()) not in recorder.bytes


def test_what_was_seen_on_the_wire_registers_nobody_else(wire: tuple[Driver, Recorder], tmp_path: Path) -> None:
    registry, _ = wire
    token, victim, mine = registry.join_token("billing", uses=2), key(), key()
    seen = registry.proof(victim, "billing")
    mac = join_mac(token.mac_key, seen)
    assert registry.post_key("billing", {"proof": seen, "join": {"id": token.id, "mac": mac}}).status_code == 201
    own = registry.proof(mine, "billing")
    for guess in (mac, mac[::-1], "", b64url(b"\0" * 32), token.id):
        refused = registry.post_key("billing", {"proof": own, "join": {"id": token.id, "mac": guess}})
        assert code(refused) == "join_refused"
    assert tables_of(registry.store).join_tokens[token.id].used == 1


def test_secrets_are_absent_from_logs_errors_metrics_and_the_ledger(
    registry: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, mine = registry.join_token("billing", uses=2), key()
    operator = registry.operator["Authorization"].rpartition(" ")[2]
    answers = [registry.join(mine, "billing", token), registry.join(key(), "shipping", token)]
    answers += [registry.client.get("/v1/services", headers={"Authorization": f"Bearer {operator}x"})]
    answers += [registry.client.get(f"/v1/{operator}"), registry.client.post(f"/v1/join-tokens?after={operator}")]
    answers += [registry.post_key("billing", {"proof": operator, "join": {"id": token.secret, "mac": token.secret}})]
    size = len(entries_of(registry.store))
    public = ["/metrics", f"/ledger/tile/entries/000.p/{size}", "/ledger/checkpoint", "/v1/services/billing/keys"]
    answers += [registry.client.get(path) for path in public]
    assert [answer.status_code for answer in answers[-4:]] == [200] * 4
    told = caplog.text + "".join(answer.get_data().decode("utf-8", "replace") for answer in answers)
    for secret in (token.secret, b64url(token.mac_key), operator, operator.rpartition(".")[2]):
        assert secret not in told


# many at once


def test_one_stolen_join_token_in_ten_hands_admits_as_many_as_it_says(registry: Driver) -> None:
    token = registry.join_token("billing", uses=3)
    gate, statuses = threading.Barrier(10), []

    def take(join: Callable[..., TestResponse]) -> None:
        gate.wait()
        statuses.append(join(key(), "billing", token).status_code)

    threads = [threading.Thread(target=take, args=(registry.join,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [401] * 7
