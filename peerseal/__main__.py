"""``peerseal``, also as ``python -m peerseal``: the commands for the owner of a service.

``peerseal assertion`` proves to the registry's token endpoint which service asks, for programs without the SDK. The
service is the environment's, as for `peerseal.Identity.from_env`; its key is made and registered on first use, and
stays registered: ``PEERSEAL_KEY_DIR`` says where. Each call also replaces the key where that is due, so that a call in
each key's life (a week) needs no second join token. ``peerseal sign`` does the same, and prints the header of one
request; ``peerseal call`` makes the request, and prints the answer. ``peerseal inspect`` decodes a token or document,
and verifies nothing; ``peerseal verify`` shows each step of verifying it. ``peerseal monitor SERVICE`` reports changes
in the registry's ledger that the service's owner did not make. ``peerseal mirror FOLDER`` keeps a verified copy of all
that the registry publishes, for any web server; ``peerseal keep-ledger FOLDER`` one of the ledger alone, for the day on
which the registry's database is lost. ``peerseal witness FOLDER`` cosigns the checkpoints of that ledger, or of another
log. ``peerseal evidence verify FILE`` says whether a file proves that the ledger has two histories. ``peerseal agent``
signs and verifies for programs without the SDK.

``peerseal join``, ``whoami``, ``rotate`` and ``retire`` are for the keys of this host; ``peerseal keygen`` makes a key
pair in a file, and ``peerseal completion`` a script for a shell. ``peerseal doctor`` says what is wrong with the
settings, folders, clock and registry of this host.

Each command is a function that adds its arguments to a parser, and one that does the work and returns the exit code.
Exit codes: 0 done, nothing to report, or the mirror is as new as the registry; 1 alerts were raised, or another error;
2 wrong usage; 3 the registry cannot be reached; 130 after Ctrl-C; 141 when the reader of the output is gone. They mean
the same for every command. Other codes belong to single commands: 4 of ``monitor``, ``mirror`` and ``keep-ledger``, the
ledger contradicts what was seen before, and of the latter two, the registry is another one; 4 and 5 of ``call``, the
answer has a status 4xx or 5xx, as for ``http --check-status``; 5 of the commands that register a key, the key waits for
an operator.
"""

import sys

from peerseal.runtime.terminal import (
    FAILED,
    INTERRUPTED,
    REGISTRY_UNREACHABLE,
    ended_quietly,
    on_terminal,
    say,
    say_folded,
    say_json,
)
from peerseal.runtime.times import rfc3339

try:
    import argparse
    import os
    from collections.abc import Callable, Sequence
    from dataclasses import replace
    from functools import partial
    from importlib.metadata import version
    from pathlib import Path

    from peerseal.audit.monitor import ALERT, GRACE, INCONSISTENT, UNREACHABLE, Alert, Monitor
    from peerseal.audit.monitor_state import MonitorState, kids_in, load_state, save_state
    from peerseal.commands.agent import add_agent
    from peerseal.commands.arguments import (
        CommandParser,
        ShowVersion,
        Subcommands,
        add_command,
        log_warnings,
        seconds,
        seconds_or_none,
    )
    from peerseal.commands.call import add_call
    from peerseal.commands.completion import add_completion
    from peerseal.commands.doctor import add_doctor
    from peerseal.commands.evidence import add_evidence
    from peerseal.commands.identity import PENDING, add_join, add_retire, add_rotate
    from peerseal.commands.keygen import add_keygen
    from peerseal.commands.mirror import LEDGER_INCONSISTENT, add_keep_ledger, add_mirror
    from peerseal.commands.own_identity import own_identity
    from peerseal.commands.registry_options import add_registry_options, registry_of, until_interrupted
    from peerseal.commands.tokens import add_inspect, add_sign
    from peerseal.commands.verification import add_verify
    from peerseal.commands.whoami import add_whoami
    from peerseal.commands.witness import add_witness
    from peerseal.errors import (
        ConfigurationError,
        EnrolmentPending,
        FetchError,
        InvalidName,
        PeersealError,
        TrustUnavailable,
    )
    from peerseal.identity.environment import settings_of
    from peerseal.protocol.names import check_service, split_kid
    from peerseal.protocol.tokens.assertion import ASSERTION_LIFETIME
    from peerseal.runtime.files import is_of_disk
    from peerseal.runtime.settings import named, read_bytes
    from peerseal.transport.webhook import Webhook
except KeyboardInterrupt:  # the libraries take most of a second, in which `main` does not exist yet
    sys.exit(INTERRUPTED)

ALERTS_RAISED = 1
USAGE = 2
_LARGEST_LIST = 1024 * 1024
"""Bytes of a file of kids: 1,500 of the longest have 500 KiB."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code. Raises SystemExit for arguments that argparse cannot read (2), and as
    `peerseal.runtime.terminal.ended_quietly`."""
    with ended_quietly():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parsed(_parser(), _with_pin_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        parsed.log()
        return int(parsed.run(parsed))
    except (ConfigurationError, InvalidName) as error:
        return _failed(error, FAILED if is_of_disk(error.__cause__) else USAGE)
    except (FetchError, TrustUnavailable) as error:
        return _failed(error, REGISTRY_UNREACHABLE)
    except EnrolmentPending as error:
        return _failed(error, PENDING)
    except PeersealError as error:
        return _failed(error, 1)


def _parser(kind: type[argparse.ArgumentParser] = CommandParser) -> argparse.ArgumentParser:
    """The parser of the program and of its commands."""
    parser = kind(
        prog="peerseal",
        description="Tools for the owner of a service that uses Peerseal.",
        epilog="examples:\n  peerseal whoami\n  peerseal COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=ShowVersion, nargs=0, const=f"peerseal {version('peerseal')}", help="show the version"
    )
    parser.set_defaults(log=log_warnings, refuse=parser.error)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments. Items may stand after an option too, as HTTPie's: argparse would call them unrecognized."""
    parsed, rest = parser.parse_known_args(arguments)
    if rest and ("items" not in parsed or any(argument.startswith("-") for argument in rest)):
        parsed.refuse(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.items = [*parsed.items, *rest]
    return parsed


def _with_pin_joined(arguments: Sequence[str]) -> list[str]:
    """``--pin VALUE`` as ``--pin=VALUE``: a thumbprint may begin with a dash, and argparse takes such a value for an
    option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--pin":
            joined[-1] = f"--pin={argument}"
        else:
            joined.append(argument)
    return joined


def _failed(error: PeersealError, code: int) -> int:
    say(f"Error: {error}", error=True)
    return code


# ---- peerseal assertion


def add_assertion(commands: Subcommands) -> None:
    """Adds the command."""
    add_command(
        commands,
        "assertion",
        _print_assertion,
        summary="print a client assertion for the registry's token endpoint",
        description="Prints a fresh client assertion (RFC 7523) of the service in PEERSEAL_SERVICE, good once. Needs"
        " PEERSEAL_REGISTRY_URL, PEERSEAL_KEY_DIR, and a join token for the first key.",
        examples=(
            "curl -d client_assertion=$(peerseal assertion) ...",
            "peerseal assertion --json | jq -r .client_id",
        ),
        exit_codes=f"0 done, 1 the key is refused, 2 wrong usage or settings, 3 registry not reached, {PENDING} the key"
        " waits for an operator",
        as_json="as JSON, with the service's id and the lifetime",
    )


def _print_assertion(arguments: argparse.Namespace) -> int:
    """Prints the assertion. Raises as `own_identity` does."""
    with own_identity() as identity:
        assertion = identity.sign_assertion()
        answer = {"client_assertion": assertion, "client_id": identity.id, "expires_in": ASSERTION_LIFETIME}
        if arguments.as_json:
            say_json(answer)
        else:
            say(assertion)
    return 0


# ---- peerseal monitor


def add_monitor(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "monitor",
        _monitor_ledger,
        summary="report keys that the owner did not register",
        description="Reads the registry's ledger and reports changes to SERVICE that its owner did not make.",
        examples=(
            "peerseal monitor billing --key-dir /var/lib/peerseal --state monitor.json",
            "peerseal monitor billing --known-file kids.txt --once --json",
        ),
        exit_codes="0 nothing to report, 1 alerts raised, 2 wrong usage or settings, 3 registry not reached, 4 ledger"
        " inconsistent",
        as_json="JSON lines, on a terminal too",
    )
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("--known", action="append", default=[], metavar="KID", help="a key of the owner; repeatable")
    parser.add_argument(
        "--known-file", type=Path, metavar="FILE", help="a file of such kids, one a line, read at each look"
    )
    parser.add_argument("--key-dir", type=Path, metavar="DIR", help="key folder of the service [PEERSEAL_KEY_DIR]")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="file for the progress, so that a restart continues there"
    )
    parser.add_argument("--webhook", metavar="URL", help="URL that gets each report by POST, as JSON")
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help="time between two looks [1]")
    parser.add_argument(
        "--grace",
        type=seconds_or_none,
        default=GRACE,
        metavar="SECONDS",
        help="time without an answer before an alert [60]; 0: at once",
    )
    parser.add_argument("--once", action="store_true", help="look once and exit")
    add_registry_options(parser)


def _monitor_ledger(arguments: argparse.Namespace) -> int:
    """Looks until it is interrupted, or once. Raises ConfigurationError or InvalidName."""
    monitor = _monitor(arguments)
    webhook = named("--webhook", Webhook, arguments.webhook) if arguments.webhook else None
    ended, exit_code = until_interrupted(), 0
    while not ended.is_set():
        alerts = monitor.look()
        for alert in alerts:
            _show_alert(alert, as_json=arguments.as_json or not on_terminal())
            if webhook is not None:
                webhook.post(alert.to_json())
        _save_state(arguments, monitor.state)
        kinds = {alert.kind for alert in alerts if alert.level == ALERT}
        exit_code = ALERTS_RAISED if kinds else exit_code
        if INCONSISTENT in kinds:
            return LEDGER_INCONSISTENT
        if arguments.once:
            return REGISTRY_UNREACHABLE if UNREACHABLE in kinds else exit_code
        ended.wait(arguments.interval)
    return exit_code


def _save_state(arguments: argparse.Namespace, state: MonitorState) -> None:
    """Saves it, if a file is named. A full disk ends no monitor that goes on looking. Raises ConfigurationError."""
    if arguments.state is None:
        return
    try:
        save_state(arguments.state, state)
    except ConfigurationError as error:
        if arguments.once or not is_of_disk(error.__cause__):
            raise
        say(f"not saved: {error}", error=True)


def _monitor(arguments: argparse.Namespace) -> Monitor:
    service = check_service(arguments.service)
    state = None if arguments.state is None else load_state(arguments.state, service)
    state = state or MonitorState(service)
    fetcher, pin = registry_of(arguments, state.pin)
    for kid in arguments.known:
        split_kid(kid)
    grace = 0.0 if arguments.once else arguments.grace
    return Monitor(fetcher, replace(state, pin=pin), own_keys=_own_keys(arguments), grace=grace)


def _own_keys(arguments: argparse.Namespace) -> Callable[[], frozenset[str]]:
    """Gives the kids that the owner names, read at each look: keys rotate."""
    folder = arguments.key_dir or settings_of(os.environ).path("PEERSEAL_KEY_DIR")
    listed, named = arguments.known_file, frozenset(arguments.known)
    if listed is not None and not listed.is_fifo():  # what was read of a pipe is gone
        _kids_listed_in(listed)  # report a mistake in it now, even if the registry does not answer

    def own_keys() -> frozenset[str]:
        kids = named
        if folder:
            kids |= kids_in(Path(folder), arguments.service)
        if listed is not None:
            kids |= _kids_listed_in(listed)
        return kids

    return own_keys


def _kids_listed_in(file: Path) -> frozenset[str]:
    try:
        return listed_kids(read_bytes(file, str(file), _LARGEST_LIST).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text") from error


def listed_kids(text: str) -> frozenset[str]:
    """The kids in a file, one a line; what follows a ``#`` is a comment. Raises InvalidName for anything but a
    kid: ignoring it would raise an alert for the owner's key."""
    kids = (line.partition("#")[0].strip().strip("\"'") for line in text.splitlines())
    return frozenset(kid for kid in kids if kid and split_kid(kid))


def _show_alert(alert: Alert, *, as_json: bool) -> None:
    if as_json:
        say_json(alert.to_json())
        return
    about = "" if alert.entry is None else f" entry {alert.entry.seq} {alert.entry.kid or ''}".rstrip()
    say_folded(f"{rfc3339(alert.at)} {alert.level.upper()} {alert.kind}{about}: {alert.detail}")


COMMANDS: tuple[Callable[[Subcommands], None], ...] = (
    add_agent,
    add_assertion,
    add_call,
    partial(add_completion, build=_parser),
    add_doctor,
    add_evidence,
    add_inspect,
    add_join,
    add_keep_ledger,
    add_keygen,
    add_mirror,
    add_monitor,
    add_retire,
    add_rotate,
    add_sign,
    add_verify,
    add_whoami,
    add_witness,
)


if __name__ == "__main__":
    sys.exit(main())
