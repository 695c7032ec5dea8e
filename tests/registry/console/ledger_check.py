"""The check of `static/verify.js`, run by Node.js on what a page shows and on public files, real or forged."""

import json
import subprocess
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import registry.console
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, TILE_WIDTH, encode_bundle, tile_path, tile_root
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from registry.services.authority.authority import Authority
from tests.registry.driver import DOMAIN, Driver

SCRIPT = Path(registry.console.__file__).parent / "static" / "verify.js"
RUNNER = """
const { script, cases } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const { subtle } = globalThis.crypto;

async function run({ files, webcrypto, ...given }, { verify, NotVerified }) {
  const lacking = Object.assign(Object.create(subtle), {
    digest: (...values) => subtle.digest(...values),
    verify: (...values) => subtle.verify(...values),
    importKey: async (form, key, algorithm, ...rest) => {
      if (algorithm.name === "Ed25519") throw new DOMException("no", "NotSupportedError");
      return subtle.importKey(form, key, algorithm, ...rest);
    },
  });
  const offered = { all: subtle, "no Ed25519": lacking, none: undefined }[webcrypto];
  Object.defineProperty(globalThis, "crypto", { value: { subtle: offered }, configurable: true });
  const read = async (path) => {
    if (!(path in files)) throw new NotVerified(`404 for ${path}`);
    return new Uint8Array(Buffer.from(files[path], "base64"));
  };
  return verify({ read, ...given });
}

(async () => {
  const module = await import(script);
  const results = [];
  for (const each of cases) results.push(await run(each, module));
  process.stdout.write(JSON.stringify(results));
})();
"""

Files = Mapping[str, bytes]
"""Public files of a registry by their paths, without the first slash."""


@dataclass(frozen=True)
class Case:
    """What a browser knows, and what the registry shows it. ``webcrypto`` is what the browser offers."""

    files: Files
    shown: Sequence[Mapping[str, Any]]
    pin: str
    now: float
    remembered: Mapping[str, Any] | None = None
    domain: str = DOMAIN
    webcrypto: str = "all"

    def but(self, **changes: Any) -> "Case":
        """The same with other values. ``files`` are those that differ."""
        return replace(self, **{**changes, "files": {**self.files, **changes.get("files", {})}})

    def given(self) -> dict[str, Any]:
        """What the runner takes."""
        files = {path: b64encode(content).decode() for path, content in self.files.items()}
        return {**vars(self), "files": files, "webcrypto": self.webcrypto}


@dataclass(frozen=True)
class Result:
    """What the check found: the state of all, its steps, whether the checkpoint contradicts the one that is remembered,
    and the checkpoint to remember, if one was proved."""

    state: str
    steps: Sequence[Mapping[str, str]]
    forked: bool
    remember: Mapping[str, Any] | None

    @property
    def states(self) -> list[str]:
        """The states of the four steps."""
        return [step["state"] for step in self.steps]

    @property
    def told(self) -> str:
        """What the first step that is not proved told."""
        return next(step["text"] for step in self.steps if step["state"] != "proved")


def check(*cases: Case) -> list[Result]:
    """What the script finds, case by case."""
    with TemporaryDirectory() as folder:
        script = Path(folder) / "verify.mjs"  # a name by which every Node.js takes it for a module
        copyfile(SCRIPT, script)
        given = json.dumps({"script": str(script), "cases": [case.given() for case in cases]})
        command = ["node", "--eval", RUNNER]
        run = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", timeout=120)
    assert run.returncode == 0, run.stderr
    return [Result(one["state"], one["steps"], one["forked"], one["remember"]) for one in json.loads(run.stdout)]


# ---- public files


def public_files(driver: Driver) -> dict[str, bytes]:
    """All that the registry serves about its ledger, over HTTP."""
    note = driver.client.get(CHECKPOINT_PATH).data
    size = int(note.split(b"\n")[1])
    paths = [*_tile_paths(size), *(tile_path("entries", *place) for place in _places(size))]
    found = {f"ledger/{path}": driver.client.get(f"/ledger/{path}").data for path in paths}
    document = driver.client.get(REGISTRY_KEYS_PATH).data
    return {**found, CHECKPOINT_PATH[1:]: note, REGISTRY_KEYS_PATH[1:]: document}


def forged_files(authority: Authority, bodies: Sequence[bytes]) -> dict[str, bytes]:
    """The files of another ledger with these entries, signed by the registry's own keys."""
    edge, row, found = Frontier(), [leaf_hash(body) for body in bodies], dict[str, bytes]()
    for leaf in row:
        edge = edge.appended(leaf)
    for number, width in _places(len(bodies)):
        bundle = encode_bundle(bodies[number * TILE_WIDTH :][:width])
        found[f"ledger/{tile_path('entries', number, width)}"] = bundle
    for level in range(8):
        tiles = [b"".join(row[number * TILE_WIDTH :][:width]) for number, width in _places(len(row))]
        for (number, width), tile in zip(_places(len(row)), tiles, strict=True):
            found[f"ledger/{tile_path(level, number, width)}"] = tile
        row = [tile_root(tile) for tile in tiles if len(tile) == 32 * TILE_WIDTH]
    note, document = authority.checkpoint(edge), authority.jws
    return {**found, CHECKPOINT_PATH[1:]: note.encode(), REGISTRY_KEYS_PATH[1:]: document.encode()}


def _tile_paths(size: int) -> Iterator[str]:
    level = 0
    while size:
        yield from (tile_path(level, *place) for place in _places(size))
        level, size = level + 1, size // TILE_WIDTH


def _places(size: int) -> list[tuple[int, int]]:
    """The number and the width of each tile of a level with so many hashes."""
    return [(first // TILE_WIDTH, min(TILE_WIDTH, size - first)) for first in range(0, size, TILE_WIDTH)]


# ---- pages


def shown_on(page: str) -> list[dict[str, Any]]:
    """What `static/ledger.js` reads from a page of the ledger."""
    reader = _Shown()
    reader.feed(page)
    return [{**entry, **reader.texts} for entry in reader.entries]


class _Shown(HTMLParser):
    """Collects what elements with ``data-member`` hold, below those with ``data-seq``, and the whole texts."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, Any]] = []
        self.texts: dict[str, str] = {}
        self._into: tuple[dict[str, str], str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        found = {name: value or "" for name, value in attrs}
        if "data-seq" in found:
            self.entries.append({"seq": int(found["data-seq"]), "cells": {}})
        if "data-member" in found:
            self._into = self.entries[-1]["cells"], found["data-member"], tag
        elif found.get("id") in ("entry-body", "entry-evidence"):
            self._into = self.texts, found["id"].removeprefix("entry-"), tag
        elif self._into and "datetime" in found:
            self._put(found["datetime"])
            self._into = None  # the text of a time is for people

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if self._into:
            self._put(data)

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        if self._into and tag == self._into[2]:
            self._into = None

    def _put(self, text: str) -> None:
        values, name, _ = self._into or ({}, "", "")
        values[name] = values.get(name, "") + text
