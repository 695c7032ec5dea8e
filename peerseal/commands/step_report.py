"""What ``peerseal verify`` shows: the steps of one verification, and at which of them it ended.

The verifiers raise an error that names its step (`PeersealError.step`). All steps before that one hold, and no step
after it was reached.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from peerseal.commands.tokens import wrapped
from peerseal.errors import DocumentRefused, FetchError, Forbidden, PeersealError, TokenError, TrustUnavailable

Facts = Mapping[str, str]
"""Values by the names under which they are shown."""


class Result(StrEnum):
    """How a step ended."""

    HOLDS = "holds"
    REFUSED = "refused"
    NOT_REACHED = "not reached"
    NOT_TRIED = "not tried"


MARKS: Final = {Result.HOLDS: "✓", Result.REFUSED: "✗", Result.NOT_REACHED: "–", Result.NOT_TRIED: "–"}
ASCII_MARKS: Final = {Result.HOLDS: "ok", Result.REFUSED: "NO", Result.NOT_REACHED: "--", Result.NOT_TRIED: "--"}
"""For a terminal whose encoding lacks those of `MARKS`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of token or document: the titles of its steps by number; for a step that is not tried, the reason; and the
    steps of the errors that name none, by code."""

    name: str
    titles: Mapping[int, str]
    untried: Mapping[int, str] = field(default_factory=dict)
    codes: Mapping[str, int] = field(default_factory=dict)

    def step_of(self, error: PeersealError) -> int | None:
        """The step that raised the error; None for an error that no step raises."""
        return self.codes.get(error.code, error.step)


BINDING: Final = 8
"""The number of the step that compares what was signed with what was received."""
_SYNTAX: Final = {1: "size and strict syntax", 2: "header: typ, alg, kid; members and types of the claims"}
_SIGNED: Final = {4: "alg is the key's; signature", 7: "times, lifetime, the key's window"}

REQUEST: Final = Kind(
    "request token",
    {
        **_SYNTAX,
        3: "the caller may call here; its key, by kid",
        **_SIGNED,
        5: "iss and sub are the key's owner",
        6: "aud is this service",
        8: "binding: method, target, headers, body",
        9: "transaction token, if any",
        10: "scope",
        11: "replay",
    },
    {11: "the token is left unused"},
)
EVENT: Final = Kind(
    "event token",
    {
        **_SYNTAX,
        3: "the publisher may send here; its key, by kid",
        **_SIGNED,
        5: "iss is the key's owner",
        6: "aud is this audience of consumers",
        8: "binding: topic, payload, event, transaction",
        9: "transaction token",
        10: "scope",
        11: "replay",
    },
    {9: "an event has none", 11: "consumers count an event once, by iss and event_id"},
)
TRANSACTION: Final = Kind(
    "transaction token",
    {
        **_SYNTAX,
        3: "the signer is one of the domain's minters; its key, by kid",
        **_SIGNED,
        5: "iss is the key's owner",
        6: "aud is the trust domain",
        8: "binding",
        9: "transaction token",
        10: "a derived scope is one that the domain's settings grant",
        11: "replay",
    },
    {8: "a request token binds it, by tth", 9: "this is one", 11: "it goes along with many requests"},
)
_DOCUMENT_CODES: Final = {
    1: ("document_malformed", "document_wrong_type"),
    2: ("document_unknown_signer", "document_bad_signature", "document_wrong_root", "trust_unavailable"),
    3: ("document_wrong_issuer",),
    4: ("document_from_future", "document_expired", "document_stale"),
    5: ("document_wrong_subject", "document_wrong_part"),
    6: (
        *("document_bad_checkpoint", "document_not_in_ledger", "document_inconsistent", "document_rolled_back"),
        *("document_revived_key", "document_unwitnessed", "fetch_failed", "answer_too_large", "answer_too_slow"),
    ),
}
DOCUMENT: Final = Kind(
    "document",
    {
        1: "size, strict syntax, typ",
        2: "signed by a key that the pinned root names, or by the root",
        3: "iss is this registry",
        4: "times",
        5: "sub",
        6: "place in the ledger, which continues the one seen before",
    },
    codes={code: step for step, codes in _DOCUMENT_CODES.items() for code in codes},
)

REMEDIES: Final[Mapping[str, str]] = {
    "missing_token": "Call through a session of the SDK, or give the Authorization header.",
    "malformed_token": "Give the whole token, unchanged. Sign with the SDK.",
    "wrong_type": "Each kind of token is good in one place only: see peerseal inspect.",
    "unknown_key": "Compare PEERSEAL_REGISTRY_URL of caller and callee; register the key.",
    "revoked_key": "Give the caller a new join token and an empty key folder.",
    "bad_signature": "The token was altered, or signed with another key than its kid names.",
    "wrong_issuer": "The signer must sign in its own name: correct iss and sub.",
    "wrong_audience": "Name the right audience where the token is signed, or call its URL.",
    "expired": "Sign when you send; synchronise the clocks of both hosts.",
    "not_yet_valid": "Synchronise the clocks of both hosts.",
    "lifetime_too_long": "Sign with an earlier exp.",
    "wrong_binding": "Send what was signed. A proxy may have changed it: see PEERSEAL_EXTERNAL_PREFIX.",
    "replayed": "Sign each attempt.",
    "bad_transaction_token": "Pass the transaction token on unchanged, while it lasts.",
    "wrong_event": "Sign each event with its own event id.",
    "wrong_transaction": "Sign each event with its own transaction id.",
    "wrong_topic": "Publish on the topic that was signed.",
    "wrong_payload": "Send the bytes that were signed, not a second serialisation.",
    "caller_not_allowed": "Add the caller to allow= of the callee, and to the registry's policy.",
    "insufficient_scope": "Give the caller the scope in allow= and in the registry's policy.",
    "trust_unavailable": "Reach the registry at PEERSEAL_REGISTRY_URL; compare its pin with PEERSEAL_REGISTRY_PIN.",
    "split_view": "Two signed histories were seen: keep the evidence, and do what docs/how-to/split-view.md says.",
    "fetch_failed": "Reach the registry at PEERSEAL_REGISTRY_URL.",
}
"""What to do about a refusal, by code."""
_OF_A_DOCUMENT: Final = "Fetch the document again; compare PEERSEAL_REGISTRY_URL and the pin with the registry's."


@dataclass(frozen=True, slots=True)
class Report:
    """One verification. ``proven`` is empty where it was refused. ``error`` arose at the step ``refused_at``; both are
    None where all steps hold. ``notes`` say more about steps that hold, by number. ``differences`` are pairs of what
    was signed and what was received, by name."""

    kind: Kind
    proven: Facts = field(default_factory=dict)
    error: PeersealError | None = None
    refused_at: int | None = None
    notes: Mapping[int, str] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    @property
    def unreachable(self) -> bool:
        """Whether the registry was not reached, so that nothing is known about the token."""
        return isinstance(self.error, FetchError | TrustUnavailable)

    @property
    def remedy(self) -> str:
        """What to do; empty where all steps hold."""
        return "" if self.error is None else REMEDIES.get(self.error.code, _OF_A_DOCUMENT)

    def results(self) -> Iterator[tuple[int, str, Result]]:
        """Number, title and result of each step, in order."""
        for number, title in sorted(self.kind.titles.items()):
            if number in self.kind.untried:
                yield number, title, Result.NOT_TRIED
            elif self.refused_at is None or number < self.refused_at:
                yield number, title, Result.HOLDS
            else:
                yield number, title, Result.REFUSED if number == self.refused_at else Result.NOT_REACHED

    def to_json(self) -> dict[str, Any]:
        """``{"kind", "verified", "steps": [{"step", "title", "result", "note"}]}``, and ``proven``, or ``code``,
        ``detail``, ``remedy`` and ``differences``."""
        steps = [
            {"step": number, "title": title, "result": result.value, "note": self._note(number, result)}
            for number, title, result in self.results()
        ]
        found = {"kind": self.kind.name, "verified": self.error is None, "steps": steps}
        if self.error is None:
            return {**found, "proven": dict(self.proven)}
        differences = {name: {"signed": pair[0], "received": pair[1]} for name, pair in self.differences.items()}
        why = {"code": self.error.code, "detail": str(self.error), "remedy": self.remedy}
        return {**found, **why, "differences": differences}

    def lines(self, marks: Mapping[Result, str]) -> Iterator[str]:
        """What the command prints, for a terminal of 80 columns."""
        yield f"{self.kind.name}, {self._verdict()}"
        for number, title, result in self.results():
            start, note = f"{number:2} {marks[result]} ", self._note(number, result)
            note = f"not tried, {note}" if result is Result.NOT_TRIED else note
            yield from wrapped(start, f"{title} ({note})" if note else title)
            if result is Result.REFUSED:
                yield from self._why(" " * len(start))
        if self.proven:
            yield "proven"
            yield from _aligned("  ", self.proven)

    def _note(self, number: int, result: Result) -> str:
        notes = {Result.HOLDS: self.notes, Result.NOT_TRIED: self.kind.untried}.get(result, {})
        return notes.get(number, "")

    def _verdict(self) -> str:
        if self.error is None:
            return "VERIFIED"
        return f"{'UNDECIDED' if self.unreachable else 'REFUSED'}: {self.error.code}"

    def _why(self, indent: str) -> Iterator[str]:
        yield from wrapped(indent, str(self.error))
        for name, (signed, received) in self.differences.items():
            yield f"{indent}{name}:"
            yield from _aligned(indent, {"signed": signed, "received": received})
        yield from wrapped(f"{indent}-> ", self.remedy)


def _aligned(indent: str, facts: Facts) -> Iterator[str]:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        yield from wrapped(f"{indent}{name:{width}}  ", value)


def report(
    kind: Kind,
    verify: Callable[[], Facts],
    *,
    notes: Mapping[int, str] | None = None,
    differences: Callable[[], Mapping[str, tuple[str, str]]] = dict,
) -> Report:
    """What ``verify`` proves, or the step at which it is refused; ``differences`` is called for a refusal of a binding.
    Raises an error that is of no step."""
    try:
        return Report(kind, verify(), notes=notes or {})
    except (TokenError, Forbidden, TrustUnavailable, DocumentRefused, FetchError) as error:
        step = kind.step_of(error)
        if step is None:
            raise
        bound = differences() if step == BINDING else {}
        return Report(kind, error=error, refused_at=step, notes=notes or {}, differences=bound)
