"""What ``peerseal inspect`` says in sentences: of checkpoints, of the evidence of a split view, and of the tokens and
documents whose claims are hard to read. Nothing is verified."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from peerseal.audit.entry_words import terms_in_words
from peerseal.errors import PeersealError
from peerseal.protocol.documents.federation import Federation, FederationDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger.cosignature import Note, SignatureLine
from peerseal.protocol.ledger.split_view import Evidence, decode_cp
from peerseal.protocol.tokens.claims import LATEST_TIME, claim
from peerseal.protocol.tokens.response import ALWAYS_SIGNED, RESPONSE_TYP, check_response_claims
from peerseal.runtime.times import utc

_COSIGNATURE: Final = 8 + 64
"""Bytes of a witness' signature: its time, and an Ed25519 signature."""


def of_jws(typ: str | None, claims: dict[str, Any]) -> Iterator[str]:
    """The sentences about a token or document; none about most kinds, whose claims say it all."""
    of_kind = _KINDS.get(typ)
    if of_kind is not None:
        yield from _read(of_kind, claims)
    if "cp" in claims:
        yield "The sender believes this checkpoint:"
        yield from _read(lambda cp: of_note(decode_cp(cp)), claims["cp"])
    if "checkpoint" in claims:
        yield "The registry signed it at this checkpoint:"
        yield from _read(of_note, claims["checkpoint"])


def of_note(note: str) -> Iterator[str]:
    """The sentences about a checkpoint. Raises DocumentRefused for a text that is none."""
    parsed = Note.parse(note)
    head = parsed.claimed
    size = _counted(head.size, "entry", "entries")
    yield f"The ledger of {head.origin} with {size} has the root hash {b64url(head.root)}."
    yield from map(_signed, parsed.signatures)


def note_to_json(note: str) -> dict[str, Any]:
    """``{"origin", "size", "root", "signatures"}``. Raises DocumentRefused for a text that is no checkpoint."""
    parsed = Note.parse(note)
    head = parsed.claimed
    lines = [{"name": line.name, "key_id": line.key_id.hex(), "time": _time_of(line)} for line in parsed.signatures]
    return {"origin": head.origin, "size": head.size, "root": b64url(head.root), "signatures": lines}


def of_evidence(evidence: Evidence) -> Iterator[str]:
    """The sentences about a file of evidence."""
    yield f"The file says that the ledger of {evidence.domain} has two histories."
    for number, note in enumerate(evidence.notes):
        yield f"Note {number}:"
        yield from _read(of_note, note)
        yield from (f"{one.source} told of it at {_when(one.at)}." for one in evidence.seen if one.note == number)
    if evidence.fork is not None:
        root, path = b64url(evidence.fork.root), _counted(len(evidence.fork.path), "hash", "hashes")
        yield f"The larger tree is said to have the root hash {root} at the smaller size, with a proof of {path}."
    if evidence.statements:
        count = _counted(len(evidence.statements), "statement", "statements")
        yield f"The file has {count} about lost entries, by the root key."
    key = "--ledger-key VKEY" if evidence.registry_keys is None else "--pin PIN"
    yield f"To see what it proves: peerseal evidence verify FILE {key}"


def _response(claims: dict[str, Any]) -> Iterator[str]:
    check_response_claims(claims)
    headers = claims["headers"]
    yield f"{claims['iss']} answers {claims['aud']} with the status {claims['status']}."
    yield f"The answer is to the one request whose token has the SHA-256 {claims['req']}."
    yield from (f"It has the header {name}: {value}" for name, value in sorted(headers.items()))
    absent = [name for name in ALWAYS_SIGNED if name not in headers]
    if absent:
        yield f"It has no {_listed(absent, 'or')}."


def _federation(claims: dict[str, Any]) -> Iterator[str]:
    own = claim(claims, "sub", str)
    domains = Federation.from_json({"domains": claim(claims, "domains", list)}, own).domains
    count = _counted(len(domains), "registry", "registries") if domains else "no registry"
    yield f"Services of {own} believe {count} of other trust domains."
    for each in domains:
        yield f"{each.domain} at {_listed(each.urls, 'or')}, with the root key {each.root}: {terms_in_words(each)}."


def _registry_keys(claims: dict[str, Any]) -> Iterator[str]:
    keys = RegistryKeys.from_claims(claims)
    signing = _counted(len(keys.signing_keys), "key signs", "keys sign")
    ledger = _counted(len(keys.ledger_keys), "key", "keys")
    yield f"Version {keys.version} of the keys of {keys.issuer}, at {_listed(keys.urls, 'or') or 'no URL'}."
    yield f"The pin of the root key is {keys.root.thumbprint}."
    yield f"{signing} documents; checkpoints are signed by {ledger} of the ledger."
    quorum = keys.witnesses
    if quorum is None:
        yield "No witness has to cosign a checkpoint."
    else:
        names = _listed([key.name for key in quorum.witnesses], "and")
        yield f"Of the witnesses {names}, {quorum.needed} must have cosigned what a client believes."


_KINDS: Final[Mapping[str | None, Callable[[dict[str, Any]], Iterator[str]]]] = {
    RESPONSE_TYP: _response,
    FederationDocument.TYP: _federation,
    RegistryKeys.TYP: _registry_keys,
}


def _read(sentences: Callable[[Any], Iterator[str]], value: Any) -> list[str]:
    """The sentences about the value; where it is none of its kind, the one that says why."""
    try:
        return list(sentences(value))
    except PeersealError as error:
        return [f"It cannot be read: {error}"]


def _signed(line: SignatureLine) -> str:
    at = _time_of(line)
    did = "signed it" if at is None else f"cosigned it at {_when(at)}"
    return f"{line.name} {did} (key id {line.key_id.hex()})."


def _time_of(line: SignatureLine) -> int | None:
    """When a witness signed, in seconds since the epoch; None for a line of the log itself."""
    return int.from_bytes(line.value[:-64], "big") if len(line.value) == _COSIGNATURE else None


def _when(seconds: int) -> str:
    return utc(seconds) if 0 <= seconds <= LATEST_TIME else f"{seconds} seconds after 1970"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _listed(names: Sequence[str], last: str) -> str:
    """``a, b and c``."""
    *first, end = names or ("",)
    return f"{', '.join(first)} {last} {end}" if first else end
