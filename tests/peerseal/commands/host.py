"""A host of the service ``billing``: its settings, a registry in memory over HTTP, and what ``peerseal`` prints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.identity.key_folder import KeyFolder, StoredKeys
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import served

SERVICE = "billing"
KEYS = f"/v1/services/{SERVICE}/keys"


class Host:
    """The environment of a host whose folders are in ``folder``. ``errors`` is what the last command printed on
    standard error."""

    def __init__(
        self, registry: MemoryRegistry, folder: Path, settings: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]
    ) -> None:
        self.registry = registry
        self.key_dir = folder / "keys"
        self.settings = settings
        self.errors = ""
        self._printed = printed

    def set(self, **settings: str) -> None:
        """Set variables; the names are without ``PEERSEAL_``."""
        for name, value in settings.items():
            self.settings.setenv(f"PEERSEAL_{name}", value)

    def with_token(self) -> str:
        """A new join token, set as the environment's."""
        token = self.registry.join_token(SERVICE)
        self.set(JOIN_TOKEN=token)
        return token

    def join(self) -> str:
        """Join with a key that is made quickly, and return the join token."""
        file = self.key_dir.with_name("first.pem")
        assert self.run("keygen", str(file), "--alg", "ES256")[0] == 0
        token = self.with_token()
        assert self.run("join", "--key", str(file))[0] == 0
        return token

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit code of ``peerseal ARGUMENTS``, and what it printed on standard output."""
        code = main(arguments)
        output, self.errors = self._printed.readouterr()
        return code, output

    def printed(self) -> str:
        """What a command printed that did not return, such as a help."""
        return self._printed.readouterr().out

    def stored(self) -> StoredKeys:
        """What the key folder holds."""
        return KeyFolder(self.key_dir / SERVICE).load()

    def registered(self) -> dict[str, str]:
        """The states of all keys at the registry, by thumbprint."""
        return {thumbprint: self.registry.state(key) for thumbprint, key in self.registry.keys.items()}


@contextmanager
def new_host(folder: Path, settings: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]) -> Iterator[Host]:
    """A host that has not joined. Its registry answers on loopback."""
    for name in [name for name in os.environ if name.startswith("PEERSEAL_")]:
        settings.delenv(name)
    with MemoryRegistry() as registry, served(registry) as url:
        host = Host(registry, folder, settings, printed)
        host.set(SERVICE=SERVICE, REGISTRY_URL=url, KEY_DIR=str(host.key_dir))
        yield host
