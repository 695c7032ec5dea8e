"""Each peer verifies our requests, and we verify its requests: good, altered, replayed, revoked, and not allowed."""

import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import peerseal
from peerseal.protocol.encoding import b64url, b64url_decode
from tests.languages.conftest import Peer, kid_in, send, settings_of, started
from tests.support.forwarding import forwarded
from tests.support.processes import Server
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.languages, pytest.mark.e2e, pytest.mark.slow]

BODY = b'{"name": "ada"}'
JSON = {"content-type": "application/json"}
TARGET = "/greetings/a%2Fb?x=1&y"


def test_each_case_of_the_vectors_has_the_verdict_expected(peer: Peer) -> None:
    found = re.search(r"(\d+) cases passed, 0 failed", peer.run_vectors())
    assert found is not None
    assert int(found[1]) > 720


def token_for(service: Server, caller: peerseal.Identity, target: str = TARGET, body: bytes = BODY) -> str:
    return caller.sign_request(service.name, method="POST", target=target, body=body, headers=JSON)


def call(
    service: Server, token: str | None, target: str = TARGET, body: bytes = BODY, headers: Mapping[str, str] = JSON
) -> tuple[int, str]:
    return send(service.url + target, token, body, headers)


def test_a_peer_answers_our_caller(service: Server, caller: peerseal.Identity) -> None:
    status, text = call(service, token_for(service, caller))
    assert (status, json.loads(text)["caller"]) == (200, "caller")
    with caller.session(service.name, service.url) as session:
        answer = session.get("/greetings/ada")
        assert (answer.status_code, answer.json()) == (200, {"hello": "ada", "caller": "caller"})


def test_a_peer_knows_a_caller_whose_keys_are_registered_one_after_the_other(
    service: Server, domain: Stack, tmp_path: Path
) -> None:
    for host in ("first", "second", "third"):
        joining, folder = domain.join_token("caller"), tmp_path / host
        caller = peerseal.Identity("caller", registry=domain.registry_url, join_token=joining, key_dir=folder).start()
        assert call(service, token_for(service, caller))[0] == 200
        caller.stop()


def test_a_peer_refuses_an_unknown_key(service: Server, caller: peerseal.Identity) -> None:
    head, payload, signature = token_for(service, caller).split(".")
    foreign = json.loads(b64url_decode(head)) | {"kid": f"{caller.id}/{'A' * 43}"}
    token = f"{b64url(json.dumps(foreign).encode())}.{payload}.{signature}"
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: call(service, token), range(24))) == {(401, "unknown_key")}


def test_a_peer_refuses_an_altered_request(service: Server, caller: peerseal.Identity) -> None:
    token = token_for(service, caller)
    refused = (401, "wrong_binding")
    assert call(service, token, body=b'{"name": "eve"}') == refused
    assert call(service, token, target="/greetings/a/b?x=1&y") == refused
    assert call(service, token, headers={"content-type": "text/plain"}) == refused
    assert call(service, token, headers={**JSON, "content-encoding": "identity"}) == refused
    assert call(service, token)[0] == 200  # a refusal uses no token up


@pytest.mark.parametrize("name", ["constructor", "__proto__", "x-absent"])
def test_a_peer_refuses_a_token_that_binds_a_header_which_is_absent(
    service: Server, caller: peerseal.Identity, name: str
) -> None:
    bound = {**JSON, name: "x"}
    token = caller.sign_request(service.name, method="POST", target=TARGET, body=BODY, headers=bound)
    assert call(service, token) == (401, "wrong_binding")


def test_a_peer_refuses_a_token_with_an_object_in_the_place_of_a_text(
    service: Server, caller: peerseal.Identity
) -> None:
    head, payload, signature = token_for(service, caller).split(".")
    claims = {**json.loads(b64url_decode(payload)), "tth": {"toString": "x"}}
    token = f"{head}.{b64url(json.dumps(claims).encode())}.{signature}"
    assert call(service, token) == (401, "malformed_token")


def test_a_peer_refuses_a_replayed_token(service: Server, caller: peerseal.Identity) -> None:
    token = token_for(service, caller)
    assert call(service, token)[0] == 200
    assert call(service, token) == (401, "replayed")


def test_a_peer_refuses_a_request_without_a_token_and_one_for_another(
    service: Server, caller: peerseal.Identity
) -> None:
    assert call(service, None) == (401, "missing_token")
    other = caller.sign_request("other", method="POST", target=TARGET, body=BODY, headers=JSON)
    assert call(service, other) == (401, "wrong_audience")
    head, payload, signature = token_for(service, caller).split(".")
    assert call(service, f"{head}.{payload}.{'A' * len(signature)}") == (401, "bad_signature")
    sent = f"{head}.{payload}.{signature}, Bearer {head}.{payload}.{signature}"
    assert call(service, sent) == (401, "malformed_token")


def test_a_peer_refuses_a_revoked_key(service: Server, caller: peerseal.Identity, domain: Stack) -> None:
    assert call(service, token_for(service, caller))[0] == 200
    domain.operate("revoke", caller.credentials.key_id)
    wait_for(service, caller, 401, "revoked_key")


@pytest.mark.parametrize("options", [(), ("--restricted",)], ids=["public", "restricted"])
def test_a_peer_follows_the_registrys_policy(
    service: Server, caller: peerseal.Identity, domain: Stack, options: tuple[str, ...]
) -> None:
    domain.operate("policy", "set", service.name, "--allow", "another=greetings:read", *options)
    wait_for(service, caller, 403, "caller_not_allowed")
    domain.operate("policy", "set", service.name, "--allow", "caller=greetings:write", *options)
    wait_for(service, caller, 403, "insufficient_scope")
    domain.operate("policy", "remove", service.name)
    wait_for(service, caller, 200, "")


def wait_for(service: Server, caller: peerseal.Identity, status: int, code: str) -> None:
    """Waits until the service answers a fresh token so: it asks for changes once a second."""

    def answered() -> bool:
        told, text = call(service, token_for(service, caller))
        return told == status and code in text

    until(answered, 60, what=f"{status} {code}", every=0.3)


def test_a_peer_verifies_many_calls_while_one_question_to_the_registry_hangs(
    peer: Peer, domain: Stack, caller: peerseal.Identity
) -> None:
    silent, name = threading.Event(), f"cut-off-{peer.language}"
    with forwarded(domain.registry_port, silent=silent) as port, ThreadPoolExecutor(4) as threads:
        settings = settings_of(domain, name, "host")
        service = started(peer, domain, name, {**settings, "PEERSEAL_REGISTRY_URL": f"http://127.0.0.1:{port}"})
        assert call(service, token_for(service, caller))[0] == 200
        silent.set()

        def rounds_until_the_registry_has_failed(times: int) -> int:
            rounds = 0
            while service.output().count("changes: ") < times:
                told = threads.map(lambda _: call(service, token_for(service, caller))[0], range(4))
                assert list(told) == [200] * 4
                rounds += 1
            return rounds

        rounds_until_the_registry_has_failed(1)
        assert rounds_until_the_registry_has_failed(2) > 2  # a question hangs for 5 s, a round for 1 s of them at most


def test_our_callee_answers_a_peer(peer: Peer, callee: Server, domain: Stack) -> None:
    settings = settings_of(domain, "client-service", peer.language)
    for arguments in (("GET", f"{callee.url}/a b?c=d e"), ("POST", f"{callee.url}/a%2fb", BODY.decode())):
        told = peer.run(settings, "call", "resource-service", *arguments)
        assert told.startswith("200 "), told
        assert '"caller":"client-service"' in told.replace(" ", "")


def test_a_peer_rotates_its_key(peer: Peer, callee: Server, domain: Stack) -> None:
    settings = settings_of(domain, "client-service", f"{peer.language}-rotated")
    first = peer.run(settings, "sign", "resource-service", "GET", "/a")
    next_kid = peer.run(settings, "rotate")
    without = {name: value for name, value in settings.items() if name != "PEERSEAL_JOIN_TOKEN"}
    pin = settings["PEERSEAL_JOIN_TOKEN"].rpartition(".")[2]
    told = peer.run({**without, "PEERSEAL_REGISTRY_PIN": pin}, "sign", "resource-service", "POST", "/a", BODY.decode())
    assert kid_in(told) == next_kid != kid_in(first)
    until(lambda: send(f"{callee.url}/a", told, BODY, JSON)[0] == 200, 60, what="the answer", every=0.3)


def test_our_callee_refuses_what_is_altered_replayed_or_revoked(peer: Peer, callee: Server, domain: Stack) -> None:
    settings = settings_of(domain, "client-service", f"{peer.language}-revoked")

    def token() -> str:
        return peer.run(settings, "sign", "resource-service", "POST", "/a", BODY.decode())

    first = token()
    assert send(f"{callee.url}/a", first, b"{}", JSON) == (401, "wrong_binding")
    assert send(f"{callee.url}/a", first, BODY, JSON)[0] == 200
    assert send(f"{callee.url}/a", first, BODY, JSON) == (401, "replayed")
    second = token()
    domain.operate("revoke", kid_in(second))
    until(lambda: send(f"{callee.url}/a", second, BODY, JSON) != (401, "replayed"), 60, what="an answer")
    with pytest.raises(AssertionError, match="key_revoked"):
        token()


def test_a_peer_refuses_callers_whose_key_set_has_parts(peer: Peer, tmp_path: Path) -> None:
    """The peers know no parts: such a set has no keys for them, and every call is refused."""
    with Stack(tmp_path / "domain") as domain:
        domain.registry_settings["REGISTRY_KEYS_IN_SET"] = "1"
        domain.start_registry(workers=1)
        service = started(peer, domain, "callee", settings_of(domain, "callee", "host"))
        joining = domain.join_token("caller", uses=2)
        hosts = [
            peerseal.Identity("caller", registry=domain.registry_url, join_token=joining, key_dir=tmp_path / host)
            for host in ("one", "two")
        ]
        with ExitStack() as stopped:
            for host in hosts:
                stopped.callback(host.start().stop)
            assert call(service, token_for(service, hosts[0])) == (401, "unknown_key")
