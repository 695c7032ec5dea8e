"""Which checkpoint which peer was told: each once after a change, and again where a call was not accepted.

Before a call a service knows the name of its callee, not the key that will answer: such a telling is kept by service
id. It is taken back if the call is known to have failed (`CheckpointTellings.not_accepted`). It is taken back, too, if
a key answers that answered no call with the checkpoint (`CheckpointTellings.accepted`): an impostor of the callee may
have had the first one. In an answer the caller's key is known, so these tellings are kept by kid.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from peerseal.errors import InvalidName, MalformedToken, MissingToken
from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.ledger.split_view import encode_cp
from peerseal.protocol.names import registry_id, split_kid, split_service_id
from peerseal.runtime.bounded import BoundedDict
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.metrics import Metric, Tally
from peerseal.trust.documents import DocumentReader
from peerseal.trust.seen_ledger import SeenCheckpoint

_PEERS: Final = 1_000
"""Service ids and kids whose last telling a process remembers. A forgotten one is told again."""
_KEYS: Final = 256
"""Keys of one service that may answer before it is no longer told again for the sake of another key."""
_HELP: Final = "Tokens that told a peer a checkpoint, those of calls that were not accepted too."


@dataclass(frozen=True, slots=True)
class _Telling:
    """The checkpoint that was told, as a ``cp`` (None where the note is too long), and the keys that answered calls
    with it. While it is ``under_way`` no such answer has come; it is told again once it is ``due``."""

    newest: SeenCheckpoint
    cp: str | None
    kids: frozenset[str] = frozenset()
    under_way: bool = True
    due: bool = False


class CheckpointTellings:
    """What to tell whom. Safe to use from threads, and before and after a fork."""

    def __init__(self, reader: DocumentReader) -> None:
        self._reader = reader
        self._total = Tally("peerseal_checkpoints_sent_total", _HELP)
        self._last = BoundedDict[str, _Telling](_PEERS)
        self._encoded: tuple[SeenCheckpoint, str | None] | None = None
        self._renew_lock()
        in_each_child(self._renew_lock)

    def checkpoint_for(self, peer: str, fits: Callable[[str], bool]) -> str | None:
        """What to tell this peer now, as a ``cp``: the newest checkpoint, if it was not told yet. ``peer`` is a service
        id for a call, and a kid for an answer. What does not fit into the token is not told. None most of the time; it
        makes no call."""
        newest = self._reader.ledger.newest
        if newest is None or self._is_told(peer, newest):
            return None
        root = self._reader.registry_keys_in_memory()
        if root is None or not is_peer(service_of(peer), root.subject) or not newest.checkpoint.size:
            return None
        if self._encoded is None or self._encoded[0] is not newest:
            self._encoded = newest, encode_cp(newest.note, root.subject, root.ledger_keys)
        of, cp = self._encoded
        if cp is not None and not fits(cp):
            return None
        with self._lock:
            if self._is_told(peer, newest):
                return None
            last = self._last.pop(peer, None)  # so that it counts as the youngest
            self._last[peer] = _Telling(of, cp, last.kids if last is not None and last.cp == cp else frozenset())
        if cp is not None:
            self._total.add()
        return cp

    def accepted(self, request_token: str, kid: str) -> None:
        """This key answered the call, as its signature proves."""
        callee = service_of(kid)
        last = self._last.get(callee)
        if last is None or last.due or (kid in last.kids and not last.under_way):
            return
        told = last.cp is not None and _told_in(request_token) == (callee, last.cp)
        with self._lock:
            if self._last.get(callee) is not last:
                return
            if told:
                self._last[callee] = replace(last, kids=last.kids | {kid}, under_way=False)
            elif not last.under_way and len(last.kids) < _KEYS:
                self._last[callee] = replace(last, due=True)

    def not_accepted(self, request_token: str) -> None:
        """The call failed, or its answer does not show that the callee accepted it. What it told is told again."""
        if not self._last:
            return
        callee, cp = _told_in(request_token)
        with self._lock:
            last = self._last.get(callee)
            if last is not None and cp is not None and last.cp == cp:
                self._last[callee] = replace(last, due=True)

    def collect(self) -> Metric:
        """How many were told."""
        return self._total.metric()

    def _is_told(self, peer: str, newest: SeenCheckpoint) -> bool:
        last = self._last.get(peer)
        return last is not None and last.newest is newest and not last.due

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


def _told_in(request_token: str) -> tuple[str, str | None]:
    """The callee (a service id), and the ``cp``, in a token of ours."""
    try:
        claims = strict_json_object(jose.parse(request_token).payload)
    except (MalformedToken, MissingToken):
        return "", None
    callee, cp = claims.get("aud"), claims.get("cp")
    return (callee, cp) if type(callee) is type(cp) is str else ("", None)


def service_of(peer: str) -> str:
    """The service id in a kid, or the service id itself; empty for what is neither."""
    try:
        if peer.count("/") > 1:
            return split_kid(peer)[0]
        split_service_id(peer)
    except InvalidName:
        return ""
    return peer


def is_peer(service: str, domain: str) -> bool:
    """Whether it is the id of another service of the domain than the registry itself."""
    return service.startswith(f"{domain}/") and service != registry_id(domain)
