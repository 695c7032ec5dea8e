"""``peerseal whoami``: the service of this host, its keys, its registry and its folders. It registers
nothing, and says what is not known where the registry does not answer. It reads the keys as a start does, which takes
access to their folder away from other users."""

import argparse
import os
import stat
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.tokens import wrapped
from peerseal.errors import ConfigurationError, PeersealError
from peerseal.identity.enrolment import Enrolment, admission_token
from peerseal.identity.environment import one_pin, options_in
from peerseal.identity.key_folder import KeyFolder, StoredKey, StoredKeys
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.names import service_id
from peerseal.protocol.words import words_of
from peerseal.runtime.terminal import say, say_json
from peerseal.runtime.times import in_words, utc
from peerseal.trust.store import TrustStore

CANDIDATE, NEXT, CURRENT, PREVIOUS, ENDED = "candidate", "next", "current", "previous", "ended"
UNKNOWN = "unknown"
"""The state of a key that the registry does not know."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """A key of this host. ``use`` is what the host does with it (`use_of`), ``state`` the registry's word on it: None
    where it was not asked, or did not answer."""

    stored: StoredKey
    use: str
    state: str | None

    def to_json(self) -> dict[str, Any]:
        """``{"kid", "words", "alg", "use", "state", "signs_from", "ends_at"}``; the thumbprint in words, and times in
        seconds since the epoch."""
        known = self.use != CANDIDATE
        times = {
            "signs_from": int(self.stored.signs_from) if known else None,
            "ends_at": int(self.stored.expires_at) if known else None,
        }
        public = self.stored.pair.public
        key = {"kid": self.stored.kid, "words": list(words_of(public.thumbprint)), "alg": public.alg}
        return {**key, "use": self.use, "state": self.state, **times}

    def lines(self, now: float) -> Iterator[str]:
        """For a terminal, at the time ``now``."""
        yield f"  {self.stored.kid}"
        waits = ", not registered or not approved" if self.use == CANDIDATE else ""
        yield f"    {self.use}{waits}; at the registry: {self.state or 'not known'}"
        if self.use == CANDIDATE:
            yield from wrapped("    words ", " ".join(words_of(self.stored.pair.public.thumbprint)))
        if self.use == NEXT:
            yield f"    signs {utc(self.stored.signs_from)}, {in_words(self.stored.signs_from - now)}"
        if self.use != CANDIDATE:
            yield f"    ends  {utc(self.stored.expires_at)}, {in_words(self.stored.expires_at - now)}"


def use_of(stored: StoredKeys, key: StoredKey, now: float) -> str:
    """``candidate`` (not registered, or it waits for an operator), ``next`` (in its lead), ``current`` (signs),
    ``previous`` (a newer key signs; it is retired after the overlap) or ``ended``."""
    if key.registered_at is None:
        return CANDIDATE
    if key.expires_at <= now:
        return ENDED
    if key == stored.signing(now):
        return CURRENT
    return NEXT if key.signs_from > now else PREVIOUS


@dataclass(frozen=True, slots=True)
class HostFolder:
    """A folder of the service. ``mode`` is in octal digits, ``owner`` a user id; both are None where it does not
    exist."""

    setting: str
    path: Path
    mode: str | None
    owner: int | None

    @classmethod
    def at(cls, setting: str, path: Path) -> Self:
        """The folder at that path, as it is. Raises ConfigurationError where it cannot be looked up."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return cls(setting, path, None, None)
        except OSError as error:
            problem = f"{path} cannot be looked up by uid {os.geteuid()}: {error.strerror}"
            raise ConfigurationError(f"{setting}: {problem}; name a folder of this user") from error
        return cls(setting, path, f"{stat.S_IMODE(found.st_mode):04o}", found.st_uid)

    def to_json(self) -> dict[str, Any]:
        """``{"setting", "path", "mode", "owner"}``."""
        return {"setting": self.setting, "path": str(self.path), "mode": self.mode, "owner": self.owner}

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        state = "does not exist yet" if self.mode is None else f"mode {self.mode}, owner uid {self.owner}"
        yield f"{self.setting}: {state}"
        yield f"  {self.path}"


@dataclass(frozen=True, slots=True)
class RegistryAnswer:
    """What the registry says: its trust domain, and the states of keys by kid. ``problem`` says why something of it is
    missing."""

    domain: str | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The service on this host. ``keys`` is None without a key folder; ``in_use`` says that a process uses them, and is
    None where the folder does not show it, for the reason ``use_unknown``."""

    service: str
    urls: tuple[str, ...]
    pin: str | None
    answer: RegistryAnswer
    domain: str | None
    keys: tuple[HostKey, ...] | None
    in_use: bool | None
    folders: tuple[HostFolder, ...]
    use_unknown: str | None = None

    @property
    def id(self) -> str | None:
        """The service id; None while the trust domain is not known."""
        return None if self.domain is None else service_id(self.domain, self.service)

    def to_json(self) -> dict[str, Any]:
        """``{"service", "id", "registry": {"urls", "pin", "problem"}, "keys", "in_use", "folders"}``."""
        registry = {"urls": list(self.urls), "pin": self.pin, "problem": self.answer.problem}
        keys = None if self.keys is None else [key.to_json() for key in self.keys]
        rest = {"in_use": self.in_use, "folders": [folder.to_json() for folder in self.folders]}
        return {"service": self.service, "id": self.id, "registry": registry, "keys": keys, **rest}

    def lines(self, now: float) -> Iterator[str]:
        """For a terminal, at the time ``now``."""
        yield f"service   {self.id or f'{self.service}, of a trust domain that is not known'}"
        for url in self.urls:
            yield f"registry  {url}"
        if self.answer.problem is not None:
            yield from _row("problem", self.answer.problem)
        yield f"pin       {self.pin or 'none'}"
        yield from self._lines_of_keys(now)
        for folder in self.folders:
            yield from folder.lines()

    def _lines_of_keys(self, now: float) -> Iterator[str]:
        if self.keys is None:
            yield "keys      in memory: without PEERSEAL_KEY_DIR each process has its own"
        elif not self.keys:
            yield "keys      none: peerseal join registers one"
        else:
            used = "used by a running process" if self.in_use else "used by no process now"
            unknown = f"whether a process uses them is not known: {self.use_unknown}"
            yield from _row("keys", used if self.use_unknown is None else unknown)
            for key in self.keys:
                yield from key.lines(now)


def _row(name: str, text: str) -> list[str]:
    """A row of the output, in several lines where it is long."""
    start = f"{name:10}"
    return textwrap.wrap(text, 80, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)


def add_whoami(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "whoami",
        _whoami,
        summary="show the keys, the registry and the folders of this host",
        description="Shows the service of this host as its settings describe it: the keys in its key folder, with"
        " their states and ends, the registry and its pin, and the folders. It registers nothing. As each start does,"
        " it takes access away from other users where they may read the key folder; peerseal doctor changes nothing.",
        examples=("peerseal whoami", "peerseal whoami --offline --json | jq -r .keys[].kid"),
        exit_codes="0 shown, also without the registry, 1 a key cannot be read, 2 wrong usage or settings",
    )
    parser.add_argument("--offline", action="store_true", help="do not ask the registry")


def _whoami(arguments: argparse.Namespace) -> int:
    """Prints it. Raises ConfigurationError, or KeyRefused for a file that holds no key."""
    now = time.time()
    host = host_in(os.environ, now, ask=not arguments.offline)
    if arguments.as_json:
        say_json(host.to_json(), indent=2)
    else:
        say(*host.lines(now))
    return 0


def host_in(environ: Mapping[str, str], now: float, *, ask: bool) -> Host:
    """The service on this host, as the environment describes it, at the time ``now``. Raises as `_whoami`."""
    options = options_in(environ)
    service, registry, key_dir, cache_dir = (options[name] for name in ("service", "registry", "key_dir", "cache_dir"))
    places = {"PEERSEAL_KEY_DIR": key_dir and key_dir / service, "PEERSEAL_CACHE_DIR": cache_dir}
    folders = tuple(HostFolder.at(name, path) for name, path in places.items() if path)  # before `load` tightens modes
    passphrase = KeyPassphrase("PEERSEAL_KEY_PASSPHRASE", options["key_passphrase"])
    folder = KeyFolder(places["PEERSEAL_KEY_DIR"], passphrase)
    stored = StoredKeys() if key_dir is None else folder.load()
    pin = one_pin(options["pin"], admission_token(options["join_token"], None, registry, None), folder)
    in_use, use_unknown = _use_of(folder)
    answer = _asked(service, registry, pin, stored) if ask else RegistryAnswer(problem="not asked (--offline)")
    keys = tuple(HostKey(key, use_of(stored, key, now), answer.states.get(key.kid)) for key in stored.keys)
    return Host(
        service,
        tuple(url.strip() for url in registry.split(",") if url.strip()),
        pin,
        answer,
        stored.domain or answer.domain,
        None if key_dir is None else keys,
        in_use,
        folders,
        use_unknown,
    )


def _use_of(folder: KeyFolder) -> tuple[bool | None, str | None]:
    """Whether a process uses the keys, or why that is not known: on a read-only file system no lock can be taken."""
    try:
        return folder.in_use(), None
    except ConfigurationError as error:
        return None, str(error)


def _asked(service: str, registry: str, pin: str | None, stored: StoredKeys) -> RegistryAnswer:
    """What the registry says about each key, as far as it answers."""
    domain, states = None, dict[str, str]()
    try:
        trust = TrustStore(registry, pin=pin)
        domain, enrolment = trust.domain, Enrolment(service, trust, time.time)
        for key in stored.keys:
            statement = enrolment.statement(key)
            states[key.kid] = UNKNOWN if statement is None else statement.state
    except PeersealError as error:
        return RegistryAnswer(domain, states, str(error))
    return RegistryAnswer(domain, states)
