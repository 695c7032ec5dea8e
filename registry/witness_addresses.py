"""The witnesses to which a node submits its checkpoints: the setting ``REGISTRY_WITNESSES``."""

from dataclasses import dataclass
from typing import Final

from peerseal.errors import ConfigurationError
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.runtime.settings import SettingsReader, named
from peerseal.transport.fetch import check_urls

SETTING: Final = "REGISTRY_WITNESSES"


@dataclass(frozen=True, slots=True)
class WitnessAddress:
    """A witness: its key, and the URL below which it takes submissions."""

    key: NoteKey
    url: str


def read_witnesses(read: SettingsReader) -> tuple[WitnessAddress, ...]:
    """The witnesses in the setting, each as ``VKEY URL``, separated by commas. Raises ConfigurationError."""
    found = tuple(named(SETTING, _read, part) for part in read.several(SETTING))
    if found:
        named(SETTING, lambda _: Quorum.of([str(one.key) for one in found], 1), "")
    return found


def _read(text: str) -> WitnessAddress:
    parts = text.split()
    if len(parts) != 2:
        raise ConfigurationError(f"{text!r:.200}: expected the key of a witness, a space, and its URL")
    return WitnessAddress(NoteKey.parse(parts[0], WITNESS_KEY), check_urls(parts[1]).rstrip("/"))
