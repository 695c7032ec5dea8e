"""``peerseal evidence verify``: what the evidence of a split view proves, offline."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.errors import ConfigurationError, DocumentRefused, MalformedToken
from peerseal.identity.environment import settings_of
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.protocol.ledger.split_view import MAX_EVIDENCE, Evidence, Verdict
from peerseal.runtime.files import read_file
from peerseal.runtime.options import check_pin
from peerseal.runtime.settings import named
from peerseal.runtime.terminal import say_folded, say_json

NOT_PROVEN: Final = 1
"""The exit code where the file proves no split view."""


def add_evidence(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "evidence",
        _verify,
        summary="check the evidence of a ledger with two histories",
        description="Says whether FILE proves that the key of a domain's ledger signed two histories. It asks no"
        " registry. The ledger's key is given by --ledger-key, or is in the file, under the root key with the"
        " thumbprint PIN.",
        examples=(
            "peerseal evidence verify split-view.json --pin PIN",
            "peerseal evidence verify split-view.json --json --ledger-key VKEY",
        ),
        exit_codes="0 a split view is proven; 1 it is not, or the file cannot be read; 2 wrong usage or settings",
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


def _ledger_key(text: str) -> NoteKey:
    """An argument that is a ledger's key. Raises argparse.ArgumentTypeError."""
    try:
        return NoteKey.parse(text, LOG_KEY)
    except MalformedToken as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _verify(arguments: argparse.Namespace) -> int:
    """Prints the verdict. Raises ConfigurationError where there is no key to verify with, or no file."""
    pin = _pin(arguments)
    try:
        evidence = Evidence.decode(read_file(arguments.file, MAX_EVIDENCE + 1, tightens=False))
        verdict, root = _verdict(evidence, arguments.keys, pin)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{arguments.file}: there is no such file") from error
    except DocumentRefused as error:
        return _say(arguments, Verdict(False, error.code, str(error)), None)
    if root is None and evidence.statements:
        loss = f"{len(evidence.statements)} statements of the root about lost entries were not read: give --pin"
        verdict = Verdict(verdict.proven, verdict.code, f"{verdict.detail}; {loss}")
    return _say(arguments, verdict, evidence)


def _pin(arguments: argparse.Namespace) -> str | None:
    if arguments.pin is not None:
        return named("--pin", check_pin, arguments.pin)
    pin = settings_of(os.environ).checked("PEERSEAL_REGISTRY_PIN", check_pin)
    if pin is None and not arguments.keys:
        raise ConfigurationError("neither --pin nor --ledger-key is given: expected one, got from a source you trust")
    return pin


def _verdict(evidence: Evidence, keys: list[NoteKey], pin: str | None) -> tuple[Verdict, RegistryKeys | None]:
    """The verdict, and the document of the root that was used. Raises DocumentRefused."""
    root = None if pin is None or (keys and evidence.registry_keys is None) else evidence.keys_under(pin)
    given = [{"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public)} for key in keys if key.name == evidence.domain]
    named_by_root = root.ledger_keys if root is not None and not keys else ()
    return evidence.verdict((*given, *named_by_root), root), root


def _say(arguments: argparse.Namespace, verdict: Verdict, evidence: Evidence | None) -> int:
    if arguments.as_json:
        told = {} if evidence is None else {"domain": evidence.domain, "seen": [one.to_json() for one in evidence.seen]}
        say_json({**asdict(verdict), **told})
    else:
        say_folded(f"{'PROVEN' if verdict.proven else 'NOT PROVEN'} ({verdict.code}): {verdict.detail}")
        for one in () if evidence is None else evidence.seen:
            say_folded(f"note {one.note} told by {one.source} at {one.at} (not signed)")
    return 0 if verdict.proven else NOT_PROVEN
