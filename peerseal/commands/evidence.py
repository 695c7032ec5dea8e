"""``peerseal evidence verify``: what the evidence of a split view proves, offline or as the registry says now."""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, MalformedToken
from peerseal.identity.environment import settings_of
from peerseal.protocol.documents.history_statement import MAX_HISTORY_BYTES
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.protocol.ledger.split_view import MAX_EVIDENCE, Evidence, Jwks, Verdict
from peerseal.runtime.files import read_file
from peerseal.runtime.options import check_pin
from peerseal.runtime.settings import named
from peerseal.runtime.terminal import printable, say_folded, say_json
from peerseal.transport.fetch import HttpFetcher, check_urls, content, no_larger_than
from peerseal.trust.replaced_ledger import PATH as HISTORY_PATH
from peerseal.trust.replaced_ledger import statements_in

T = TypeVar("T")

NOT_PROVEN: Final = 1
"""The exit code where the file proves no split view."""
DROPPED: Final = "dropped_key"
"""The code of a verdict: the root names a key no more that signed the notes."""


def add_evidence(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "evidence",
        _verify,
        summary="check the evidence of a ledger with two histories",
        description="Says whether FILE proves that the key of a domain's ledger signed two histories, and what that"
        " rests on. The ledger's key is given by --ledger-key, or is in the file, under the root key with the"
        " thumbprint PIN. The file may be old, or leave out what explains it: with --registry the keys and statements"
        " of the root count that the registry serves now. Without it no registry is asked.",
        examples=(
            "peerseal evidence verify split-view.json --pin PIN --registry URL",
            "peerseal evidence verify split-view.json --json --ledger-key VKEY",
        ),
        exit_codes="0 a split view is proven, without --registry by the file alone; 1 it is not, or the file cannot be"
        " read; 2 wrong usage or settings; 3 the registry cannot be reached",
        as_json="print one JSON object",
    )
    parser.add_argument("action", choices=("verify",), help="what to do with the file")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--pin", help="thumbprint of the registry's root key [PEERSEAL_REGISTRY_PIN]")
    parser.add_argument(
        "--ledger-key",
        dest="keys",
        type=_ledger_key,
        action="append",
        default=[],
        metavar="VKEY",
        help="a key of the ledger, NAME+ID+KEY; once for each key",
    )
    now = parser.add_mutually_exclusive_group()
    now.add_argument("--registry", metavar="URL", help="the registry to ask for the root's documents of today")
    now.add_argument(
        "--registry-files",
        nargs=2,
        type=Path,
        metavar=("KEYS", "HISTORY"),
        help=f"files with its answers to {REGISTRY_KEYS_PATH} and {HISTORY_PATH}, the latter empty for a 404",
    )


def _ledger_key(text: str) -> NoteKey:
    """An argument that is a ledger's key. Raises argparse.ArgumentTypeError."""
    try:
        return NoteKey.parse(text, LOG_KEY)
    except MalformedToken as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _verify(arguments: argparse.Namespace) -> int:
    """Prints the verdict. Raises ConfigurationError where there is no key to verify with, or no file, and FetchError
    where the registry does not answer."""
    pin = _pin(arguments)
    try:
        evidence = Evidence.decode(_content(arguments.file, MAX_EVIDENCE))
        _check_names(arguments.keys, evidence.domain)
        judged = _judged(evidence, arguments.keys, pin, _present(arguments, pin, evidence.domain))
    except DocumentRefused as error:
        return _say(arguments, _Judged(Verdict(False, error.code, error.detail), ()), None)
    return _say(arguments, judged, evidence)


def _pin(arguments: argparse.Namespace) -> str | None:
    given = None if arguments.pin is None else named("--pin", check_pin, arguments.pin)
    pin = given or settings_of(os.environ).checked("PEERSEAL_REGISTRY_PIN", check_pin)
    asks = arguments.registry is not None or arguments.registry_files is not None
    if pin is None and (asks or not arguments.keys):
        missing = "--pin is not" if asks else "neither --pin nor --ledger-key is"
        raise ConfigurationError(f"{missing} given: expected, got from a source you trust")
    return pin


def _check_names(keys: list[NoteKey], domain: str) -> None:
    """Passes keys of the domain's ledger. Raises ConfigurationError."""
    for key in keys:
        if key.name != domain:
            raise ConfigurationError(f"--ledger-key is of {printable(key.name)}, the file is of {printable(domain)}")


def _content(path: Path, limit: int) -> bytes:
    """The bytes of a file, one more than the limit at most. Raises ConfigurationError."""
    try:
        return read_file(path, limit + 1, tightens=False)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: there is no such file") from error


class _Present(NamedTuple):
    """What the registry says now: the root's document, and its statements about lost entries."""

    root: RegistryKeys
    statements: tuple[str, ...]


class _Judged(NamedTuple):
    """The verdict, and what it rests on, in sentences and as JSON."""

    verdict: Verdict
    rests_on: tuple[str, ...]
    as_json: Mapping[str, Any] = MappingProxyType({})


def _present(arguments: argparse.Namespace, pin: str | None, domain: str) -> _Present | None:
    """What the registry at ``--registry`` answers, or the files hold that it answered with; None without either.
    Raises FetchError, DocumentRefused or ConfigurationError."""
    if arguments.registry is not None:
        urls = named("--registry", check_urls, arguments.registry)
        fetcher = HttpFetcher([url.strip() for url in urls.split(",") if url.strip()])
        root = _fetched(fetcher, REGISTRY_KEYS_PATH, RegistryKeys.MAX_SIZE, lambda body: _root(body, pin, domain))
        try:
            return _Present(root, tuple(_fetched(fetcher, HISTORY_PATH, MAX_HISTORY_BYTES, statements_in)))
        except FetchError as error:
            if error.http_status != 404 or error.by_mirror:
                raise
            return _Present(root, ())  # it serves none
    if arguments.registry_files is None:
        return None
    keys, history = arguments.registry_files
    document, answered = _content(keys, RegistryKeys.MAX_SIZE), _content(history, MAX_HISTORY_BYTES)
    try:
        return _Present(_root(document, pin, domain), tuple(statements_in(answered)) if answered else ())
    except DocumentRefused as error:
        raise ConfigurationError(f"--registry-files do not count ({error.code}): {error.detail}") from error


def _fetched(fetcher: HttpFetcher, path: str, limit: int, read: Callable[[bytes], T]) -> T:
    try:
        with no_larger_than(limit):
            found = fetcher.ask(path, lambda answer: read(content(answer)))
    except DocumentRefused as error:
        raise FetchError(f"the registry's answer to {path} does not count ({error.code}): {error.detail}") from error
    if found is None:
        raise AssertionError("unreachable: no answer says that there is nothing new")
    return found


def _root(body: bytes, pin: str | None, domain: str) -> RegistryKeys:
    """The root's document that is in force now. Raises DocumentRefused."""
    root = read_registry_keys(body.decode("ascii", "replace").strip(), pin=pin, now=time.time())
    if root.subject != domain:
        raise DocumentRefused("document_wrong_subject", f"the registry is of {root.subject}, the file of {domain}")
    return root


def _judged(evidence: Evidence, keys: list[NoteKey], pin: str | None, present: _Present | None) -> _Judged:
    """The verdict. Raises DocumentRefused."""
    in_file = None if pin is None or evidence.registry_keys is None else evidence.keys_under(pin)
    newest = max((root for root in (present and present.root, in_file) if root), key=_age, default=None)
    served = () if present is None else present.statements
    judged = replace(evidence, statements=(*evidence.statements, *served))
    given = tuple({"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public)} for key in keys)
    verdict = _by_given_keys(judged, given, newest) if given else None
    if verdict is None or present is not None:
        verdict = _by_the_root(judged, given or (in_file.ledger_keys if in_file is not None else ()), newest)
    return _Judged(verdict, *_basis(evidence, bool(given), newest, present))


def _age(root: RegistryKeys) -> tuple[int, int]:
    return root.version, root.issued_at


def _by_given_keys(evidence: Evidence, given: Jwks, root: RegistryKeys | None) -> Verdict:
    """What the notes prove, signed by the ``given`` keys. Raises DocumentRefused."""
    try:
        return evidence.verdict(given, root)
    except DocumentRefused as error:
        if error.code != "document_unknown_signer":
            raise
        raise DocumentRefused(error.code, "a key that --ledger-key does not name signed a note") from error


def _by_the_root(evidence: Evidence, earlier: Jwks, newest: RegistryKeys | None) -> Verdict:
    """What the notes prove, signed by keys that the newest document of the root names. ``earlier`` are keys that it may
    have dropped. Raises DocumentRefused."""
    if newest is None:
        raise DocumentRefused(
            "document_unknown_signer", "the file holds no registry_keys: give --ledger-key or --registry"
        )
    try:
        return evidence.verdict(newest.ledger_keys, newest)
    except DocumentRefused as error:
        if error.code != "document_unknown_signer":
            raise
        evidence.verdict(earlier)
        named = f"version {newest.version} of {_day(newest.issued_at)}"
        return Verdict(False, DROPPED, f"the root has dropped a key that signed the notes: its {named} lacks it")


def _basis(
    evidence: Evidence, is_given: bool, root: RegistryKeys | None, present: _Present | None
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """What the verdict rests on, in sentences and as JSON."""
    source = "file" if present is None or root is not present.root else "registry"
    if is_given or root is None:
        keys = "the ledger's key that --ledger-key names"
    else:
        keys = f"the ledger's keys as of {_day(root.issued_at)}, version {root.version}, from the {source}"
    count = len({*evidence.statements, *(() if present is None else present.statements)})
    known = f"{count or 'no'} statement{'' if count == 1 else 's'} of the root about lost entries"
    where = "in the file" if present is None else "in the file and in the registry's answer"
    read = ", which were not read: give --pin" if root is None and count else ""
    sentences = [f"It rests on {keys}; and on {known} {where}{read}."]
    if present is None:
        sentences.append(
            "The registry was not asked: the root may have dropped that key since, or declared entries lost that"
            " explain it. --registry URL, with --pin, asks."
        )
    told = None if root is None else {"from": source, "version": root.version, "signed_at": root.issued_at}
    statements = {"file": len(evidence.statements), "registry": None if present is None else len(present.statements)}
    return tuple(sentences), {"ledger_key_given": is_given, "registry_keys": told, "statements": statements}


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _say(arguments: argparse.Namespace, judged: _Judged, evidence: Evidence | None) -> int:
    verdict = judged.verdict
    if arguments.as_json:
        told: dict[str, Any] = {}
        if evidence is not None:
            told = {"domain": evidence.domain, "seen": [one.to_json() for one in evidence.seen]}
            told |= {"rests_on": dict(judged.as_json)}
        say_json({**asdict(verdict), **told})
    else:
        say_folded(f"{'PROVEN' if verdict.proven else 'NOT PROVEN'} ({verdict.code}): {verdict.detail}")
        for sentence in judged.rests_on:
            say_folded(sentence)
        for one in () if evidence is None else evidence.seen:
            say_folded(f"note {one.note} told by {one.source} at {one.at} (not signed)")
    return 0 if verdict.proven else NOT_PROVEN
