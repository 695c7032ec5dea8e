"""Which foreign trust domains are believed: who may say it, that the registry signs it, and that the ledger has it.
Each test runs on SQLite and on PostgreSQL."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update
from werkzeug.test import TestResponse

from peerseal.protocol.documents.federation import FederatedDomain, Federation, FederationDocument
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import verify_checkpoint
from peerseal.protocol.ledger.entries import FEDERATION_SET, MAX_ENTRY, Entry
from peerseal.protocol.names import registry_id
from peerseal.trust.seen_ledger import check_federation
from registry.domain.errors import BadRequest, SchemaRefused
from registry.domain.rebuild import rebuild
from registry.services.access.operators import Role
from registry.services.recovery.restore import restore
from registry.services.recovery.verify import verify
from registry.storage.migrate import migrate_down
from registry.storage.queries import audit
from registry.storage.queries.ledger import Change, append
from registry.storage.tables import entries
from tests.contracts.backups import Backup, keep
from tests.registry.driver import BY, DOMAIN, JSON, Clock, Driver, entries_of, outcome, tables_of
from tests.support.keys import key

PATH, SIGNED = "/v1/federation", "/v1/federation.jwt"
ROOT = "BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ"
OTHER_ROOT = "LSzq4S14tmSwuJYePdRGQSfIJEmCpidxSsckURu3nXA"
PARTNER: dict[str, Any] = {
    "domain": "partner.example",
    "urls": ["https://registry.partner.example"],
    "root": ROOT,
    "services": ["billing"],
    "scopes": ["orders:read"],
}
NONE: dict[str, Any] = {"domains": []}


def put(registry: Driver, body: Any, seen: int | None = 0) -> TestResponse:
    named = {} if seen is None else {"If-Match": f'"{seen}"'}
    return registry.client.put(PATH, json=body, headers={**registry.operator, **named})


def added(registry: Driver, body: Any, seen: int = 0) -> int:
    """The number of the entry that the change made, or that had made it before."""
    done = put(registry, body, seen)
    assert done.status_code == 200, done.data
    return int(done.get_json()["entry"])


def signed(registry: Driver, query: str = "") -> FederationDocument:
    return registry.read(FederationDocument, registry.got(f"{SIGNED}{query}"))


def head(registry: Driver) -> int:
    return len(entries_of(registry.store))


def differences(registry: Driver) -> list[tuple[str, str, str | None]]:
    found = verify(registry.store, registry.settings.limits, clock=registry.clock).differences
    return [(one.table, one.key, one.column) for one in found]


# what is written, and what comes back


def test_a_registry_that_federates_with_none_says_so_under_its_signature(registry: Driver) -> None:
    """A mirror that answers 404 could hide a federation, and one that was taken away."""
    document = signed(registry)
    assert (document.federation, document.subject, document.seq) == (Federation(), DOMAIN, 1)
    shown = registry.client.get(PATH, headers=registry.operator)
    assert (shown.get_json(), shown.headers["ETag"]) == ({**NONE, "entry": 0}, '"0"')
    size = head(registry)
    assert added(registry, NONE) == 0
    assert head(registry) == size, "nothing was changed"


def test_a_foreign_domain_is_signed_entered_noted_and_told_to_those_who_follow(registry: Driver) -> None:
    entry = added(registry, {"domains": [PARTNER]})
    said = {"domains": [{**PARTNER, "transactions": False}]}
    limits = frozenset(PARTNER["services"]), frozenset(PARTNER["scopes"])
    partner = FederatedDomain("partner.example", tuple(PARTNER["urls"]), ROOT, *limits)
    document = signed(registry, f"?seq={entry}")
    assert (document.federation, document.seq) == (Federation((partner,)), entry)
    [newest] = entries_of(registry.store)[entry - 1 :]
    assert (newest.type, newest.service, newest.kid, newest.data) == (FEDERATION_SET, None, None, {"federation": said})
    assert registry.changes(entry - 1).services == (registry_id(DOMAIN),)
    with registry.store.look() as connection:
        last = audit.page(connection, 0, 1000)[-1]
    assert (last.act, last.subject, last.seq, last.by) == (FEDERATION_SET, DOMAIN, entry, newest.by)
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    assert differences(registry) == []
    shown = registry.client.get(PATH, headers=registry.operator).get_json()
    assert shown == {**said, "entry": entry}
    assert added(registry, shown, entry) == entry, "what is shown can be sent back, and changes nothing"


def test_the_document_proves_the_entry_that_set_it_with_the_same_bytes_at_every_node(registry: Driver) -> None:
    other = registry.node()
    assert signed(registry).entry is None, "none was set"
    entry = added(registry, {"domains": [PARTNER]})
    operator = {**registry.operator, "If-Match": '"0"'}
    registry.client.put("/v1/domain", json={"minters": ["edge"], "issuers": []}, headers=operator)
    registry.joined(key(), "billing")
    root = registry.client.get("/.well-known/peerseal-registry").text
    ledger_keys = read_registry_keys(root, pin=registry.pin, now=registry.clock()).ledger_keys
    for query in ("", f"?seq={entry + 1}", f"?seq={head(registry)}"):
        document = signed(registry, query)
        assert document.set_by == entry < document.seq
        check_federation(document, verify_checkpoint(document.checkpoint, DOMAIN, ledger_keys))
    assert registry.got(SIGNED) == other.got(SIGNED)
    gone = added(registry, NONE, entry)
    assert signed(registry).set_by == gone, "a removal is an entry too"
    other.close()


def test_a_federation_is_taken_away_at_every_node_with_the_next_answer(registry: Driver) -> None:
    other = registry.node()
    entry = added(registry, {"domains": [PARTNER]})
    assert signed(other).federation.of("partner.example")
    gone = added(registry, NONE, entry)
    assert gone == entry + 1
    document = signed(other)
    assert (document.federation, document.seq) == (Federation(), gone)
    assert other.changes(entry).services == (registry_id(DOMAIN),)
    other.close()


def test_the_domain_s_settings_and_the_federation_are_set_apart(registry: Driver) -> None:
    federation = added(registry, {"domains": [PARTNER]})
    operator = {**registry.operator, "If-Match": '"0"'}
    settings = registry.client.put("/v1/domain", json={"minters": ["edge"], "issuers": []}, headers=operator)
    assert settings.status_code == 200, "the entry of the federation is none of the settings"
    assert signed(registry).federation.of("partner.example")
    assert signed(registry).seq == settings.get_json()["entry"], "the newest entry about the registry's documents"
    assert added(registry, NONE, federation) == head(registry)
    assert registry.client.get("/v1/domain", headers=registry.operator).get_json()["minters"] == [f"{DOMAIN}/edge"]


def test_a_foreign_domain_is_believed_under_two_roots_while_it_replaces_one(registry: Driver) -> None:
    new = {**PARTNER, "root": key().public.thumbprint, "urls": ["https://new.partner.example"]}
    entry = added(registry, {"domains": [PARTNER, new]})
    assert {one.root for one in signed(registry).federation.of("partner.example")} == {ROOT, new["root"]}
    added(registry, {"domains": [new]}, entry)
    assert {one.root for one in signed(registry).federation.of("partner.example")} == {new["root"]}


# what is refused


def test_of_two_operators_at_once_one_is_refused(registry: Driver) -> None:
    entry = added(registry, {"domains": [PARTNER]})
    assert outcome(put(registry, NONE)) == (412, "precondition_failed")
    assert outcome(put(registry, NONE, None)) == (428, "precondition_required")
    assert signed(registry).seq == entry


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_operators_read_it_and_admins_alone_change_it(registry: Driver) -> None:
    token = registry.registry.operators.create(Role.OPERATOR, 600)[1]
    headers = {"Authorization": f"Bearer {token}", "If-Match": '"0"'}
    assert registry.client.get(PATH, headers=headers).status_code == 200
    refused = registry.client.put(PATH, json={"domains": [PARTNER]}, headers=headers)
    assert outcome(refused) == (403, "role_insufficient")
    assert signed(registry).federation == Federation()


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "domains",
    [
        [{**PARTNER, "domain": DOMAIN}],
        [{**PARTNER, "domain": "p\u0430rtner.example"}],
        [{**PARTNER, "urls": []}],
        [{**PARTNER, "urls": ["http://registry.partner.example"]}],
        [{**PARTNER, "services": ["registry"]}],
        [{**PARTNER, "services": ["*"]}],
        [{"domain": "partner.example", "urls": PARTNER["urls"], "root": ROOT, "transactions": True}],
        [PARTNER, PARTNER],
        [PARTNER, {**PARTNER, "domain": "other.example"}],
        {"partner.example": PARTNER},
        [{**PARTNER, "scopes": ["*"]}],
        [PARTNER, {**PARTNER, "root": OTHER_ROOT}],
        [PARTNER, {**PARTNER, "domain": "other.example", "root": OTHER_ROOT}],
        [{**PARTNER, "urls": [*PARTNER["urls"], "https://REGISTRY.partner.example."]}],
        [{**PARTNER, "urls": [*PARTNER["urls"], "https://registry.partner.example:443//"]}],
    ],
)
def test_no_federation_that_clients_would_refuse_or_misread_is_signed(registry: Driver, domains: Any) -> None:
    size = head(registry)
    assert outcome(put(registry, {"domains": domains})) == (400, "malformed_body")
    assert head(registry) == size


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_the_own_root_is_no_foreign_one(registry: Driver) -> None:
    assert outcome(put(registry, {"domains": [{**PARTNER, "root": registry.pin}]})) == (400, "malformed_body")


def many(number: int) -> dict[str, Any]:
    """As many foreign domains, of some 11 KB each."""
    names = [f"{'s' * 50}{index}" for index in range(200)]
    root = [KeyPair.generate("ES256").public.thumbprint for _ in range(number)]
    return {
        "domains": [
            {
                **PARTNER,
                "domain": f"p{n}.example",
                "urls": [f"https://p{n}.example"],
                "root": root[n],
                "services": names,
            }
            for n in range(number)
        ]
    }


def test_a_federation_fits_into_an_entry_or_is_refused(registry: Driver) -> None:
    entry = added(registry, many(5))
    assert 0.8 * MAX_ENTRY < len(entries_of(registry.store)[-1].encode()) <= MAX_ENTRY
    assert outcome(put(registry, many(6), entry)) in ((400, "setting_too_large"), (413, "body_too_large"))
    with pytest.raises(BadRequest, match="fit into a ledger entry"):
        registry.registry.federations.replace(many(6), {entry}, BY)
    assert signed(registry).seq == entry


TEXTS = st.text(st.characters(exclude_categories=()), max_size=120) | st.sampled_from(
    ["\x00", "\ud800", "*", DOMAIN, "registry", "partner.example", "https://[::1", "https://x:99999", "a\r\nb", "é" * 9]
)
VALUES = TEXTS | st.none() | st.integers() | st.lists(TEXTS, max_size=3) | st.dictionaries(TEXTS, TEXTS, max_size=2)


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*PARTNER, "transactions", "more"]), VALUES, max_size=3), VALUES)
def test_nothing_in_a_federation_makes_the_registry_fail(registry: Driver, members: dict[str, Any], other: Any) -> None:
    """What it accepts, it signs so that a client reads it."""
    for body in ({"domains": [{**PARTNER, **members}]}, {"domains": other}, {**members}):
        seen = registry.client.get(PATH, headers=registry.operator).headers["ETag"]
        content = json.dumps(body).encode("ascii")
        headers = {**registry.operator, **JSON, "If-Match": seen}
        assert registry.client.put(PATH, data=content, headers=headers).status_code in (200, 400)
    assert signed(registry).subject == DOMAIN


# the ledger is the only record


def test_an_altered_entry_is_named_and_never_signed(registry: Driver) -> None:
    seq = added(registry, {"domains": [PARTNER]})
    found = entries_of(registry.store)[seq - 1]
    wider = {"federation": {"domains": [{**PARTNER, "transactions": True}]}}
    forged = Entry(found.seq, found.time, found.type, by=found.by, data=wider).encode()
    with registry.store.write() as connection:
        connection.execute(update(entries).where(entries.c.seq == seq).values(body=forged))
    assert outcome(registry.fresh_node().client.get(SIGNED)) == (503, "ledger_contradicted")
    assert ("entries", str(seq), "leaf") in differences(registry)


def test_a_removed_entry_does_not_bring_back_what_it_took_away(registry: Driver) -> None:
    gone = added(registry, NONE, added(registry, {"domains": [PARTNER]}))
    registry.join_token("billing")
    with registry.store.write() as connection:
        connection.execute(delete(entries).where(entries.c.seq == gone))
    assert outcome(registry.fresh_node().client.get(SIGNED)) == (503, "ledger_contradicted")
    assert ("entries", str(gone), None) in differences(registry)


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("by", "data", "column"),
    [
        ({"operator": "ffffffffffffffff"}, {"federation": NONE}, "by"),
        (BY, {"federation": {"domains": [{**PARTNER, "domain": DOMAIN}]}}, "body"),
        (BY, {"federation": {"domains": [PARTNER]}}, "body"),
        (BY, {"federation": NONE, "more": 1}, "body"),
        (BY, {}, "body"),
    ],
)
def test_an_entry_without_grounds_or_in_another_spelling_is_named(
    registry: Driver, by: dict[str, str], data: dict[str, Any], column: str
) -> None:
    with registry.store.write() as connection:
        seq = append(connection, int(registry.clock()), Change(FEDERATION_SET, by=by, data=data)).entry.seq
    assert ("entries", str(seq), column) in differences(registry)


@pytest.mark.parametrize("registry_database", ["sqlite"], indirect=True)
def test_an_operator_who_is_no_admin_is_no_ground_for_a_federation(registry: Driver) -> None:
    operator, _ = registry.registry.operators.create(Role.OPERATOR, 600)
    with registry.store.write() as connection:
        change = Change(FEDERATION_SET, by={"operator": operator.id}, data={"federation": NONE})
        seq = append(connection, int(registry.clock()), change).entry.seq
    assert ("entries", str(seq), "by") in differences(registry)


def test_there_is_no_way_back_to_a_release_that_cannot_read_the_ledger(registry: Driver) -> None:
    seq = added(registry, {"domains": [PARTNER]})
    with pytest.raises(SchemaRefused, match=f"no place for the federation in entry {seq}$"):
        migrate_down(registry.store.engine)
    assert signed(registry).seq == seq


def test_a_restore_from_a_public_copy_brings_a_removal_back(registry: Driver, clock: Clock, tmp_path: Path) -> None:
    entry = added(registry, {"domains": [PARTNER]})
    backup = Backup(registry.store)
    added(registry, NONE, entry)
    copy = keep(registry, tmp_path / "copy")
    backup.come_back(registry.store)
    restore(registry.store, registry.settings.limits, [copy], clock=clock)
    assert signed(registry.forgetful_node()).federation == Federation()
    assert differences(registry) == []
