"""A policy as an operator types it, as rows or as JSON, and how it differs from another one."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from werkzeug.datastructures import MultiDict

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import canonical_json, natural, strict_json_object
from peerseal.protocol.policies import CallPolicy
from registry.domain.errors import BadRequest
from registry.domain.policy import policy_from
from registry.services.documents.policies import setting_members

ROWS, JSON = "rows", "json"
"""The two ways to type a policy."""
_AROUND = 3
"""Unchanged lines that a difference shows around changed ones."""


class Row(NamedTuple):
    """A caller, and its scopes with blanks between them."""

    caller: str
    scopes: str


class Line(NamedTuple):
    """A line of a difference. ``mark`` is ``+``, ``-``, a blank for an unchanged line, or ``…`` for omitted ones."""

    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What was typed, ``how`` it was typed, and the entry of the policy that the operator saw; 0 for none."""

    how: str
    rows: Sequence[Row]
    restricted: bool
    text: str
    seen: int

    @classmethod
    def of(cls, policy: CallPolicy | None, seen: int, how: str = ROWS) -> "Draft":
        """The draft that says the same as a policy."""
        rows = [] if policy is None else [Row(who, " ".join(sorted(policy.allow[who]))) for who in sorted(policy.allow)]
        return cls(how, rows, policy is not None and policy.restricted, readable(setting_members(policy)), seen)

    @classmethod
    def read(cls, form: MultiDict[str, str]) -> "Draft":
        """From the editor's form. Raises BadRequest for a form that the editor does not send."""
        callers, scopes = form.getlist("caller"), form.getlist("scopes")
        seen = natural(form.get("seen", ""))
        if len(callers) != len(scopes) or seen is None:
            raise BadRequest("malformed_body", "the form is not complete: open the page of the policy again")
        rows = [Row(caller.strip(), granted.strip()) for caller, granted in zip(callers, scopes, strict=True)]
        how = JSON if form.get("how") == JSON else ROWS
        return cls(how, [row for row in rows if any(row)], "restricted" in form, form.get("policy", ""), seen)

    def policy(self, domain: str) -> CallPolicy | None:
        """The policy that it says. Raises BadRequest."""
        return policy_from(self._body(), domain)

    def _body(self) -> dict[str, Any]:
        if self.how == JSON:
            try:
                return strict_json_object(self.text.encode("utf-8"))
            except (MalformedToken, UnicodeEncodeError) as error:
                raise BadRequest("malformed_body", f"the JSON cannot be read: {error}") from error
        allow: dict[str, list[str]] = {}
        for caller, scopes in self.rows:
            if not caller:
                raise BadRequest("malformed_body", f"a row has scopes ({scopes:.60}) and no caller")
            if caller in allow:
                raise BadRequest("malformed_body", f"the caller {caller:.120} is given twice")
            allow[caller] = scopes.split()
        return {"allow": allow, "restricted": self.restricted}


INDENTED: Final = 32 * 1024
"""Bytes of a setting that is shown with indentation. A longer one would not fit into a form with it."""


def readable(members: Mapping[str, Any]) -> str:
    """A setting for a text area, with indentation; a long one with a line for each of its members."""
    text = json.dumps(members, indent=2, ensure_ascii=False)
    if len(text.encode("utf-8")) <= INDENTED:
        return text
    lines = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in members.items())
    return "{" + ",\n ".join(lines) + "}"


def text_of(policy: CallPolicy | None) -> str:
    """The policy as `peerseal-registry policy get` prints it."""
    return json.dumps(setting_members(policy), indent=2)


def plain_of(policy: CallPolicy | None) -> str:
    """The policy in one line of JSON, for a hidden field."""
    return canonical_json(setting_members(policy)).decode("utf-8")


def difference(before: CallPolicy | None, after: CallPolicy | None) -> list[Line]:
    """What has to be changed in one policy to get the other; empty where they are equal."""
    return list(_difference(_lines(before), _lines(after)))


def _lines(policy: CallPolicy | None) -> list[str]:
    """Without the commas at their ends: a new last scope would change the line before it."""
    return [line.removesuffix(",") for line in text_of(policy).splitlines()]


def _difference(before: list[str], after: list[str]) -> Iterator[Line]:
    lines = difflib.unified_diff(before, after, lineterm="", n=_AROUND)
    for number, line in enumerate(list(lines)[2:]):  # the first two name files
        if not line.startswith("@@"):
            yield Line(line[0], line[1:])
        elif number:
            yield Line("…", "")
