"""What ``peerseal doctor`` looks at: the settings, the folders and the registry of this host. All of it is read once,
when a check first asks for it, and nothing is changed."""

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, PeersealError
from peerseal.identity.key_folder import KeyFolder, StoredKey, StoredKeys
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.join import JoinToken
from peerseal.protocol.names import check_service, service_id
from peerseal.runtime.settings import SettingsReader
from peerseal.runtime.trusted_path import others_may_rename
from peerseal.transport.clocks import clock_offset
from peerseal.transport.fetch import Fetcher, HttpFetcher, check_urls, content
from peerseal.trust.store import TrustStore

_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Asked:
    """What one URL of the registry answered: the registry's ``keys``, or the ``failure``. ``answered`` says whether
    there was an answer of any sort. ``offset`` is how far this host's clock is ahead, in seconds."""

    url: str
    answered: bool
    keys: RegistryKeys | None = None
    failure: str = ""
    offset: float | None = None


def connect(url: str) -> Fetcher:
    """The usual way to a server, with the proxies and certificates of the environment. Raises ConfigurationError."""
    return HttpFetcher([url])


@dataclass(frozen=True)
class Host:
    """This host, as the variables in ``environ`` describe it. ``external_url`` is the URL under which others call the
    service. ``clock`` returns the seconds since the epoch."""

    environ: Mapping[str, str]
    external_url: str | None = None
    clock: Callable[[], float] = time.time
    connect: Callable[[str], Fetcher] = connect

    # ---- settings

    @cached_property
    def settings(self) -> SettingsReader:
        """The reader of the variables."""
        return SettingsReader(self.environ)

    @cached_property
    def service(self) -> str | None:
        """The service's name; None where it is missing or invalid, which the check of the settings says."""
        with suppress(PeersealError):
            return check_service(self.settings.required("PEERSEAL_SERVICE"))
        return None

    @cached_property
    def urls(self) -> tuple[str, ...]:
        """The URLs of the registry and its mirrors; none where they cannot be read."""
        with suppress(PeersealError):
            text = self.settings.checked("PEERSEAL_REGISTRY_URL", check_urls) or ""
            return tuple(url.strip().rstrip("/") for url in text.split(",") if url.strip())
        return ()

    @cached_property
    def join_token(self) -> JoinToken | None:
        """The join token. Raises ConfigurationError where it cannot be read."""
        text = self.settings.secret("PEERSEAL_JOIN_TOKEN", may_be_empty=True)
        return None if text is None else JoinToken.parse(text)

    # ---- the registry

    @cached_property
    def asked(self) -> tuple[Asked, ...]:
        """The answers of the registry's URLs, in their order."""
        return tuple(self._ask(url) for url in self.urls)

    @property
    def registry(self) -> Asked | None:
        """The first URL that gave the registry's keys."""
        return next((asked for asked in self.asked if asked.keys is not None), None)

    def now(self) -> float:
        """The time by the registry's clock, where it is known: checks go on where this host's clock is wrong."""
        offset = None if self.registry is None else self.registry.offset
        return self.clock() - (offset or 0.0)

    def trust(self, registry: Asked) -> TrustStore:
        """A trust store that keeps nothing, and believes the root key that the registry shows: the pin is a check of
        its own."""
        pin = None if registry.keys is None else registry.keys.root.thumbprint
        return TrustStore(registry.url, pin=pin, clock=self.now, fetcher=self.connect(registry.url))

    def own_id(self, registry: Asked) -> str | None:
        """The service id; None without a name."""
        if self.service is None or registry.keys is None:
            return None
        return service_id(registry.keys.subject, self.service)

    def _ask(self, url: str) -> Asked:
        try:
            answer = self.connect(url).call("GET", REGISTRY_KEYS_PATH)
        except FetchError as error:
            return Asked(url, error.http_status is not None, failure=str(error))
        now = self.clock()
        offset = clock_offset(answer, now)
        try:
            jws = content(answer).decode("ascii", "replace")
            keys = read_registry_keys(jws, pin=None, now=now - (offset or 0.0))
        except (FetchError, DocumentRefused) as error:
            return Asked(url, True, failure=str(error), offset=offset)
        return Asked(url, True, keys, offset=offset)

    # ---- the key folder

    @cached_property
    def key_folder(self) -> Path | None:
        """The folder with this service's keys: in PEERSEAL_KEY_DIR, named as the service."""
        root = self.settings.path("PEERSEAL_KEY_DIR")
        return None if root is None or self.service is None else root / self.service

    @cached_property
    def stored(self) -> StoredKeys:
        """The keys in the key folder. Raises ConfigurationError or KeyRefused. A folder that is open to others is not
        read, since reading would set its mode."""
        if self.key_folder is None:
            return StoredKeys()
        try:
            if not self.key_folder.is_dir():
                return StoredKeys()
            is_open = open_to_others(self.key_folder) or others_may_rename(self.key_folder.parent.stat())
        except OSError as failed:
            problem = f"cannot be read by uid {os.geteuid()}: {failed.strerror}"
            raise ConfigurationError(f"{self.key_folder}: {problem}") from failed
        if is_open:
            raise ConfigurationError(f"{self.key_folder} is open to other users, and is not read")
        passphrase = KeyPassphrase("PEERSEAL_KEY_PASSPHRASE", self.settings.secret("PEERSEAL_KEY_PASSPHRASE"))
        return KeyFolder(self.key_folder, passphrase).load()

    @property
    def signing_key(self) -> StoredKey | None:
        """The key that signs now; None where there is none, or where it cannot be read."""
        stored = self._readable
        return None if stored is None else stored.signing(self.now())

    @property
    def candidate(self) -> StoredKey | None:
        """The key of this host that is to be registered; None where its keys cannot be read."""
        held = () if self._readable is None else self._readable.keys
        return next((key for key in held if key.is_candidate), None)

    @property
    def refused(self) -> Sequence[StoredKey]:
        """The keys of this host that the registry did not admit; none where its keys cannot be read."""
        return [] if self._readable is None else [key for key in self._readable.keys if key.refused]

    @property
    def no_key(self) -> tuple[str, str]:
        """Why there is no key to sign with, and what to do."""
        if self.keys_unreadable:
            return "the keys of this host cannot be read", "see the check of the key"
        return "this host has no key to sign with", "start the service once"

    @property
    def keys_unreadable(self) -> bool:
        """Whether the keys of this host cannot be read. The check of the key says why."""
        return self._readable is None

    @property
    def _readable(self) -> StoredKeys | None:
        with suppress(PeersealError):
            return self.stored
        return None


def open_to_others(folder: Path) -> list[Path]:
    """The folder and the files in it that users other than the owner may read or change. Raises OSError."""
    found = [folder, *folder.iterdir()]
    return [path for path in found if stat.S_IMODE(os.lstat(path).st_mode) & _OTHERS]
