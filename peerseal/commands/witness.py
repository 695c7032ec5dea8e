"""``peerseal witness``: cosigns the checkpoints of transparency logs, such as a registry's ledger."""

import argparse
import time
from pathlib import Path
from typing import Final

from peerseal.audit.witness import Witness, read_log_key
from peerseal.audit.witness_server import witnessing
from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.registry_options import add_registry_options, registry_of, until_interrupted
from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.ledger.checkpoint import ledger_public_key
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.runtime.terminal import say, say_json
from peerseal.transport.fetch import content, no_larger_than

_ADDRESS: Final = "127.0.0.1:8095"


def add_witness(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "witness",
        _witness,
        summary="cosign the checkpoints of transparency logs",
        description="Serves a witness (https://c2sp.org/tlog-witness): POST /add-checkpoint cosigns a log's checkpoint"
        " once the log has proven that it continues the one which was cosigned before. FOLDER holds the witness' key,"
        " which is made at the first start, and the newest checkpoint of each log. GET /healthz and /metrics tell of"
        " its state. --registry witnesses the ledger of a registry, whose keys it reads once, at the start.",
        examples=(
            "peerseal witness /var/lib/witness --name witness.example \\\n"
            "    --log acme.internal+9dcbd8c3+ASunbZFqDDEu/WDeHTgZmrDG1/ouQYYCHzXJ6YYt7uXL",
            "peerseal witness /var/lib/witness --name witness.example \\\n"
            "    --registry https://registry:8443 --pin PIN --listen 0.0.0.0:8095 --json",
        ),
        exit_codes="0 interrupted; 1 another error, such as a full disk; 2 wrong usage or settings; 3 the registry of"
        " --registry cannot be reached",
        as_json="print a JSON object at the start and for each submission",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--name", required=True, help="the witness' name, such as witness.example")
    parser.add_argument(
        "--log",
        dest="logs",
        type=_log,
        action="append",
        default=[],
        metavar="VKEY",
        help="a log's key, NAME+ID+KEY; once for each key of each log",
    )
    add_registry_options(parser)
    parser.add_argument("--listen", default=_ADDRESS, metavar="HOST:PORT", help=f"where to serve [{_ADDRESS}]")


def _log(text: str) -> NoteKey:
    """An argument that is a log's key. Raises argparse.ArgumentTypeError."""
    try:
        return read_log_key(text)
    except MalformedToken as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _witness(arguments: argparse.Namespace) -> int:
    """Serves until it is interrupted. Raises ConfigurationError, FetchError or DocumentRefused."""
    ended = until_interrupted()
    reads = arguments.registry is not None or not arguments.logs
    logs = [*arguments.logs, *(_ledger_keys(arguments) if reads else [])]
    try:
        witness = Witness(arguments.folder, arguments.name, logs)
    except MalformedToken as error:
        raise ConfigurationError(f"--name: {error}") from error
    tell = say_json if arguments.as_json else _say
    with witnessing(witness, arguments.listen, tell) as port:
        if arguments.as_json:
            say_json({"key": str(witness.key), "port": port, "logs": sorted({log.name for log in logs})})
        else:
            say(f"key: {witness.key}", f"serving at port {port}")
        ended.wait()
    return 0


def _ledger_keys(arguments: argparse.Namespace) -> list[NoteKey]:
    """The keys of a registry's ledger, from the document that its pinned root signed. Raises ConfigurationError,
    FetchError or DocumentRefused."""
    fetcher, pin = registry_of(arguments)
    with no_larger_than(RegistryKeys.MAX_SIZE):
        jws = content(fetcher.call("GET", REGISTRY_KEYS_PATH)).decode("ascii", "replace")
    keys = read_registry_keys(jws, pin=pin, now=time.time())
    return [NoteKey.of(keys.subject, LOG_KEY, ledger_public_key(jwk)) for jwk in keys.ledger_keys]


def _say(told: dict[str, object]) -> None:
    say(f"{told['status']} {told.get('reason') or told['cosignature']}")
