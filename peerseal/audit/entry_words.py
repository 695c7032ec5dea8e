"""What an entry about the registry itself says, in words: for the reports of monitors, and for operators.

The words repeat what the entry claims. That the root or the registry signed it is for others to check.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from peerseal.errors import DocumentRefused, InvalidName, MalformedToken
from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.protocol.documents.frame import UnverifiedDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.ledger.entries import FEDERATION_SET, REGISTRY_CREATED, REGISTRY_KEYS_ISSUED, Entry
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.tokens.claims import claim

_NAMED: Final = 5
"""Names that one line has, at most."""


def in_words(entry: Entry) -> str | None:
    """The entry in one line. None for other types, and for an entry that cannot be read."""
    say = _READERS.get(entry.type)
    try:
        return None if say is None else say(entry)
    except (MalformedToken, InvalidName, DocumentRefused):
        return None


def changes_in_words(entry: Entry, before: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the entry changed, a sentence for each change. ``before`` is the data of the entry of its kind before it, if
    any. Empty for other types, and for an entry that cannot be read."""
    try:
        if entry.type == FEDERATION_SET:
            known = Federation() if before is None else federation_in(before)
            changes = tuple(_federation_changes(known, federation_in(entry.data)))
            return changes or ("nothing: it says the same as before",)
        if entry.type in (REGISTRY_CREATED, REGISTRY_KEYS_ISSUED):
            return (_document_change(None if before is None else document_in(before), document_in(entry.data)),)
    except (MalformedToken, InvalidName, DocumentRefused):
        pass
    return ()


def federation_in(data: Mapping[str, Any]) -> Federation:
    """The federation in the data of an entry. Raises MalformedToken or InvalidName."""
    return Federation.from_json(data.get("federation"), own="")


def document_in(data: Mapping[str, Any]) -> RegistryKeys:
    """The root's document in the data of an entry, whose signature is not checked. Raises MalformedToken or
    DocumentRefused."""
    return UnverifiedDocument.parse(RegistryKeys, claim(dict(data), "document", str)).read()


def terms_in_words(one: FederatedDomain) -> str:
    """What a foreign domain may do, as far as the federation says."""
    who = "all its services" if one.services is None else ", ".join(sorted(one.services)) or "none of its services"
    what = "all scopes" if one.scopes is None else f"the scopes [{', '.join(sorted(one.scopes))}]"
    limit = "these scopes" if one.scopes else "no scope"  # where none is named, none crosses
    crossing = f"transactions and events may cross, with {limit}" if one.transactions else "no transaction crosses"
    return f"{who}, with {what} that policies and code allow; {crossing}"


def quorum_in_words(quorum: Quorum | None) -> str:
    """Which witnesses a client needs."""
    if quorum is None:
        return "no witness needed"
    names = ", ".join(sorted(key.name for key in quorum.witnesses))
    return f"{quorum.needed} of {len(quorum.witnesses)} witnesses needed ({names})"


def _federation_line(entry: Entry) -> str:
    domains = sorted({one.domain for one in federation_in(entry.data).domains})
    return f"believed are {_first_of(domains)}" if domains else "no foreign trust domain is believed"


def _document_line(entry: Entry) -> str:
    document = document_in(entry.data)
    return f"version {document.version} of the root's document, {quorum_in_words(document.witnesses)}"


_READERS: Final[Mapping[str, Callable[[Entry], str]]] = {
    FEDERATION_SET: _federation_line,
    REGISTRY_CREATED: _document_line,
    REGISTRY_KEYS_ISSUED: _document_line,
}


def _federation_changes(before: Federation, after: Federation) -> Iterable[str]:
    known = {one.root: one for one in before.domains}
    for one in after.domains:
        was, name = known.get(one.root), f"{one.domain} under the root {one.root}"
        if was is None or was.domain != one.domain:
            yield f"{name} is believed from here on: {terms_in_words(one)}"
        elif was != one:
            urls = "" if was.urls == one.urls else f"; its URLs are {_first_of(one.urls)}"
            yield f"{name} is believed on other terms: {terms_in_words(one)}{urls}"
    kept = {(one.domain, one.root) for one in after.domains}
    for one in before.domains:
        if (one.domain, one.root) not in kept:
            yield f"{one.domain} under the root {one.root} is not believed any more"


def _document_change(before: RegistryKeys | None, after: RegistryKeys) -> str:
    quorum = after.witnesses
    if before is not None and before.witnesses != quorum:
        said = f"{quorum_in_words(quorum)}; before: {quorum_in_words(before.witnesses)}"
    else:
        said = quorum_in_words(quorum) + ("" if before is None else ", as before")
    return f"version {after.version} of the root's document, {said}"


def _first_of(names: Iterable[str]) -> str:
    each = list(names)
    more = len(each) - _NAMED
    return ", ".join(each if more <= 0 else [*each[:_NAMED], f"and {more} more"])
