"""Commands for the identity of this host: ``peerseal join``, ``rotate`` and ``retire``. Each works on the key folder of
the service, and so for all of its processes on this host."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peerseal.commands.arguments import Subcommands, add_command, seconds_or_none
from peerseal.commands.keygen import pair_in
from peerseal.commands.own_identity import own_folder, own_identity, signing_key, unstarted_identity
from peerseal.commands.tokens import wrapped
from peerseal.commands.whoami import UNKNOWN
from peerseal.errors import ConfigurationError, EnrolmentPending, EnrolmentRefused, TrustUnavailable
from peerseal.identity.enrolment import UNREACHABLE, Enrolment
from peerseal.identity.identity import Identity
from peerseal.identity.key_folder import KeyFolder, StoredKey
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.words import words_of
from peerseal.runtime.backoff import backoff
from peerseal.runtime.terminal import say, say_json
from peerseal.runtime.times import in_words, utc

PENDING = 5
"""The exit code where a key waits for an operator of the registry."""
_NOT_CONFIRMED = 1
_LONGEST_PAUSE = 10.0
"""Seconds between two questions for the state of a key."""


# ---- peerseal join


@dataclass(frozen=True, slots=True)
class Joined:
    """The key with which this host has joined, or applied. ``new`` says that this call registered it."""

    key: StoredKey
    new: bool

    @property
    def pending(self) -> bool:
        """Whether an operator must approve it."""
        return self.key.registered_at is None

    def to_json(self) -> dict[str, Any]:
        """``{"id", "kid", "words", "state", "new", "ends_at"}``: the thumbprint in words, and the end in seconds since
        the epoch, null while pending."""
        ends_at = None if self.pending else int(self.key.expires_at)
        state = "pending" if self.pending else ACTIVE
        words = list(words_of(self.key.pair.public.thumbprint))
        key = {"id": self.key.owner, "kid": self.key.kid, "words": words}
        return {**key, "state": state, "new": self.new, "ends_at": ends_at}

    def lines(self, now: float) -> Iterator[str]:
        """For a terminal, at the time ``now``."""
        yield f"service  {self.key.owner}"
        yield f"key      {self.key.kid}"
        if self.pending:
            yield "state    pending: an operator must approve it, with"
            yield "         peerseal-registry approve KID"
            yield from wrapped("words    ", " ".join(words_of(self.key.pair.public.thumbprint)))
            yield "         The operator sees the same words: compare them by voice."
        else:
            yield f"state    {ACTIVE}, registered {'now' if self.new else 'before'}"
            yield f"ends     {utc(self.key.expires_at)}, {in_words(self.key.expires_at - now)}"


def add_join(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "join",
        _join,
        summary="register a key of this host",
        description="Registers a key of the service in PEERSEAL_SERVICE, in the folder PEERSEAL_KEY_DIR, with the join"
        " token in PEERSEAL_JOIN_TOKEN. A host that has joined keeps its key. All other settings are those of the"
        " service itself.",
        examples=(
            "PEERSEAL_JOIN_TOKEN_FILE=/run/secrets/join-token peerseal join",
            "peerseal join --wait 1h    # for an operator's approval",
        ),
        exit_codes=f"0 joined, 1 refused, 2 wrong usage or settings, 3 registry not reached, {PENDING} the key waits"
        " for an operator",
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="register the key in this file (PEM), such as of peerseal keygen"
    )
    parser.add_argument(
        "--wait",
        type=seconds_or_none,
        default=0.0,
        metavar="SECONDS",
        help="try again for so long where the registry does not answer, or an operator must approve; 0: once [0]",
    )


def _join(arguments: argparse.Namespace) -> int:
    """Joins, and prints the key. Raises as `own_identity` does; a key that waits is no error."""
    folder = own_folder()
    before = folder.load().signing(time.time())
    first_key = None if arguments.key is None else pair_in(arguments.key)
    try:
        with own_identity(patience=arguments.wait, first_key=first_key) as identity:
            key = signing_key(folder)
            new = before is None or before.kid != key.kid
            if not new:
                _confirm(identity, key, arguments.wait)
    except EnrolmentPending:
        waiting = [held for held in folder.load().keys if held.is_candidate]
        if not waiting:  # another process has just retired it
            raise
        [key] = waiting
        new = before is None or before.kid != key.kid
    joined = Joined(key, new)
    if arguments.as_json:
        say_json(joined.to_json())
    else:
        say(*joined.lines(time.time()))
    return PENDING if joined.pending else 0


def _confirm(identity: Identity, key: StoredKey, patience: float) -> None:
    """Returns where the registry says that a key of before is active. Raises as `_statement`, or EnrolmentRefused."""
    statement = _statement(Enrolment(identity.service, identity.trust, time.time), key, patience)
    state = UNKNOWN if statement is None else statement.state
    if state != ACTIVE:
        raise EnrolmentRefused(f"key_{state}", f"the registry says that {key.kid} is {state}; expected {ACTIVE}")


def _statement(enrolment: Enrolment, key: StoredKey, patience: float) -> KeyStatement | None:
    """As `Enrolment.statement`; asks again for ``patience`` seconds where the registry does not answer. Raises
    DocumentRefused or TrustUnavailable."""
    deadline, failures = time.monotonic() + patience, 0
    while True:
        try:
            return enrolment.statement(key)
        except UNREACHABLE as error:
            failures += 1
            pause = backoff(failures, first=0.2, longest=_LONGEST_PAUSE)
            if time.monotonic() + pause > deadline:
                problem = f"{key.kid} is on this host, and whether it is active is not known"
                raise TrustUnavailable(f"{problem}: {error}") from error
            time.sleep(pause)


# ---- peerseal rotate


@dataclass(frozen=True, slots=True)
class Rotated:
    """The key that signed before, and the one that replaces it."""

    old: StoredKey
    new: StoredKey

    def to_json(self) -> dict[str, Any]:
        """``{"id", "old": {"kid", "ends_at"}, "new": {"kid", "signs_from", "ends_at"}}``, in seconds since the
        epoch."""
        old = {"kid": self.old.kid, "ends_at": int(self.old.expires_at)}
        times = {"signs_from": int(self.new.signs_from), "ends_at": int(self.new.expires_at)}
        return {"id": self.new.owner, "old": old, "new": {"kid": self.new.kid, **times}}

    def lines(self, now: float) -> Iterator[str]:
        """For a terminal, at the time ``now``."""
        yield f"old      {self.old.kid}"
        yield "         signs until the new key does, and is retired after the overlap"
        yield f"ends     {utc(self.old.expires_at)}, {in_words(self.old.expires_at - now)}, at the latest"
        yield f"new      {self.new.kid}"
        yield f"signs    {utc(self.new.signs_from)}, {in_words(self.new.signs_from - now)}"
        yield f"ends     {utc(self.new.expires_at)}, {in_words(self.new.expires_at - now)}"


def add_rotate(commands: Subcommands) -> None:
    """Adds the command."""
    add_command(
        commands,
        "rotate",
        _rotate,
        summary="replace the key of this host now",
        description="Registers the next key of this host now; the current key vouches for it. The new key signs after"
        " the lead (PEERSEAL_ROTATE_LEAD, 30 seconds), and the old one is retired after the overlap"
        " (PEERSEAL_ROTATE_OVERLAP, 2 minutes). A next key that is registered already is taken. Running processes of"
        " the service change over by themselves. A stolen key must be revoked: peerseal-registry revoke KID.",
        examples=("peerseal rotate", "peerseal rotate --json | jq -r .new.kid"),
        exit_codes="0 done, 1 refused, 2 wrong usage or settings, or no key, 3 registry not reached",
    )


def _rotate(arguments: argparse.Namespace) -> int:
    """Rotates, and prints both keys. Raises as `own_identity` does."""
    folder = own_folder()
    signing_key(folder)  # a host without a key is not registered by this command
    with own_identity() as identity:
        old = signing_key(folder)
        identity.rotate()
        rotated = Rotated(old, folder.load().keys[-1])
    if arguments.as_json:
        say_json(rotated.to_json())
    else:
        say(*rotated.lines(time.time()))
    return 0


# ---- peerseal retire


def add_retire(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "retire",
        _retire,
        summary="end the keys of this host",
        description="Retires all keys of this host at the registry, and deletes them here. What they signed stays"
        " valid. Processes of the service on this host can sign no longer, and the next start needs a join token, or"
        " a platform's token.",
        examples=("peerseal retire", "peerseal retire --yes --json"),
        exit_codes="0 done, 1 not confirmed or refused, 2 wrong usage or settings, 3 registry not reached",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _retire(arguments: argparse.Namespace) -> int:
    """Asks, retires, and prints the kids. Raises ConfigurationError where it cannot ask, or FetchError."""
    folder = own_folder()
    kids = [key.kid for key in folder.load().keys]
    if kids and not arguments.yes and not _confirmed(folder, kids):
        say("Nothing was retired.", error=True)
        return _NOT_CONFIRMED
    retired = unstarted_identity().retire() if kids else ()
    if arguments.as_json:
        say_json({"retired": retired})
    elif retired:
        say(*(f"retired  {kid}" for kid in retired))
        say("The next start on this host needs a new join token, or a platform's token.")
    else:
        say("This host has no keys.")
    return 0


def _confirmed(folder: KeyFolder, kids: list[str]) -> bool:
    """Whether the user at the terminal agrees. Raises ConfigurationError where there is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError("retire asks before it ends keys, and standard input is no terminal: add --yes")
    say("The keys of this host end now:", *(f"  {kid}" for kid in kids), error=True)
    if folder.in_use():
        say("A process of the service uses them: its calls will fail.", error=True)
    say("The next start on this host needs a new join token, or a platform's token.", error=True)
    say("Retire them? [y/N]", error=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
