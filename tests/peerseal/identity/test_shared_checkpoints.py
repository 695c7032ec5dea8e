"""A service that tells its callees which checkpoint of the ledger it believes, in its request tokens."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import peerseal
from demo.processes import environment
from peerseal import Identity, TrustLimits, Verifier
from peerseal.errors import ConfigurationError, InvalidName, ResponseRefused
from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.ledger.split_view import MAX_CP
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.testing import MemoryRegistry
from peerseal.verify.response import ResponseHead, ResponseVerifier
from tests.support.released import released_code
from tests.support.two_histories import grow, second_view
from tests.support.waiting import until
from tests.support.webhook import webhook

LIMITS = TrustLimits(poll_interval=3600.0, cooldown=0.0)


@pytest.fixture
def domain() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        grow(registry)
        yield registry


def claims_of(token: str) -> dict[str, Any]:
    return strict_json_object(jose.parse(token).payload)


def signed(identity: Identity, audience: str = "callee", **more: Any) -> str:
    return identity.sign_request(audience, method="GET", target="/", **more)


def verifier_of(identity: Identity) -> Verifier:
    return Verifier(identity.trust, audience="callee", allow={"caller": ["read"]})


def heard(identity: Identity, result: str) -> float:
    found = [metric for metric in identity.collect() if metric.name == "peerseal_checkpoints_heard_total"]
    return sum(value for metric in found for labels, value in metric.samples if labels["result"] == result)


def test_by_default_no_token_has_one(domain: MemoryRegistry) -> None:
    caller = domain.identity("caller", limits=LIMITS)
    assert not any("cp" in claims_of(signed(caller, audience)) for audience in ("callee", "other", "callee"))


def test_each_callee_is_told_once_until_the_ledger_changes(domain: MemoryRegistry) -> None:
    caller = domain.identity("caller", limits=LIMITS, share_checkpoints=True)
    told = [claims_of(signed(caller, audience)) for audience in ("callee", "other", "callee", "test.internal/callee")]
    assert ["cp" in claims for claims in told] == [True, True, False, False]
    assert len(told[0]["cp"]) <= MAX_CP
    grow(domain)
    caller.trust.refresh()
    assert "cp" in claims_of(signed(caller))
    assert "cp" not in claims_of(signed(caller))


def test_the_registry_is_not_told(domain: MemoryRegistry) -> None:
    caller = domain.identity("caller", limits=LIMITS, share_checkpoints=True)
    assert "cp" not in claims_of(signed(caller, "registry"))


def test_a_long_token_has_none_rather_than_be_too_long(domain: MemoryRegistry) -> None:
    caller = domain.identity("caller", limits=LIMITS, share_checkpoints=True)
    assert "cp" not in claims_of(signed(caller, headers={"x-long": "a" * 3_000}))


def test_a_callee_compares_what_a_verified_caller_told(domain: MemoryRegistry) -> None:
    caller = domain.identity("caller", limits=LIMITS, share_checkpoints=True)
    callee = domain.identity("callee", limits=LIMITS)
    peer = verifier_of(callee).verify(signed(caller), method="GET", target="/")
    assert peer.service == "caller"
    until(lambda: heard(callee, "agreed") + heard(callee, "waiting") == 1, what="the comparison")


def test_nothing_of_a_refused_request_is_compared(domain: MemoryRegistry) -> None:
    caller = domain.identity("caller", limits=LIMITS, share_checkpoints=True)
    callee = domain.identity("callee", limits=LIMITS)
    token, verifier = signed(caller), verifier_of(callee)
    for request in ({"method": "PUT", "target": "/"}, {"method": "GET", "target": "/other"}):
        with pytest.raises(peerseal.PeersealError):
            verifier.verify(token, **request)
    assert "peerseal_checkpoints_heard_total" not in {metric.name for metric in callee.collect()}


def test_the_webhook_gets_the_evidence(domain: MemoryRegistry, tmp_path: Path) -> None:
    domain.identity("caller", key_dir=tmp_path).stop()  # its key is in the part that the two histories have in common
    with webhook() as (url, posted), second_view(domain) as other:
        grow(other, caller="them")
        callee = domain.identity("callee", limits=LIMITS, split_view_webhook=url)
        caller = other.identity("caller", limits=LIMITS, key_dir=tmp_path, share_checkpoints=True)
        verifier_of(callee).verify(signed(caller), method="GET", target="/")
        until(lambda: bool(posted), what="the webhook's call")
    told = posted[0]
    assert (told["event"], told["level"], told["service"]) == ("split_view", "alert", "callee")
    assert told["evidence"]["domain"] == "test.internal"


def test_the_environment_turns_it_on(domain: MemoryRegistry) -> None:
    env = {"PEERSEAL_SERVICE": "caller", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}
    on = {"PEERSEAL_SHARE_CHECKPOINTS": "1", "PEERSEAL_SPLIT_VIEW_WEBHOOK": "https://hooks.test/x"}
    assert Identity.from_env({**env, **on})
    for name, value in {"PEERSEAL_SHARE_CHECKPOINTS": "maybe", "PEERSEAL_SPLIT_VIEW_WEBHOOK": "no url"}.items():
        with pytest.raises((ConfigurationError, InvalidName), match=name):
            Identity.from_env({**env, name: value})
    with pytest.raises(ConfigurationError, match="share_checkpoints"):
        domain.identity("caller", share_checkpoints="yes")


RELEASED = """
import sys
import peerseal
assert peerseal.__file__.startswith(sys.argv[1])

class Keys:
    domain = "test.internal"
    def key(self, kid):
        raise peerseal.errors.UnknownKey(kid)
    def policy(self, service):
        return None

try:
    verifier = peerseal.Verifier(Keys(), audience="callee", allow={"caller": ["read"]})
    verifier.verify(sys.argv[2], method="GET", target="/")
except peerseal.PeersealError as error:
    print(error.code)
"""


def test_a_callee_of_the_last_release_refuses_a_token_that_tells_one(domain: MemoryRegistry, tmp_path: Path) -> None:
    """So callees are upgraded before a caller is told to share."""
    code = released_code(tmp_path)
    caller = domain.identity("caller", limits=LIMITS, share_checkpoints=True)

    def read(token: str) -> str:
        command = [sys.executable, "-c", RELEASED, str(code), token]
        run = subprocess.run(
            command, cwd=code, env=environment({}), capture_output=True, encoding="utf-8", check=True, timeout=60
        )
        return run.stdout.strip()

    assert [read(signed(caller)), read(signed(caller))] == ["malformed_token", "unknown_key"]


class TestAnswers:
    def answered(self, callee: Identity, caller: Identity) -> tuple[str, str]:
        """A request token, and the token of its answer."""
        request = signed(caller)
        return request, callee.sign_response(request, caller="test.internal/caller", status=204)

    def test_a_signed_answer_tells_each_caller_once(self, domain: MemoryRegistry) -> None:
        caller = domain.identity("caller", limits=LIMITS)
        callee = domain.identity("callee", limits=LIMITS, share_checkpoints=True)
        told = ["cp" in claims_of(self.answered(callee, caller)[1]) for _ in range(3)]
        assert told == [True, False, False]
        quiet = domain.identity("quiet", limits=LIMITS)
        assert "cp" not in claims_of(self.answered(quiet, caller)[1])

    def test_the_caller_compares_it_once_the_head_is_verified(self, domain: MemoryRegistry) -> None:
        caller = domain.identity("caller", limits=LIMITS)
        callee = domain.identity("callee", limits=LIMITS, share_checkpoints=True)
        caller.trust.follow_ledger()
        verifier = ResponseVerifier(caller.trust, caller="caller", audience="callee")
        request, answer = self.answered(callee, caller)
        with pytest.raises(ResponseRefused):
            verifier.verify(ResponseHead(200, ((RESPONSE_HEADER, answer),)), request_token=request, body=b"")
        assert heard(caller, "agreed") + heard(caller, "waiting") == 0
        verifier.verify(ResponseHead(204, ((RESPONSE_HEADER, answer),)), request_token=request, body=b"")
        until(lambda: heard(caller, "agreed") + heard(caller, "waiting") == 1, what="the comparison")
