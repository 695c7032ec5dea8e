"""The browser's own check of the ledger, on the bytes of a real registry, and on those of registries that lie."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, Checkpoint, sign_checkpoint, tile_path
from peerseal.protocol.ledger.entries import Entry
from registry.services.access.operators import Role
from registry.services.authority.authority import Authority
from registry.services.setup.keyfiles import read_key_pair
from registry.storage.queries import ledger
from registry.storage.queries.ledger import Change
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.console.ledger_check import Case, Files, Result, check, forged_files, public_files, shown_on
from tests.registry.driver import Clock, Driver

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js, which runs the browser's script")

DOCUMENT, NOTE = REGISTRY_KEYS_PATH[1:], CHECKPOINT_PATH[1:]
HOSTILE = "<script>alert(1)</script>\"'&\u202eevil\u2028\u0007 ü 😀 javascript:alert(1)"


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, rsa_key: KeyPair) -> Iterator[Driver]:
    """A registry with more entries than a tile has, of several types, some with evidence or hostile texts. A test may
    add entries."""
    home = tmp_path_factory.mktemp("grown")
    driver = Driver(f"sqlite:///{home / 'registry.db'}", home / "home", Clock(), console=True)
    driver.joined(rsa_key, "billing")
    with driver.registry.store.write() as connection:
        changes = [Change("noted", by={"local": "test"}, data={"number": number}) for number in range(260)]
        hostile = {"text": HOSTILE, "long": HOSTILE * 20, "\ue000": [None, True, {}], "😀": -1}
        told = Change("hostile", HOSTILE, HOSTILE + "/" + HOSTILE, {"dev": HOSTILE, "oidc": "x"}, data=hostile)
        ledger.append(connection, int(driver.clock()), *changes, told)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def viewer(grown: Driver) -> Browser:
    return browser_of(grown, Role.VIEWER)


def case(driver: Driver, browser: Browser, path: str = "/console/ledger", **changes: Any) -> Case:
    """What the browser knows after it has opened that page."""
    assert browser.open(path).status_code == 200
    files, shown = public_files(driver), shown_on(browser.page)
    assert shown
    return Case(files, shown, driver.pin, driver.clock(), **changes)


def authority(driver: Driver) -> Authority:
    return driver.registry.authority.current()


def bodies(driver: Driver) -> list[bytes]:
    with driver.store.read() as connection:
        return list(ledger.read_bodies(connection, 0, ledger.head(connection)))


def root_key(driver: Driver) -> KeyPair:
    return read_key_pair(driver.settings.root_key_file, "root key", driver.settings.key_passphrase)


def refused(*cases: Case) -> list[Result]:
    """The results. All of them are red, and the browser goes on with what it remembers."""
    results = check(*cases)
    assert [result.state for result in results] == ["refused"] * len(results)
    return results


# ---- an honest registry


def test_an_honest_registry_is_proved_on_each_page(grown: Driver, viewer: Browser) -> None:
    size = len(bodies(grown))
    paths = ["/console/ledger", "/console/ledger?at=280", "/console/ledger?at=3"]
    paths += [f"/console/ledger/{seq}" for seq in (1, 3, 256, 257, size - 1, size)]
    results = check(*(case(grown, viewer, path) for path in paths))
    assert [result.states for result in results] == [["proved"] * 4] * len(paths)
    assert {result.state for result in results} == {"proved"}


def test_a_page_shows_hostile_texts_as_the_ledger_has_them(grown: Driver, viewer: Browser) -> None:
    number = next(seq for seq, body in enumerate(bodies(grown), 1) if Entry.decode(body).type == "hostile")
    shown = case(grown, viewer, f"/console/ledger/{number}").shown[0]
    assert shown["cells"]["service"] == HOSTILE
    assert shown["cells"]["by"] == f"dev {HOSTILE}, platform x"
    assert "<script>alert" not in viewer.page


def test_the_evidence_of_a_key_is_shown_and_proved(grown: Driver, viewer: Browser) -> None:
    [admitted] = [seq for seq, body in enumerate(bodies(grown), 1) if Entry.decode(body).type == "key_admitted"]
    honest = case(grown, viewer, f"/console/ledger/{admitted}")
    [shown] = honest.shown
    assert json.loads(shown["evidence"]).keys() == {"proof"}
    assert check(honest)[0].state == "proved"
    [result] = refused(honest.but(shown=[{**shown, "evidence": shown["evidence"].replace("proof", "token")}]))
    assert "evidence" in result.told


def test_the_ledger_may_grow_from_each_size_to_each_other(grown: Driver) -> None:
    known, texts = authority(grown), [canonical_json({"n": number}) for number in range(513)]
    sizes = [1, 2, 3, 4, 5, 8, 9, 255, 256, 257, 513]
    files = {size: forged_files(known, texts[:size]) for size in sizes}
    seen = {size: remembered_of(files[size], size) for size in sizes}
    shown = [{"seq": 1, "cells": {}}]
    pairs = [(old, new) for old in sizes for new in sizes if old <= new]
    growth = [Case(files[new], shown, grown.pin, grown.clock(), seen[old]) for old, new in pairs]
    results = check(*growth)
    assert [result.states[3] for result in results] == ["proved"] * len(pairs)


def remembered_of(files: Files, size: int) -> dict[str, Any]:
    """What a browser keeps of the checkpoint in these files."""
    note = files[NOTE].decode()
    assert note.split("\n")[1] == str(size)
    return {"version": 1, "size": size, "root": note.split("\n")[2], "note": note}


def test_the_forger_of_these_tests_makes_the_files_of_an_honest_registry_from_its_entries(grown: Driver) -> None:
    assert forged_files(authority(grown), bodies(grown)) == public_files(grown)


def test_a_browser_remembers_the_checkpoint_that_it_proved(grown: Driver, viewer: Browser) -> None:
    before = case(grown, viewer)
    [first] = check(before)
    assert first.remember == remembered_of(before.files, len(bodies(grown)))
    grown.join_token("shop")
    [same, grew] = check(before.but(remembered=first.remember), case(grown, viewer, remembered=first.remember))
    assert (same.state, same.remember) == ("proved", first.remember)
    assert grew.state == "proved"
    assert grew.remember is not None
    assert grew.remember["size"] == len(bodies(grown))


def test_a_ledger_key_of_the_past_may_still_sign(grown: Driver, viewer: Browser) -> None:
    known, newer = authority(grown).keys, {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(32))}
    rolled = replace(known, version=2, ledger_key=newer, past_ledger_keys=(known.ledger_key,))
    document = sign_document(rolled, root_key(grown)).encode()
    [result] = check(case(grown, viewer).but(files={DOCUMENT: document}))
    assert result.state == "proved"


# ---- lies


def test_lie_another_root_document(grown: Driver, viewer: Browser) -> None:
    honest, known, root = case(grown, viewer), authority(grown).keys, root_key(grown)
    other, now = KeyPair.generate("ES256"), int(grown.clock())
    lies = {
        "the pin is": sign_document(replace(known, root=other.public), other),
        "by acme.internal/registry/": sign_document(known, other),
        "the root's document is by evil.internal": sign_document(
            replace(known, issuer="evil.internal/registry", subject="evil.internal"), root
        ),
        "has expired": sign_document(replace(known, issued_at=now - 100, expires_at=now - 31), root),
        "from the future": sign_document(replace(known, issued_at=now + 60), root),
        "does not verify": _altered_payload(authority(grown).jws),
        "is malformed": authority(grown).jws + "=",
        "not a JWS": "x",
    }
    results = refused(*(honest.but(files={DOCUMENT: jws.encode()}) for jws in lies.values()))
    for told, result in zip(lies, results, strict=True):
        assert told in result.told
        assert result.states == ["refused", "unverified", "unverified", "unverified"]
        assert result.remember is None


def _altered_payload(jws: str) -> str:
    header, payload, signature = jws.split(".")
    altered = json.loads(b64url_decode(payload)) | {"version": 7}
    return ".".join((header, b64url(canonical_json(altered)), signature))


def signed_by(key: KeyPair, header: Any, payload: Any) -> bytes:
    """A JWS that no registry would make."""
    text = ".".join(b64url(canonical_json(part)) for part in (header, payload))
    return f"{text}.{b64url(key.sign(text.encode()))}".encode()


def test_lie_another_root_key_under_the_pinned_kid(grown: Driver, viewer: Browser) -> None:
    known, thief = authority(grown), KeyPair.generate("ES256")
    header, payload = (json.loads(b64url_decode(part)) for part in known.jws.split(".")[:2])
    [result] = refused(case(grown, viewer).but(files={DOCUMENT: signed_by(thief, header, payload)}))
    assert "signature does not verify" in result.told


def test_lie_something_else_that_the_root_signed(grown: Driver, viewer: Browser) -> None:
    honest, root = case(grown, viewer), root_key(grown)
    header, payload = (json.loads(b64url_decode(part)) for part in authority(grown).jws.split(".")[:2])
    key = payload["root"]
    lies: list[tuple[str, Any, Any]] = [
        ("of another type", {**header, "typ": "peerseal-history+jwt"}, payload),
        ("of another type", {**header, "alg": "RS256"}, payload),
        ("unknown header", {**header, "crit": []}, payload),
        ("document is malformed", header, []),
        ("document is malformed", header, {**payload, "root": None}),
        ("not an EC key", header, {**payload, "root": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}),
        ("not an EC key", header, {**payload, "root": {**key, "crv": "P-384"}}),
        ("root key is malformed", header, {**payload, "root": {**key, "x": "AAAA"}}),
        ("document is of evil.internal", header, {**payload, "sub": "evil.internal"}),
        ("document is of acme.internal", header, {**payload, "iss": "evil.internal/registry"}),
        ("no version or no times", header, {**payload, "version": "9"}),
        ("no version or no times", header, {**payload, "exp": str(payload["exp"])}),
        ("no ledger keys", header, {**payload, "past_ledger_keys": {}}),
        ("no ledger key", header, {**payload, "ledger_key": key}),
        ("no ledger key", header, {**payload, "ledger_key": None}),
    ]
    results = refused(*(honest.but(files={DOCUMENT: signed_by(root, *parts)}) for _, *parts in lies))
    for (told, *_), result in zip(lies, results, strict=True):
        assert told in result.told


def test_lie_an_older_root_document_than_this_browser_saw(grown: Driver, viewer: Browser) -> None:
    honest = case(grown, viewer)
    [seen] = check(honest)
    assert seen.remember is not None
    [result] = refused(honest.but(remembered={**seen.remember, "version": 2}))
    assert "version 1" in result.told


def test_lie_a_checkpoint_by_another_key(grown: Driver, viewer: Browser) -> None:
    honest, key = case(grown, viewer), Ed25519PrivateKey.generate()
    note = honest.files[NOTE].decode()
    claimed = Checkpoint(note.split("\n")[0], len(bodies(grown)), b"\0" * 32)
    of_thief = sign_checkpoint(claimed, key)
    other_root = note.replace(note.split("\n")[2], of_thief.split("\n")[2])
    foreign = sign_checkpoint(replace(claimed, origin="evil.internal"), key)
    own = authority(grown).ledger_key
    lies = {
        "no ledger key": of_thief,
        "does not verify": other_root,
        "is of evil.internal": foreign,
        "not a signed note": "x",
        "is no signature": f"{note}x\n",
        "more than a browser can count": sign_checkpoint(replace(claimed, size=2**53), own),
    }
    results = refused(*(honest.but(files={NOTE: text.encode()}) for text in lies.values()))
    for told, result in zip(lies, results, strict=True):
        assert told in result.told
        assert result.states == ["proved", "refused", "unverified", "unverified"]


def test_lie_an_altered_entry(grown: Driver, viewer: Browser) -> None:
    page = case(grown, viewer, "/console/ledger?at=258")
    one = case(grown, viewer, "/console/ledger/258")
    altered = Entry.decode(bodies(grown)[257])
    changed = replace(altered, data={"number": 9_999})
    files = forged_files(authority(grown), [*bodies(grown)[:257], changed.encode(), *bodies(grown)[258:]])
    bundle = next(path for path in files if "/entries/001" in path)
    results = refused(
        page.but(files={bundle: files[bundle]}),
        one.but(shown=[{**one.shown[0], "body": changed.encode().decode()}]),
    )
    for result in results:
        assert result.told == "entry 258 is not the one in the ledger"
        assert result.states == ["proved", "proved", "refused", "proved"]


def test_lie_a_page_that_shows_an_entry_otherwise(grown: Driver, viewer: Browser) -> None:
    page = case(grown, viewer)
    first, *rest = page.shown
    names = ["seq", "time", "type", "service", "thumbprint", "by", "excerpt"]
    assert list(first["cells"]) == names
    lies = ({**first, "cells": {**first["cells"], name: "another"}} for name in names)
    results = refused(*(page.but(shown=[lie, *rest]) for lie in lies))
    for name, result in zip(names, results, strict=True):
        assert f"is shown with {name} another" in result.told


def test_lie_a_page_that_leaves_an_entry_out(grown: Driver, viewer: Browser) -> None:
    page = case(grown, viewer, "/console/ledger?at=100")
    assert [each["seq"] for each in page.shown] == list(range(100, 50, -1))
    without = [each for each in page.shown if each["seq"] != 77]
    twice = [*page.shown[:10], *page.shown[9:]]
    results = refused(*(page.but(shown=shown) for shown in (without, twice, page.shown[::-1])))
    assert [result.told.partition(" does")[0] for result in results] == ["entry 76", "entry 91", "entry 52"]


def test_a_page_says_how_many_newer_entries_the_ledger_has(grown: Driver, viewer: Browser) -> None:
    size = len(bodies(grown))
    newest, older = check(case(grown, viewer), case(grown, viewer, "/console/ledger?at=100"))
    assert newest.steps[2]["text"].endswith("all of them, are in the ledger of that checkpoint")
    assert older.steps[2]["text"].endswith(f"in the ledger of that checkpoint, before {size - 100} newer ones")


def test_lie_an_altered_tile(grown: Driver, viewer: Browser) -> None:
    page, size = case(grown, viewer, "/console/ledger/257"), len(bodies(grown))
    tile, upper = f"ledger/{tile_path(0, 1, size - 256)}", f"ledger/{tile_path(1, 0, 1)}"
    results = refused(
        page.but(files={tile: page.files[tile][:-32] + bytes(32)}),
        page.but(files={upper: bytes(32)}),
        page.but(files={tile: page.files[tile][:-1]}),
    )
    assert [result.states[2] for result in results] == ["refused"] * 3
    assert "do not lead to the root hash" in results[0].told
    assert not any(result.forked for result in results)


def test_lie_tiles_and_bundles_of_a_wrong_size(grown: Driver, viewer: Browser) -> None:
    page = case(grown, viewer, "/console/ledger?at=3")
    tile, bundle = f"ledger/{tile_path(0, 0)}", f"ledger/{tile_path('entries', 0)}"
    lies = {
        "has 8160 bytes, expected 8192": {tile: page.files[tile][:-32]},
        "breaks off": {bundle: page.files[bundle][:-1]},
        "more entries than the ledger": {bundle: page.files[bundle] + b"\0\1x"},
    }
    for told, result in zip(lies, refused(*(page.but(files=files) for files in lies.values())), strict=True):
        assert told in result.told


def test_lie_a_shorter_ledger(grown: Driver, viewer: Browser) -> None:
    honest, shorter = case(grown, viewer), forged_files(authority(grown), bodies(grown)[:-1])
    [result] = refused(honest.but(files=shorter))
    size = len(bodies(grown))
    assert result.told == f"entry {size} is shown, and the registry signs a ledger of {size - 1} entries"


def other_history(driver: Driver, size: int) -> list[bytes]:
    """Entries of another ledger: they differ from the third one on."""
    texts = bodies(driver)[:2]
    return [*texts, *(Entry(seq, 1, "noted", data={"other": True}).encode() for seq in range(3, size + 1))]


def showing(before: Case, driver: Driver, texts: Sequence[bytes]) -> Case:
    """A registry that shows the newest entry of that ledger, which it signs."""
    shown = [{"seq": len(texts), "cells": {}, "body": texts[-1].decode()}]
    return before.but(files=forged_files(authority(driver), texts), shown=shown)


def test_lie_another_history_than_this_browser_saw(grown: Driver, viewer: Browser) -> None:
    before = case(grown, viewer)
    [seen] = check(before)
    lies = {0: "another ledger of", 7: "are others than this browser saw", -7: "entries, and this browser saw"}
    forks = [showing(before, grown, other_history(grown, len(bodies(grown)) + change)) for change in lies]
    assert {result.state for result in check(*forks)} == {"proved"}  # a browser that saw nothing cannot know
    results = refused(*(fork.but(remembered=seen.remember) for fork in forks))
    for told, result in zip(lies.values(), results, strict=True):
        assert result.states == ["proved", "proved", "proved", "refused"]
        assert told in result.told
        assert result.forked
        assert result.remember is None


def test_lie_another_history_with_the_tiles_of_the_one_that_this_browser_saw(grown: Driver, viewer: Browser) -> None:
    before, size = case(grown, viewer), len(bodies(grown)) + 7
    [seen] = check(before)
    texts = bodies(grown)
    more = [Entry(seq, 1, "noted").encode() for seq in range(len(texts) + 1, size + 1)]
    fork = showing(before, grown, other_history(grown, size))
    files = {**forged_files(authority(grown), [*texts, *more]), NOTE: fork.files[NOTE]}
    [result] = refused(fork.but(files=files, remembered=seen.remember))
    assert result.states[3] == "refused"
    assert "do not lead to the root hash" in result.steps[3]["text"]
    assert result.remember is None


def test_lie_a_ledger_that_was_rolled_back(grown: Driver, viewer: Browser) -> None:
    before, size = case(grown, viewer), len(bodies(grown))
    [seen] = check(before)
    [result] = refused(showing(before, grown, bodies(grown)[:-5]).but(remembered=seen.remember))
    assert result.told == f"the registry shows {size - 5} entries, and this browser saw {size}"
    assert result.forked
    assert result.remember is None


def test_lie_an_entry_of_another_position(grown: Driver, viewer: Browser) -> None:
    third, fourth = (case(grown, viewer, f"/console/ledger/{seq}") for seq in (3, 4))
    moved = {**third.shown[0], "seq": 4}
    renumbered = {**moved, "body": third.shown[0]["body"].replace('"seq":3', '"seq":4'), "cells": {}}
    swapped = bodies(grown)
    swapped[2], swapped[3] = swapped[3], swapped[2]
    files = forged_files(authority(grown), swapped)
    signed = fourth.but(files=files, shown=[{"seq": 4, "cells": {}}])
    results = refused(fourth.but(shown=[moved]), fourth.but(shown=[renumbered]), signed)
    assert [result.told for result in results] == [
        "entry 4 is not the one in the ledger",
        "entry 4 is not the one in the ledger",
        "entry 3 is shown in the place of entry 4",
    ]


def test_lie_a_signed_leaf_that_is_no_entry(grown: Driver) -> None:
    rest = '"evidence":null,"kid":null,"seq":1,"service":null,"time":1,"type":"a"}'
    lies = {
        '{"seq":1}': "has other members",
        f'{{"by":{{}},"data":{{}}, {rest}': "canonical",
        f'{{"by":{{}},"data":{{}},"data":{{}},{rest}': "canonical",
        f'{{"data":{{}},"by":{{}},{rest}': "canonical",
        "[]": "canonical",
        "\ufeff{}": "not JSON",
        "": "not JSON",
    }
    empty = Case({}, [], grown.pin, grown.clock())
    results = refused(*(showing(empty, grown, [body.encode()]) for body in lies))
    for told, result in zip(lies.values(), results, strict=True):
        assert told in result.told


# ---- neither proved nor contradicted


def test_without_the_means_nothing_is_proved_and_nothing_is_red(grown: Driver, viewer: Browser) -> None:
    honest = case(grown, viewer)
    cases = {
        "Ed25519": honest.but(webcrypto="no Ed25519"),
        "https": honest.but(webcrypto="none"),
        "404 for .well-known": replace(honest, files={}),
        "404 for ledger/tile": replace(honest, files={path: honest.files[path] for path in (DOCUMENT, NOTE)}),
        "shows no entry": honest.but(shown=[]),
    }
    results = check(*cases.values())
    for told, result in zip(cases, results, strict=True):
        assert (result.state, "refused" in result.states) == ("unverified", False)
        assert told in result.told
    assert results[0].states == ["proved", "unverified", "unverified", "unverified"]


def test_a_wrong_pin_is_red(grown: Driver, viewer: Browser) -> None:
    honest = case(grown, viewer)
    malformed, other = ("", "x", "A" * 42 + "="), "A" * 43
    results = refused(*(honest.but(pin=pin) for pin in (*malformed, other)))
    assert {result.told for result in results[:-1]} == {"the pin is not a thumbprint of 43 characters"}
    assert results[-1].told == f"the root key is {grown.pin}, and the pin is {other}"
