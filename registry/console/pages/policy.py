"""The policy of a service: who may call it. It is edited as rows or as JSON, reviewed, and then saved, unless it was
changed meanwhile."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps

from flask import Blueprint, Response, flash, request

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.names import check_scope, qualify, service_id
from peerseal.protocol.policies import CallPolicy
from registry.console.policy_draft import JSON, Draft, difference, plain_of, text_of
from registry.console.rendering import link, page, redirect
from registry.console.request import act, operator
from registry.domain.admission import check_registrable
from registry.domain.errors import BadRequest, PreconditionFailed
from registry.domain.federation import unbelieved
from registry.domain.policy import Explanation, explain
from registry.services.access.operators import Role
from registry.services.documents.policies import Setting, setting_members
from registry.web.wire import parameter, private_json, registry

blueprint = Blueprint("policy", __name__)

_PATH = "/services/<service>/policy"
Stored = Setting[CallPolicy | None]


@blueprint.get(_PATH)
def show(service: str) -> Response:
    """The policy in force, and for operators the editor."""
    operator()
    stored = _stored(service)
    return _editor(service, stored, Draft.of(stored.value, stored.seq))


@blueprint.get(f"{_PATH}/explain")
def answer(service: str) -> Response:
    """Whether the policy in force lets ``?caller=`` use ``?scope=``."""
    operator()
    stored = _stored(service)
    asked = _ask(service, stored, parameter("caller") or "", parameter("scope") or "")
    return _editor(service, stored, Draft.of(stored.value, stored.seq), asked=asked)


def _with_typed(view: Callable[[str, Stored, Draft, CallPolicy | None], Response]) -> Callable[[str], Response]:
    """A view of the policy that was typed, for operators. What is no policy is shown in the editor, with its error."""

    @wraps(view)
    def checked(service: str) -> Response:
        operator(Role.OPERATOR)
        stored, draft = _stored(service), Draft.read(request.form)
        try:
            typed = draft.policy(_domain())
        except BadRequest as error:
            return _editor(service, stored, draft, refused=error)
        return view(service, stored, draft, typed)

    return checked


@blueprint.post(f"{_PATH}/edit")
@_with_typed
def edit(service: str, stored: Stored, draft: Draft, typed: CallPolicy | None) -> Response:
    """The editor with what was typed, which it checks, and shows in both forms. Nothing is changed."""
    asked = _ask_typed(service, draft, typed) if "explain" in request.form else None
    return _editor(service, stored, Draft.of(typed, draft.seen, draft.how), asked=asked)


@blueprint.post(f"{_PATH}/try")
def answer_live(service: str) -> Response:
    """``{"allowed", "said"}``: the answer of `edit` to a question, for the page's script."""
    operator(Role.OPERATOR)
    draft = Draft.read(request.form)
    try:
        typed = draft.policy(_domain())
    except BadRequest as error:
        return private_json({"allowed": False, "said": f"The policy as typed is not valid: {error}"})
    asked = _ask_typed(check_registrable(service), draft, typed)
    return private_json({"allowed": asked.allowed, "said": asked.said})


@blueprint.post(f"{_PATH}/review")
@_with_typed
def review(service: str, stored: Stored, draft: Draft, typed: CallPolicy | None) -> Response:
    """What saving would change."""
    return _review(service, stored, typed, conflict=stored.seq != draft.seen)


@blueprint.post(_PATH)
def save(service: str) -> Response:
    """Saves what was reviewed, in place of the policy that the operator saw."""
    by, draft = act(), Draft.read(request.form)
    try:
        typed = draft.policy(_domain())
        done = _saved(service, typed, draft.seen, by)
    except BadRequest as error:
        return _editor(service, _stored(service), draft, refused=error)
    if done is None:
        return _review(service, _stored(service), typed, conflict=True, status=PreconditionFailed.status)
    flash(f"The policy of {service} is {f'that of entry {done.seq}' if done.seq else 'removed'}.", "done")
    return redirect(link("console.policy.show", service=service))


def _saved(service: str, typed: CallPolicy | None, seen: int, by: Mapping[str, str]) -> Stored | None:
    """The policy in force, which is the one that was typed; None where another one was set since ``seen``."""
    try:
        return registry().policies.set_policy(service, setting_members(typed), {seen}, by)
    except PreconditionFailed:
        stored = _stored(service)
        return stored if stored.value == typed else None  # the same form, sent twice


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question, whether the policy that is ``typed`` or the one in force, and what the answer says, if any."""

    caller: str = ""
    scope: str = ""
    typed: bool = False
    allowed: bool = False
    said: str = ""


def _ask(service: str, setting: Stored, caller: str, scope: str, *, typed: bool = False) -> _Asked:
    """Whether the caller may use the scope by that policy, or what is wrong with the question."""
    asked, domain = _Asked(caller.strip(), scope.strip(), typed), _domain()
    try:
        names = qualify(asked.caller, domain), service_id(domain, service), check_scope(asked.scope)
    except (InvalidName, MalformedToken) as error:
        return replace(asked, said=f"Not a question: {error}.")
    why = explain(setting.value, setting.seq, *names, federation=registry().federations.current().value)
    reason = _typed_reason(setting.value, why) if typed else why.reason
    return replace(asked, allowed=why.allowed, said=f"{'Yes' if why.allowed else 'No'}: {reason}.")


def _typed_reason(policy: CallPolicy | None, why: Explanation) -> str:
    """Without the number of an entry: a policy that is not saved has none."""
    if why.by_federation:
        return why.reason
    if policy is None:
        return "there is no policy, so what the code of the service allows decides"
    if why.rule is None:
        return "no rule, as typed, names this caller"
    return f"the rule for {why.rule}, as typed, {'has' if why.allowed else 'does not have'} this scope"


def _ask_typed(service: str, draft: Draft, policy: CallPolicy | None) -> _Asked:
    caller, scope = (request.form.get(name, "") for name in ("asked_caller", "asked_scope"))
    return _ask(service, Setting(draft.seen, policy), caller, scope, typed=True)


def _domain() -> str:
    return registry().authority.in_force().domain


def _stored(service: str) -> Stored:
    """The policy in force. Raises InvalidName."""
    return registry().policies.policy(check_registrable(service))


def _editor(
    service: str, stored: Stored, draft: Draft, *, asked: _Asked | None = None, refused: BadRequest | None = None
) -> Response:
    return page(
        "policy.html",
        200 if refused is None else refused.status,
        service=service,
        stored=stored,
        stored_draft=Draft.of(stored.value, stored.seq),
        draft=draft,
        json=draft.how == JSON,
        asked=asked or _Asked(),
        refused=refused,
        known=registry().records.has_keys(service),
        removal=plain_of(None),
        terminal=(
            f"peerseal-registry policy get {service}",
            f"peerseal-registry policy set {service} --if-match {stored.seq} --allow 'CALLER=SCOPE SCOPE'",
            f"peerseal-registry policy explain CALLER {service} SCOPE",
        ),
    )


def _unbelieved(typed: CallPolicy | None) -> list[str]:
    """Foreign domains that the policy names and the federation does not."""
    allow = () if typed is None else typed.allow
    return unbelieved(allow, _domain(), lambda: registry().federations.current().value)


def _review(service: str, stored: Stored, typed: CallPolicy | None, *, conflict: bool, status: int = 200) -> Response:
    """What saving would change. ``conflict``: the operator saw an earlier policy than the one in force."""
    return page(
        "policy_review.html",
        status,
        service=service,
        stored=stored,
        typed=typed,
        conflict=conflict,
        unbelieved=_unbelieved(typed),
        lines=difference(stored.value, typed),
        policy=plain_of(typed),
        texts=(text_of(stored.value), text_of(typed)),
        terminal=(f"peerseal-registry policy set {service} --if-match {stored.seq} --file policy.json",),
    )
