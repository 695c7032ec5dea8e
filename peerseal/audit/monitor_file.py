"""Where a monitor stands, in a file: written whole or not at all, mode 0600."""

import time
from pathlib import Path

from peerseal.audit.monitor import Watched
from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.tokens.claims import claim, number_claim, time_claim
from peerseal.runtime.files import Access, Folder


def load_watched(path: Path, service: str) -> Watched | None:
    """What the file says; None where there is none. Raises ConfigurationError for one that is of another service, or
    cannot be read: beginning anew would hide that the ledger was rewritten meanwhile."""
    try:
        members = strict_json_object(_folder_of(path).read(path.name))
        edge = Frontier.decode(number_claim(members, "size"), b64url_decode(claim(members, "frontier", str)))
        known, revoked = (frozenset(claim(members, name, list)) for name in ("known", "revoked"))
        place = claim(members, "service", str), edge, known, revoked, members["domain"], members["pin"]
        # earlier releases did not write it down: no statement of before is about what they saw
        watched = Watched(*place, time_claim({"seen_at": int(time.time()), **members}, "seen_at"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (MalformedToken, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not the state of a monitor") from error
    if watched.service != service:
        raise ConfigurationError(f"{path} is the state of a monitor of {watched.service}")
    return watched


def save_watched(path: Path, watched: Watched) -> None:
    """Replaces the file. Raises ConfigurationError where it cannot be written."""
    place = {"service": watched.service, "domain": watched.domain, "pin": watched.pin}
    tree = {"size": watched.edge.size, "frontier": b64url(watched.edge.encode()), "seen_at": watched.seen_at}
    text = canonical_json({**place, **tree, "known": sorted(watched.known), "revoked": sorted(watched.revoked)})
    try:
        _folder_of(path).write(path.name, text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def kids_in(key_dir: Path, service: str) -> frozenset[str]:
    """The kids of the keys that the hosts' key folder holds for the service now; its private keys are not looked at.
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
    """The folder that the file is in, which may be root's; the file itself is this user's, or root's."""
    return Folder(path.absolute().parent, access=Access.COMMON)
