"""Keys that the registry refuses for themselves: the next attempt has another key, unless it was made elsewhere."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from peerseal import Identity, RotationSchedule
from peerseal.errors import EnrolmentRefused, FetchError
from peerseal.identity.enrolment_errors import ANOTHER_KEY_HELPS
from peerseal.identity.key_folder import KeyFolder, StoredKey
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.support.between import Between
from tests.test_error_page import codes

KEYS = "/v1/services/client/keys"
SCHEDULE = RotationSchedule(every=1000.0, lead=10.0, overlap=20.0)
OF_THE_SERVICE = ("refused", "join_refused", "oidc_refused", "invalid_name", "caller_not_allowed", "expired")
OF_EVERY_KEY = (
    "key_malformed",
    "key_private_members",
    "key_type_unsupported",
    "key_alg_mismatch",
    "key_size_unsupported",
    "key_exponent_unsupported",
)
"""Another key of the same program has the same form."""
NOT_OF_ENROLMENT = ("key_pending", "key_not_found")


def refusal(code: str) -> Answer:
    return Answer(409, canonical_json({"code": code}))


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "client")


@pytest.fixture
def client(registry: MemoryRegistry, tmp_path: Path, clock: Clock) -> Identity:
    """Its next key is due, and its join token is spent."""
    identity = registry.identity("client", key_dir=tmp_path, rotation=SCHEDULE)
    clock.advance(SCHEDULE.every)
    return identity


def candidates(folder: KeyFolder) -> list[StoredKey]:
    return [key for key in folder.load().keys if key.registered_at is None]


def active(registry: MemoryRegistry) -> set[str]:
    return {key.kid for key in registry.jwk_set("client").keys if key.state == ACTIVE}


def refused(act: Callable[[], object]) -> EnrolmentRefused:
    with pytest.raises(EnrolmentRefused) as caught:
        act()
    return caught.value


class Refusing(Between):
    """Answers the registrations that a key vouches for."""

    def __init__(self, registry: MemoryRegistry, answer: Answer) -> None:
        super().__init__(registry, lambda _: None)
        self.answer: Answer | None = answer

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        vouched = method == "POST" and "Authorization" in (headers or {})
        return (vouched and self.answer) or super().call(method, path, body=body, headers=headers)


def test_unsigned_answers_replace_no_key_that_was_admitted_once(
    registry: MemoryRegistry, client: Identity, folder: KeyFolder
) -> None:
    """Someone on the way says that there is no statement, and refuses the registration."""
    kid = client.credentials.key_id
    registry.answers[f"{KEYS}/{kid.rpartition('/')[2]}.jwt"] = Answer(404, canonical_json({"code": "key_not_found"}))
    registry.answers[KEYS] = refusal("too_many_keys")
    for _ in range(4):
        refused(client.look_after_keys)
    registry.answers.clear()
    client.look_after_keys()
    assert kid in {key.kid for key in folder.load().keys if key.registered_at is not None}


# next keys


@pytest.mark.parametrize("code", sorted(ANOTHER_KEY_HELPS))
def test_a_next_key_that_is_refused_for_itself_is_replaced_at_the_next_attempt(
    registry: MemoryRegistry, client: Identity, folder: KeyFolder, code: str
) -> None:
    registry.answers[KEYS] = refusal(code)
    assert refused(client.look_after_keys).code == code
    [first] = candidates(folder)
    refused(client.look_after_keys)
    [second] = candidates(folder)
    assert second.kid != first.kid
    registry.answers.clear()
    client.look_after_keys()
    assert active(registry) == {key.kid for key in folder.load().keys}
    assert not {first.kid, second.kid} & active(registry)


@pytest.mark.parametrize("code", [*OF_THE_SERVICE, *OF_EVERY_KEY])
def test_a_next_key_stays_where_another_one_would_be_refused_as_well(
    registry: MemoryRegistry, client: Identity, folder: KeyFolder, code: str
) -> None:
    registry.answers[KEYS] = refusal(code)
    refused(client.look_after_keys)
    [candidate] = candidates(folder)
    registry.answers.clear()
    client.look_after_keys()
    assert candidate.kid in active(registry)


def test_each_code_that_speaks_of_a_key_is_decided() -> None:
    spoken = {code for code in codes() if code.startswith("key_")} | {"too_many_keys"}
    assert spoken - {*OF_EVERY_KEY, *NOT_OF_ENROLMENT} == ANOTHER_KEY_HELPS


def test_an_attempt_makes_one_key(registry: MemoryRegistry, client: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    made, generate = list[KeyPair](), KeyPair.generate
    monkeypatch.setattr(KeyPair, "generate", lambda alg: made.append(generate(alg)) or made[-1])
    registry.answers[KEYS] = refusal("too_many_keys")
    for attempt in range(1, 4):
        refused(client.look_after_keys)
        assert len(made) == attempt


def test_a_rotation_that_is_not_due_is_gone_on_with_after_a_refusal(
    registry: MemoryRegistry, tmp_path: Path, folder: KeyFolder
) -> None:
    client = registry.identity("client", key_dir=tmp_path)
    registry.answers[KEYS] = refusal("too_many_keys")
    refused(client.rotate)
    registry.answers.clear()
    client.look_after_keys()
    assert len(active(registry)) == 2
    assert not candidates(folder)


def test_the_refused_key_is_no_longer_in_the_folder(
    registry: MemoryRegistry, client: Identity, folder: KeyFolder
) -> None:
    registry.answers[KEYS] = refusal("too_many_keys")
    refused(client.look_after_keys)
    registry.answers.clear()
    client.look_after_keys()
    files = {file.stem for file in folder.path.glob("*.pem")}
    assert files == {key.thumbprint for key in folder.load().keys}


# by the join token, where no key may vouch


def test_the_join_token_admits_a_key_that_its_predecessor_could_not(
    registry: MemoryRegistry, tmp_path: Path, clock: Clock, folder: KeyFolder
) -> None:
    token = registry.join_token("client", uses=2, ttl=10_000.0)
    full = Refusing(registry, refusal("too_many_keys"))
    client = registry.identity("client", key_dir=tmp_path, rotation=SCHEDULE, join_token=token, fetcher=full)
    clock.advance(SCHEDULE.every)
    client.look_after_keys()
    assert len(active(registry)) == 2
    assert not candidates(folder)


def test_a_refusal_of_the_join_token_keeps_the_refusal_of_the_key_as_its_cause(
    registry: MemoryRegistry, tmp_path: Path, clock: Clock, folder: KeyFolder
) -> None:
    full = Refusing(registry, refusal("too_many_keys"))
    client = registry.identity("client", key_dir=tmp_path, rotation=SCHEDULE, fetcher=full)
    clock.advance(SCHEDULE.every)
    error = refused(client.look_after_keys)
    assert error.code == "join_refused"
    assert isinstance(error.__cause__, EnrolmentRefused)
    assert error.__cause__.code == "too_many_keys"
    full.answer = None
    [before] = candidates(folder)
    client.look_after_keys()
    assert before.kid not in active(registry)


def test_a_join_without_an_answer_keeps_the_key_which_may_be_registered(
    registry: MemoryRegistry, tmp_path: Path, clock: Clock, folder: KeyFolder
) -> None:
    full = Refusing(registry, refusal("too_many_keys"))
    client = registry.identity("client", key_dir=tmp_path, rotation=SCHEDULE, fetcher=full)
    clock.advance(SCHEDULE.every)
    registry.answers[KEYS] = Answer(503, b"")
    with pytest.raises(FetchError):
        client.look_after_keys()
    [candidate] = candidates(folder)
    full.answer = None
    registry.answers.clear()
    client.look_after_keys()
    assert candidate.kid in active(registry)


def test_a_host_whose_next_key_was_revoked_unseen_together_with_its_voucher_joins_again(
    registry: MemoryRegistry, tmp_path: Path, clock: Clock
) -> None:
    token = registry.join_token("client", uses=2, ttl=10_000.0)
    client = registry.identity("client", key_dir=tmp_path, rotation=SCHEDULE, join_token=token)
    clock.advance(SCHEDULE.every)
    lost = Answer(503, b"")
    first = client.credentials.key_id
    registry.answers[KEYS] = lost
    with pytest.raises(FetchError):
        client.look_after_keys()
    registry.answers.clear()
    sent = next(call for call in reversed(registry.log) if call.path == KEYS)
    registry.call("POST", KEYS, body=sent.body, headers=sent.headers)
    registry.revoke(first)
    assert not active(registry)
    assert refused(client.look_after_keys).code == "key_revoked"
    client.look_after_keys()
    assert active(registry) == {client.credentials.key_id}


# first keys


def test_a_first_key_that_is_refused_for_itself_is_replaced_at_the_next_start(
    registry: MemoryRegistry, tmp_path: Path, folder: KeyFolder
) -> None:
    registry.answers[KEYS] = refusal("key_close_primes")
    assert refused(lambda: registry.identity("client", key_dir=tmp_path)).code == "key_close_primes"
    [first] = candidates(folder)
    registry.answers.clear()
    kid = registry.identity("client", key_dir=tmp_path).credentials.key_id
    assert kid != first.kid
    assert [key.kid for key in folder.load().keys] == [kid]


def test_a_first_key_that_was_admitted_although_it_was_refused_is_taken_up(
    registry: MemoryRegistry, tmp_path: Path, folder: KeyFolder
) -> None:
    """The registry's signed statement counts, and not an answer that anyone on the way can write."""
    registry.answers[KEYS] = refusal("too_many_keys")
    token = registry.join_token("client")
    refused(lambda: registry.identity("client", key_dir=tmp_path, join_token=token))
    registry.answers.clear()
    sent = next(call for call in registry.log if call.path == KEYS)
    registry.call("POST", KEYS, body=sent.body, headers=sent.headers)
    [first] = candidates(folder)
    assert registry.identity("client", key_dir=tmp_path, join_token=token).credentials.key_id == first.kid
    assert not folder.load().keys[0].refused


# keys that were made elsewhere


def brought(registry: MemoryRegistry, key_dir: Path, pair: KeyPair) -> Identity:
    """An identity whose first key is that one, before its start."""
    wired = {"registry": "http://registry.test", "fetcher": registry, "clock": registry.clock, "key_dir": key_dir}
    identity = Identity("client", join_token=registry.join_token("client", uses=2), **wired)
    identity.take_key(pair)
    return identity


@pytest.mark.parametrize("code", ["too_many_keys", "key_of_another_service", "key_revoked", "key_roca"])
def test_a_key_that_was_made_elsewhere_is_not_replaced(
    registry: MemoryRegistry, tmp_path: Path, folder: KeyFolder, code: str
) -> None:
    pair = KeyPair.generate("ES256")
    registry.answers[KEYS] = refusal(code)
    for _ in range(2):
        assert refused(brought(registry, tmp_path, pair).start).code == code
    assert [key.thumbprint for key in folder.load().keys] == [pair.public.thumbprint]
    registry.answers.clear()
    identity = brought(registry, tmp_path, pair)
    try:
        assert identity.start().credentials.key_id.endswith(pair.public.thumbprint)
    finally:
        identity.stop()


@pytest.mark.parametrize("end", ["retire", "revoke"])
def test_a_key_that_was_made_elsewhere_and_has_ended_is_refused_and_not_replaced(
    registry: MemoryRegistry, tmp_path: Path, end: str
) -> None:
    pair = KeyPair.generate("ES256")
    first = brought(registry, tmp_path / "here", pair).start()
    getattr(registry, end)(first.credentials.key_id)
    for _ in range(2):
        assert refused(brought(registry, tmp_path / "there", pair).start).code == f"key_{end}d"
    assert not active(registry)
    first.stop()


# the folder


def test_a_folder_of_an_earlier_release_is_read(registry: MemoryRegistry, tmp_path: Path, folder: KeyFolder) -> None:
    registry.identity("client", key_dir=tmp_path)
    file = folder.path / "keys.json"
    text = json.loads(file.read_text())
    for key in text["keys"]:
        del key["brought"], key["refused"]
    file.write_text(json.dumps(text))
    [key] = KeyFolder(folder.path).load().keys
    assert (key.brought, key.refused) == (False, False)


def test_a_brought_key_that_an_earlier_release_saved_is_not_replaced_either(
    registry: MemoryRegistry, tmp_path: Path, folder: KeyFolder
) -> None:
    pair = KeyPair.generate("ES256")
    identity = brought(registry, tmp_path, pair)
    file = next(tmp_path.rglob("keys.json"))
    written = json.loads(file.read_text())
    for key in written["keys"]:
        del key["brought"], key["refused"]
    file.write_text(json.dumps(written))
    registry.answers[KEYS] = refusal("too_many_keys")
    identity = brought(registry, tmp_path, pair)
    for _ in range(2):
        refused(identity.start)
    assert [key.thumbprint for key in folder.load().keys] == [pair.public.thumbprint]
