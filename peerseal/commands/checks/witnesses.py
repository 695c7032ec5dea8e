"""The check of the witnesses: which of them have cosigned the registry's ledger, and which lag."""

from collections.abc import Iterator
from contextlib import suppress

from peerseal.commands.checks.finding import Finding, error, ok, warning
from peerseal.commands.checks.host import Asked, Host
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError
from peerseal.identity.environment import own_quorum_in
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, COSIGNED_PATH, MAX_NOTE_BYTES, verify_checkpoint
from peerseal.protocol.ledger.cosignature import Note, cosigners
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.fetch import content, no_larger_than

_REMEDY = "tell the registry's operator: registry_witness_failures and the registry's log say what is wrong"
_OLD = TrustLimits().witness_delay
_MOST_AHEAD = 60.0
"""Seconds by which the clocks of a witness and of this host may differ."""


def check_witnesses(host: Host) -> Iterator[Finding]:
    """Enough witnesses have cosigned the ledger lately, where the root or this host asks for cosignatures."""
    registry = host.registry
    if registry is None or registry.keys is None:
        return
    quorums = dict(_quorums(host, registry.keys))
    if not quorums:
        return
    try:
        newest, note = _fetched(host, registry, CHECKPOINT_PATH), _fetched(host, registry, COSIGNED_PATH)
    except (FetchError, DocumentRefused) as refused:
        yield error(f"no cosigned checkpoint can be had: {refused}", _REMEDY)
        return
    for source, quorum in quorums.items():
        yield from _of_witnesses(host, quorum, note)
        yield _of_quorum(source, quorum, note, newest.claimed.size)


def _quorums(host: Host, root: RegistryKeys) -> Iterator[tuple[str, Quorum]]:
    """The quorums that count, by the name of their source. Another check says what of them cannot be read."""
    if root.witnesses is not None:
        yield "the root", root.witnesses
    with suppress(ConfigurationError):
        own = own_quorum_in(host.settings)
        if own is not None:
            yield "PEERSEAL_WITNESSES", own


def _fetched(host: Host, registry: Asked, path: str) -> Note:
    """A checkpoint that the ledger's key signed. Raises FetchError or DocumentRefused."""
    with no_larger_than(MAX_NOTE_BYTES):
        text = content(host.connect(registry.url).call("GET", path)).decode("utf-8", "replace")
    if registry.keys is not None:
        verify_checkpoint(text, registry.keys.subject, registry.keys.ledger_keys)
    return Note.parse(text)


def _of_witnesses(host: Host, quorum: Quorum, note: Note) -> Iterator[Finding]:
    times = cosigners(note, quorum.witnesses)
    for witness in quorum.witnesses:
        age = host.now() - times.get(witness.name, 0)
        if witness.name not in times:
            yield warning(f"{witness.name} lags: it has not cosigned {note.claimed.size} entries", _REMEDY)
        elif age < -_MOST_AHEAD:
            found = f"{witness.name} cosigned {note.claimed.size} entries, {-age:.0f} s in the future"
            yield warning(found, "compare the clock of this host, else tell the witness' operator to set its clock")
        elif age > _OLD:
            yield warning(f"{witness.name} cosigned {note.claimed.size} entries, {age:.0f} s ago", _REMEDY)
        else:
            yield ok(f"{witness.name} cosigned {note.claimed.size} entries, {max(0.0, age):.0f} s ago")


def _of_quorum(source: str, quorum: Quorum, note: Note, size: int) -> Finding:
    there, lacks = len(cosigners(note, quorum.witnesses)), size - note.claimed.size
    found = f"{source} asks for {quorum.needed} of {len(quorum.witnesses)}, {there} cosigned"
    if there < quorum.needed:
        return error(found, f"{_REMEDY}. Until then this host believes nothing new")
    if lacks > 0:
        return warning(f"{found}; newer entries: {lacks}", f"look again in a minute, then {_REMEDY}")
    return ok(found)
