"""Services that join by their platform's token, all of them real processes: issuer, registry, callee."""

import json
import sys
import time
from typing import Any

import pytest
import requests

import peerseal
from peerseal.errors import EnrolmentRefused
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.proof import sign_proof
from tests.support.issuer import DISCOVERY, JWKS, ask_for_token, fetches, rotate_keys
from tests.support.load import get
from tests.support.processes import LOOPBACK, Server, free_port
from tests.support.stack import CLIENT, DOMAIN, Stack

pytestmark = pytest.mark.e2e

AUDIENCE = f"{DOMAIN}/registry"
WORKLOAD = "system:serviceaccount:shop:callee"
JOB = "repo:acme/client-service:ref:refs/heads/main"


def issuer_process(stack: Stack, port: int) -> Server:
    url = f"http://{LOOPBACK}:{port}"
    command = [sys.executable, "-m", "tests.support.issuer", str(port)]
    server = Server("issuer", command, url=url, log=stack.log("issuer"), settings={})
    return stack.keep(server).wait_until_answers(url + "/fetched")


def believe(stack: Stack, url: str) -> None:
    """Has the registry, when it starts, believe the issuer about one workload and one job."""
    file = stack.root / "oidc.json"
    file.write_text(json.dumps([{"issuer": url, "services": {WORKLOAD: "callee", JOB: CLIENT}}]))
    stack.registry_settings["REGISTRY_OIDC_FILE"] = str(file)


@pytest.fixture
def issuer(stack: Stack) -> Server:
    server = issuer_process(stack, free_port())
    believe(stack, server.url)
    return server


def settings(stack: Stack, service: str, token: str) -> dict[str, str]:
    """The environment of a service whose platform put that token into a file. It knows no join token."""
    folder = stack.root / service
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token)
    return {
        "PEERSEAL_SERVICE": service,
        "PEERSEAL_REGISTRY_URL": stack.registry_url,
        "PEERSEAL_JOIN_TOKEN_FILE": "",
        "PEERSEAL_OIDC_TOKEN_FILE": str(folder / "token"),
        "PEERSEAL_KEY_DIR": str(folder / "keys"),
        "PEERSEAL_CACHE_DIR": str(folder / "cache"),
    }


def kubernetes_token(issuer: Server) -> str:
    """As the API server writes it for a projected volume."""
    private = {"namespace": "shop", "serviceaccount": {"name": "callee", "uid": "4b2e"}, "pod": {"name": "callee-0"}}
    return ask_for_token(issuer.url, WORKLOAD, [AUDIENCE], **{"kubernetes.io": private})


def ci_token(issuer: Server, subject: str = JOB, audience: str = AUDIENCE) -> str:
    """As a CI system writes it for one job."""
    return ask_for_token(issuer.url, subject, audience, repository="acme/client-service", ref="refs/heads/main")


def test_a_workload_and_a_job_join_by_their_platforms_tokens_and_call_each_other(stack: Stack, issuer: Server) -> None:
    registry = stack.start_registry()
    tokens = kubernetes_token(issuer), ci_token(issuer)
    target = "tests.support.callee:create_app()"
    callee = stack.start_service("callee", target, settings=settings(stack, "callee", tokens[0]))
    caller = peerseal.Identity.from_env(settings(stack, CLIENT, tokens[1])).start()
    try:
        answer = caller.session("callee", callee.url).get("/anything")
        assert (answer.status_code, answer.json()["caller"]) == (200, CLIENT)
        records = [json.loads(get(f"{stack.registry_url}/v1/services/{name}/keys")[1]) for name in ("callee", CLIENT)]
        assert issuer.url in json.dumps(records[0])
        assert issuer.url in json.dumps(records[1])
        told = registry.output() + callee.output() + json.dumps(records)
        for secret in (WORKLOAD, JOB, *tokens):
            assert secret not in told
    finally:
        caller.stop()


def test_a_token_with_another_audience_or_subject_registers_nothing(stack: Stack, issuer: Server) -> None:
    stack.start_registry(workers=1)
    for subject, audience in (
        (JOB, "https://kubernetes.default.svc"),
        (JOB, "staging.internal/registry"),
        (WORKLOAD, AUDIENCE),
        (JOB + "-2", AUDIENCE),
        ("repo:acme/client-service:pull_request", AUDIENCE),
        (JOB.upper(), AUDIENCE),
    ):
        with pytest.raises(EnrolmentRefused) as caught:
            peerseal.Identity.from_env(settings(stack, CLIENT, ci_token(issuer, subject, audience))).start()
        assert caught.value.code == "oidc_refused"
    assert get(f"{stack.registry_url}/v1/services/{CLIENT}/keys")[0] == 404


def test_1000_unknown_kids_reach_the_issuer_once_a_cooldown(stack: Stack, issuer: Server) -> None:
    stack.start_registry(workers=1)
    session = requests.Session()
    head, payload, signature = ci_token(issuer).split(".")
    statuses = set()
    for number in range(1000):
        statuses.add(post(session, stack, f"{with_kid(head, number)}.{payload}.{signature}").status_code)
    assert statuses <= {401, 429, 503}
    asked = fetches(issuer.url)
    assert 1 <= asked[JWKS] <= 3  # one in ten seconds, and the thousand take fewer than thirty
    assert asked[JWKS] == asked[DISCOVERY]


@pytest.mark.slow
def test_a_newcomer_gets_in_once_its_issuer_is_back_with_other_keys(stack: Stack, issuer: Server) -> None:
    stack.start_registry(workers=1)
    port = int(issuer.url.rpartition(":")[2])
    early = ci_token(issuer)
    issuer.kill()
    session = requests.Session()
    answer = post(session, stack, early)
    assert (answer.status_code, answer.json()["code"]) == (503, "trust_unavailable")
    assert 0 < int(answer.headers["Retry-After"]) <= 10
    back = issuer_process(stack, port)
    rotate_keys(back.url)
    caller = peerseal.Identity.from_env(settings(stack, CLIENT, ci_token(back))).start(timeout=40)
    caller.stop()
    assert post(session, stack, early).status_code in (401, 503)


def with_kid(head: str, number: int) -> str:
    """The header with an unknown kid."""
    header = json.loads(b64url_decode(head)) | {"kid": f"made-up-{number}"}
    return b64url(json.dumps(header).encode())


def post(session: requests.Session, stack: Stack, token: str) -> Any:
    """A registration of a new key with that token."""
    key = KeyPair.generate("ES256")
    proof = sign_proof(key, issuer=f"{DOMAIN}/{CLIENT}", audience=AUDIENCE, now=time.time())
    body = {"proof": proof, "oidc": token}
    return session.post(f"{stack.registry_url}/v1/services/{CLIENT}/keys", json=body, timeout=10)
