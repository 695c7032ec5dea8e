"""How far a monitor has read the ledger, and the file that holds it: written whole or not at all, mode 0600."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.tokens.claims import claim, number_claim, time_claim
from peerseal.runtime.files import Access, Folder


@dataclass(frozen=True, slots=True)
class MonitorState:
    """How far the ledger was read (``edge``, seen at ``seen_at`` in seconds since the epoch), and which keys (kids) are
    the owner's. The ``revoked`` ones vouch for nothing. ``domain`` and ``pin`` are None before the first answer of the
    registry."""

    service: str
    edge: Frontier = field(default_factory=Frontier)
    known: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    domain: str | None = None
    pin: str | None = None
    seen_at: int = 0


def load_state(path: Path, service: str) -> MonitorState | None:
    """The state in the file; None where there is no file. Raises ConfigurationError for the state of another service
    and for a file that cannot be read: a new beginning would hide that the ledger was rewritten in between."""
    try:
        members = strict_json_object(_folder_of(path).read(path.name))
        edge = Frontier.decode(number_claim(members, "size"), b64url_decode(claim(members, "frontier", str)))
        known, revoked = (frozenset(claim(members, name, list)) for name in ("known", "revoked"))
        place = claim(members, "service", str), edge, known, revoked, members["domain"], members["pin"]
        # earlier releases wrote no time; no earlier statement covers what they saw
        state = MonitorState(*place, time_claim({"seen_at": int(time.time()), **members}, "seen_at"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (MalformedToken, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not the state of a monitor") from error
    if state.service != service:
        raise ConfigurationError(f"{path} is the state of a monitor of {state.service}")
    return state


def save_state(path: Path, state: MonitorState) -> None:
    """Replace the file. Raises ConfigurationError where it cannot be written."""
    place = {"service": state.service, "domain": state.domain, "pin": state.pin}
    tree = {"size": state.edge.size, "frontier": b64url(state.edge.encode()), "seen_at": state.seen_at}
    text = canonical_json({**place, **tree, "known": sorted(state.known), "revoked": sorted(state.revoked)})
    try:
        _folder_of(path).write(path.name, text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def kids_in(key_dir: Path, service: str) -> frozenset[str]:
    """The kids of the keys that the host's key folder holds for the service now. It does not read the private keys.
    Raises ConfigurationError."""
    file = key_dir / service / "keys.json"
    try:
        return frozenset(
            claim(key, "kid", str) for key in claim(strict_json_object(_folder_of(file).read(file.name)), "keys", list)
        )
    except FileNotFoundError:
        return frozenset()
    except (OSError, MalformedToken, TypeError, KeyError) as error:
        raise ConfigurationError(f"{file} cannot be read") from error


def _folder_of(path: Path) -> Folder:
    """The folder of the file. Both belong to this user or to root, and keep their modes."""
    return Folder(path.absolute().parent, access=Access.COMMON, tightens=False)
