"""``peerseal-registry verify`` on both databases: a whole registry is called whole, and each tampering is named."""

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from demo.processes import BIN, environment
from peerseal.errors import PeersealError
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import DOMAIN_SET, KEY_ADMITTED, KEY_REVOKED, OPERATOR_CREATED, POLICY_SET, Entry
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.protocol.tokens.proof import sign_proof
from registry.services.access.operators import Role
from registry.services.recovery.verify import Verified, verify
from registry.storage.queries import keys as keys_storage
from registry.storage.queries.ledger import Change, append
from registry.storage.tables import (
    domain_settings,
    entries,
    join_tokens,
    keys,
    ledger_head,
    operator_tokens,
    policies,
    registry_documents,
    services,
    tiles,
)
from tests.registry.driver import BY, DOMAIN, Clock, Driver, entries_of
from tests.support.keys import key

OWNER = service_id(DOMAIN, "billing")
YEAR = 365 * 24 * 3600


def checked(registry: Driver, **options: Any) -> Verified:
    return verify(registry.store, registry.settings.limits, clock=registry.clock, **options)


def named(registry: Driver, **options: Any) -> set[tuple[str, str, str | None]]:
    """The table, key and column of each difference."""
    return {(found.table, found.key, found.column) for found in checked(registry, **options).differences}


def tamper(registry: Driver, *statements: Any) -> None:
    with registry.store.write() as connection:
        for statement in statements:
            connection.execute(statement)


def set_policy(registry: Driver, service: str, policy: CallPolicy | None) -> None:
    """A policy and its entry, as the use case writes them."""
    body = None if policy is None else policy.to_json()
    with registry.store.write() as connection:
        now = int(registry.clock())
        seq = append(connection, now, Change(POLICY_SET, service, by=BY, data={"policy": body})).entry.seq
        connection.execute(delete(policies).where(policies.c.service == service))
        if policy is not None:
            connection.execute(insert(policies).values(service=service, seq=seq, body=canonical_json(body).decode()))
        connection.execute(delete(services).where(services.c.name == service))
        connection.execute(insert(services).values(name=service, seq=seq))


def set_domain(registry: Driver, wanted: DomainSettings) -> None:
    with registry.store.write() as connection:
        change = Change(DOMAIN_SET, by=BY, data={"settings": wanted.to_json()})
        seq = append(connection, int(registry.clock()), change).entry.seq
        connection.execute(delete(domain_settings))
        body = canonical_json(wanted.to_json()).decode()
        connection.execute(insert(domain_settings).values(id=1, seq=seq, body=body))
        connection.execute(update(services).where(services.c.name == "registry").values(seq=seq))


@pytest.fixture
def life(registry: Driver, clock: Clock) -> list[KeyPair]:
    """A registry in which something of every kind happened. The keys are: revoked, its child, retired, current."""
    revoked, child, retired = (registry.joined(key(), "billing"), key(), registry.joined(key(), "billing"))
    registry.rotate(revoked, child, "billing")
    registry.operator_ends(revoked, "billing")
    registry.end(retired, "billing", "retired")
    current = registry.joined(key(), "billing")
    clock.forward(10)
    set_policy(registry, "billing", CallPolicy({f"{DOMAIN}/shipping": frozenset(("read",))}))
    set_domain(registry, DomainSettings(frozenset((f"{DOMAIN}/edge",))))
    registry.registry.operators.create(Role.VIEWER, 600)
    registry.join_token("shipping", uses=3)
    assert named(registry) == set()
    return [revoked, child, retired, current]


# whole


ACTIONS = ("token", "withdraw", "join", "join", "rotate", "rotate", "retire", "revoke", "stolen", "policy", "wait")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)
@given(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 10_000)), min_size=5, max_size=40))
def test_whatever_happened_is_whole(registry: Driver, clock: Clock, actions: list[tuple[str, int]]) -> None:
    """Each example goes on where the one before stopped."""
    held = [(registry.joined(key(), "billing"), "billing")]
    tokens = [(registry.join_token("a.b", uses=2), "a.b")]
    for action, number in actions:
        chance = random.Random(number)
        (mine, service), (token, token_service) = chance.choice(held), chance.choice(tokens)
        try:
            if action == "token":
                tokens.append((registry.join_token("billing", uses=3, ttl=1000), "billing"))
            elif action == "withdraw":
                registry.registry.join_tokens.withdraw(token.id, BY)
            elif action == "join":
                held.append((new := key(), token_service))
                registry.join(new, token_service, token)
            elif action == "rotate":
                held.append((new := key(), service))
                registry.rotate(mine, new, service)
            elif action == "retire":
                registry.end(mine, service, "retired")
            elif action == "revoke":
                registry.operator_ends(mine, service)
            elif action == "stolen":
                registry.end(mine, service, "compromised")
            elif action == "policy":
                set_policy(registry, service, CallPolicy({"*": frozenset(("read", "write")[: number % 3])}))
            else:
                clock.forward(chance.choice([1, 400, 2 * 24 * 3600]))
        except PeersealError:
            pass
    found = checked(registry)
    assert (found.whole, found.differences) == (True, [])
    assert found.size == len(entries_of(registry.store))
    assert found.unbound == 0


def test_an_earlier_checkpoint_of_this_ledger_fits(registry: Driver, life: list[KeyPair]) -> None:
    early = registry.got("/ledger/checkpoint")
    for _ in range(3):
        registry.join_token("billing")
    assert checked(registry, checkpoints={"early": early, "now": registry.got("/ledger/checkpoint")}).whole


def test_tokens_long_past_may_be_gone_and_others_may_not(registry: Driver, clock: Clock) -> None:
    token = registry.join_token("billing", ttl=60)
    tamper(registry, delete(join_tokens))
    assert named(registry) == {("join_tokens", token.id, None)}
    clock.forward(61 + registry.settings.limits.spent_kept)
    assert named(registry) == set()


# each kind of tampering is named


def test_every_edited_row_of_every_table_is_named(registry: Driver, life: list[KeyPair]) -> None:
    revoked, child, retired, current = (pair.public.thumbprint for pair in life)
    other = key().public.spki
    one = keys.c.thumbprint
    with registry.store.read() as connection:
        [token, *_] = connection.execute(select(join_tokens.c.id).where(join_tokens.c.service == "shipping")).scalars()
        [viewer] = connection.execute(select(operator_tokens.c.id).where(operator_tokens.c.role == "viewer")).scalars()
    tamper(
        registry,
        update(keys).where(one == current).values(spki=other),
        update(keys).where(one == retired).values(active_until=keys.c.active_until + 1),
        update(keys).where(one == revoked).values(revoked_at=None, revoked_seq=None),
        update(keys).where(one == child).values(service="shipping", vouched_by=None),
        update(policies).values(body=policies.c.body + " "),
        update(domain_settings).values(body='{"issuers":[],"minters":[]}'),
        update(join_tokens).where(join_tokens.c.id == token).values(uses=5),
        update(operator_tokens).where(operator_tokens.c.id == viewer).values(role="admin", secret_hash=bytes(32)),
        update(registry_documents).values(jws="another"),
        update(services).where(services.c.name == "billing").values(seq=services.c.seq - 1),
    )
    assert named(registry) == {
        ("keys", current, "spki"),
        ("keys", retired, "active_until"),
        ("keys", revoked, "revoked_at"),
        ("keys", revoked, "revoked_seq"),
        ("keys", child, "service"),
        ("keys", child, "vouched_by"),
        ("policies", "billing", "body"),
        ("domain_settings", "1", "body"),
        ("join_tokens", token, "uses"),
        ("operator_tokens", viewer, "role"),
        ("operator_tokens", viewer, "secret_hash"),
        ("registry_documents", "1", "jws"),
        ("services", "billing", "seq"),
    }


def test_rows_too_many_and_too_few_are_named(registry: Driver, life: list[KeyPair]) -> None:
    stranger = key().public
    with registry.store.write() as connection:
        record = keys_storage.find(connection, life[3].public.thumbprint)
        assert record is not None
        added = keys_storage.addition(replace(record, thumbprint=stranger.thumbprint, spki=stranger.spki), None)
        connection.execute(added.statement, dict(added.parameters))
        connection.execute(delete(keys).where(keys.c.thumbprint == life[1].public.thumbprint))
        connection.execute(delete(policies))
        connection.execute(insert(registry_documents).values(version=7, jws="made up"))
    found = {(found.table, found.key): (found.says, found.should_say) for found in checked(registry).differences}
    assert found == {
        ("keys", stranger.thumbprint): ("a row", None),
        ("keys", life[1].public.thumbprint): (None, "a row"),
        ("policies", "billing"): (None, "a row"),
        ("registry_documents", "7"): ("a row", None),
    }


def test_an_edited_evidence_is_named(registry: Driver, life: list[KeyPair]) -> None:
    where = (entries.c.type == KEY_ADMITTED, entries.c.seq < 6)
    with registry.store.read() as connection:
        [seq, *_] = connection.execute(select(entries.c.seq).where(*where)).scalars()
    tamper(registry, update(entries).where(entries.c.seq == seq).values(evidence=b'{"proof":"x"}'))
    assert ("entries", str(seq), "evidence") in named(registry)
    tamper(registry, update(entries).where(entries.c.seq == seq).values(evidence=None))
    assert ("entries", str(seq), "evidence") in named(registry)


def test_edited_columns_of_an_entry_are_named(registry: Driver, life: list[KeyPair]) -> None:
    tamper(registry, update(entries).where(entries.c.seq == 4).values(time=1, type="x", service="y", kid="z"))
    assert named(registry) == {("entries", "4", name) for name in ("time", "type", "service", "kid")}


def test_an_edited_head_and_tile_are_named(registry: Driver) -> None:
    for _ in range(260):
        with registry.store.write() as connection:
            append(connection, int(registry.clock()), Change("operator_revoked", by=BY, data={"id": "x"}))
    before = named(registry)
    tamper(
        registry,
        update(tiles).values(hashes=bytes(8192)),
        insert(tiles).values(level=1, number=0, hashes=b"", root=b""),
        update(ledger_head).values(size=ledger_head.c.size + 1, frontier=b""),
    )
    added = {
        ("tiles", "level 0, number 0", "hashes"),
        ("tiles", "level 1, number 0", None),
        ("ledger_head", "1", "size"),
        ("ledger_head", "1", "frontier"),
    }
    assert named(registry) - before == added
    tamper(registry, delete(tiles))
    assert ("tiles", "level 0, number 0", None) in named(registry)


def test_an_edited_entry_is_named_and_so_is_the_tree_over_it(registry: Driver, life: list[KeyPair]) -> None:
    seq, body = extended(registry, life[3])
    tamper(registry, update(entries).where(entries.c.seq == seq).values(body=body))
    found = named(registry)
    expected = {("entries", str(seq), "leaf"), ("ledger_head", "1", "frontier")}
    assert expected | {("keys", life[3].public.thumbprint, "expires_at")} <= found
    tamper(registry, update(entries).where(entries.c.seq == seq).values(leaf=leaf_hash(body)))
    assert found - named(registry) == {("entries", str(seq), "leaf")}


def test_a_ledger_rewritten_throughout_is_told_by_the_checkpoint_that_was_kept(
    registry: Driver, life: list[KeyPair]
) -> None:
    kept = registry.got("/ledger/checkpoint")
    seq, body = extended(registry, life[3])
    mine = keys.c.thumbprint == life[3].public.thumbprint
    longer = {"expires_at": keys.c.expires_at + 1000, "active_until": keys.c.active_until + 1000}
    tamper(
        registry,
        update(entries).where(entries.c.seq == seq).values(body=body, leaf=leaf_hash(body)),
        update(keys).where(mine).values(**longer),
    )
    fix_tree(registry)
    assert named(registry) == set(), "by itself it looks as if nothing had happened"
    assert named(registry, checkpoints={"kept": kept}) == {("checkpoint", "kept", "root")}


def test_a_ledger_that_became_shorter_is_told_by_the_checkpoint_that_was_kept(registry: Driver) -> None:
    registry.joined(key(), "billing")
    registry.join_token("shipping")
    kept = registry.got("/ledger/checkpoint")
    with registry.store.write() as connection:
        last = connection.execute(select(ledger_head.c.size)).scalar_one()
        connection.execute(delete(entries).where(entries.c.seq == last))
        connection.execute(delete(join_tokens).where(join_tokens.c.service == "shipping"))
    fix_tree(registry)
    assert named(registry) == set()
    assert named(registry, checkpoints={"kept": kept}) == {("checkpoint", "kept", "size")}


def test_the_checkpoint_of_another_registry_is_reported(registry: Driver, tmp_path: Path, life: list[KeyPair]) -> None:
    other = Driver(f"sqlite:///{tmp_path / 'other.sqlite3'}", tmp_path / "other")
    kept = other.got("/ledger/checkpoint")
    other.close()
    assert named(registry, checkpoints={"kept": kept}) == {("checkpoint", "kept", "signature")}
    assert named(registry, checkpoints={"kept": "x\n-\n"}) == {("checkpoint", "kept", "signature")}


def test_a_deleted_entry_is_named(registry: Driver, life: list[KeyPair]) -> None:
    tamper(registry, delete(entries).where(entries.c.seq == 5))
    assert ("entries", "5", None) in named(registry)
    tamper(registry, delete(entries).where(entries.c.seq.in_((6, 7))))
    assert ("entries", "5 to 7", None) in named(registry)


# what the registry cannot make up


def admit(registry: Driver, pair: KeyPair, by: dict[str, str], evidence: dict[str, str]) -> int:
    """An admission written straight into the database, with everything that belongs to it."""
    now, public = int(registry.clock()), pair.public
    kid = make_kid(OWNER, public.thumbprint)
    data = {"alg": public.alg, "jwk": dict(public.jwk), "active_from": now, "expires_at": now + 1000}
    with registry.store.write() as connection:
        change = Change(KEY_ADMITTED, "billing", kid, by, evidence, data)
        return append(connection, now, change).entry.seq


def proof_of(registry: Driver, pair: KeyPair) -> str:
    return sign_proof(pair, issuer=OWNER, audience=registry_id(DOMAIN), now=registry.clock())


def test_an_admission_with_a_voucher_that_its_key_never_signed_is_named(registry: Driver, life: list[KeyPair]) -> None:
    thief, voucher = key(), make_kid(OWNER, life[3].public.thumbprint)
    forged = registry.signed(thief, "billing", "POST", "/v1/services/billing/keys")["Authorization"][7:]
    own = registry.signed(life[3], "billing", "DELETE", "/v1/services/billing/keys/x")["Authorization"][7:]
    for token in (forged, own):
        proof = {"proof": proof_of(registry, pair := key())}
        seq = admit(registry, pair, {"kid": voucher}, {**proof, "vouch": token})
        assert ("entries", str(seq), "body") in named(registry)
    seq = admit(registry, pair := key(), {"kid": voucher}, {"proof": proof_of(registry, pair)})
    assert ("entries", str(seq), "evidence") in named(registry)


def test_an_admission_on_grounds_that_were_none_is_named(registry: Driver, life: list[KeyPair]) -> None:
    spent = next(entry for entry in entries_of(registry.store) if "join_token" in entry.by).by
    grounds: list[dict[str, str]] = [
        dict(spent),
        {"join_token": "nobody"},
        {"operator": "nobody"},
        {"kid": make_kid(OWNER, life[0].public.thumbprint)},
        {"kid": make_kid(OWNER, life[2].public.thumbprint)},
        {"oidc": "https://issuer.test", "subject": "0" * 64, "operator": "invented"},
        {"dev": "x", "operator": "invented"},
        {"local": "cli", "operator": "invented"},
        {"oidc": "https://issuer.test"},
        {"unknown": "x"},
        {},
    ]
    for by in grounds:
        pair = key()
        token = registry.signed(life[0], "billing", "POST", "/v1/services/billing/keys")["Authorization"][7:]
        evidence = {"proof": proof_of(registry, pair), **({"vouch": token} if "kid" in by else {})}
        seq = admit(registry, pair, by, evidence)
        assert ("entries", str(seq), "by") in named(registry), by


def test_an_act_of_admins_by_another_operator_is_named(registry: Driver, life: list[KeyPair]) -> None:
    now, operator = int(registry.clock()), registry.registry.operators.create(Role.OPERATOR, 3600)[0]
    made = {"id": "0" * 16, "role": "admin", "expires_at": now + 3600, "secret_hash": "A" * 43}
    with registry.store.write() as connection:
        change = Change(OPERATOR_CREATED, by={"operator": operator.id}, data=made)
        seq = append(connection, now, change).entry.seq
    assert ("entries", str(seq), "by") in named(registry)


def test_an_admission_for_a_hundred_years_is_named(registry: Driver, life: list[KeyPair]) -> None:
    pair, now = key(), int(registry.clock())
    data = {"alg": pair.public.alg, "jwk": dict(pair.public.jwk), "active_from": now, "expires_at": now + 100 * YEAR}
    kid, evidence = make_kid(OWNER, pair.public.thumbprint), {"proof": proof_of(registry, pair)}
    with registry.store.write() as connection:
        seq = append(connection, now, Change(KEY_ADMITTED, "billing", kid, {"local": "cli"}, evidence, data)).entry.seq
    assert ("entries", str(seq), "body") in named(registry)


def test_an_admission_without_a_proof_by_its_key_is_named(registry: Driver, life: list[KeyPair]) -> None:
    seq = admit(registry, key(), {"local": "cli"}, {"proof": proof_of(registry, key())})
    assert ("entries", str(seq), "body") in named(registry)


def test_a_revocation_that_spares_a_descendant_is_named(registry: Driver) -> None:
    old, new = registry.joined(key(), "billing"), key()
    registry.rotate(old, new, "billing")
    kid = make_kid(OWNER, old.public.thumbprint)
    with registry.store.write() as connection:
        data = {"reason": "compromised", "cause": kid}
        seq = append(connection, int(registry.clock()), Change(KEY_REVOKED, "billing", kid, BY, data=data)).entry.seq
    found = [found for found in checked(registry).differences if found.key == str(seq)]
    assert new.public.thumbprint in str(found[0])


# the command


@pytest.mark.thorough
def test_the_command_names_rows_and_ends_with_a_code(registry: Driver, life: list[KeyPair], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text(registry.got("/ledger/checkpoint"), encoding="utf-8")

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        wired = {"REGISTRY_HOME": str(registry.home), "REGISTRY_DATABASE_URL": registry.url, **changes}
        command = [str(BIN / "peerseal-registry"), "verify", *arguments]
        return subprocess.run(command, env=environment(wired), capture_output=True, encoding="utf-8")

    whole = run("--checkpoint", str(kept), "--json")
    assert (whole.returncode, json.loads(whole.stdout)["whole"]) == (0, True)
    thumbprint = life[0].public.thumbprint
    tamper(registry, update(keys).where(keys.c.thumbprint == thumbprint).values(revoked_at=None))
    edited = run()
    assert edited.returncode == 1
    assert f"keys {thumbprint}, revoked_at: says nothing, should say {int(registry.clock()) - 10}" in edited.stdout
    assert json.loads(run("--json").stdout)["differences"][0]["column"] == "revoked_at"
    assert run(REGISTRY_DATABASE_URL="sqlite:////nowhere/at/all").returncode == 3


def extended(registry: Driver, pair: KeyPair) -> tuple[int, bytes]:
    """The seq of a key's admission, and the entry with a later end, in canonical spelling."""
    kid = make_kid(OWNER, pair.public.thumbprint)
    entry: Entry = next(entry for entry in entries_of(registry.store) if entry.kid == kid)
    return entry.seq, replace(entry, data={**entry.data, "expires_at": entry.data["expires_at"] + 1000}).encode()


def fix_tree(registry: Driver) -> None:
    """The head as an attacker writes it to hide a change."""
    with registry.store.write() as connection:
        edge = Frontier()
        for body in connection.execute(select(entries.c.body).order_by(entries.c.seq)).scalars():
            edge = edge.appended(leaf_hash(body))
        connection.execute(update(ledger_head).values(size=edge.size, frontier=edge.encode()))
