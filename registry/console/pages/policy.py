"""The policy of a service: who may call it. It is edited as rows or as JSON, reviewed, and then saved, unless it was
changed meanwhile."""

from collections.abc import Mapping

from flask import Blueprint, Response, flash, request

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.names import check_scope, qualify, service_id
from peerseal.protocol.policies import CallPolicy
from registry.console.policy_draft import JSON, Draft, difference, plain_of, text_of
from registry.console.rendering import link, page, redirect
from registry.console.request import act, operator
from registry.domain.admission import check_registrable
from registry.domain.errors import BadRequest, PreconditionFailed
from registry.domain.policy import Explanation, explain
from registry.services.access.operators import Role
from registry.services.documents.policies import Setting, setting_members
from registry.web.wire import parameter, registry

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
    asked = _Asked(parameter("caller") or "", parameter("scope") or "")
    return _editor(service, stored, Draft.of(stored.value, stored.seq), asked=asked.of(service, stored))


@blueprint.post(f"{_PATH}/edit")
def edit(service: str) -> Response:
    """The editor with what was typed, which it checks, and shows in both forms. Nothing is changed."""
    operator(Role.OPERATOR)
    stored, draft = _stored(service), Draft.read(request.form)
    try:
        typed = draft.policy(_domain())
    except BadRequest as error:
        return _editor(service, stored, draft, refused=error)
    asked = _Asked(request.form.get("asked_caller", ""), request.form.get("asked_scope", ""), typed=True)
    found = asked.of(service, Setting(draft.seen, typed)) if "explain" in request.form else asked
    return _editor(service, stored, Draft.of(typed, draft.seen, draft.how), asked=found)


@blueprint.post(f"{_PATH}/review")
def review(service: str) -> Response:
    """What saving would change."""
    operator(Role.OPERATOR)
    stored, draft = _stored(service), Draft.read(request.form)
    try:
        typed = draft.policy(_domain())
    except BadRequest as error:
        return _editor(service, stored, draft, refused=error)
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


class _Asked:
    """The question whether a caller may use a scope, and its answer."""

    def __init__(self, caller: str, scope: str, *, typed: bool = False) -> None:
        self.caller, self.scope, self.typed = caller.strip(), scope.strip(), typed
        self.answer: Explanation | None = None
        self.refused = ""

    def of(self, service: str, setting: Stored) -> "_Asked":
        """With the answer by a policy, or with what is wrong with the question."""
        domain = _domain()
        try:
            caller, scope = qualify(self.caller, domain), check_scope(self.scope)
        except (InvalidName, MalformedToken) as error:
            self.refused = str(error)
        else:
            self.answer = explain(setting.value, setting.seq, caller, service_id(domain, service), scope)
        return self


def _domain() -> str:
    return registry().authority.current().domain


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
        asked=asked or _Asked("", ""),
        refused=refused,
        known=registry().records.has_keys(service),
        removal=plain_of(None),
        terminal=(
            f"peerseal-registry policy get {service}",
            f"peerseal-registry policy set {service} --if-match {stored.seq} --allow 'CALLER=SCOPE SCOPE'",
            f"peerseal-registry policy explain CALLER {service} SCOPE",
        ),
    )


def _review(service: str, stored: Stored, typed: CallPolicy | None, *, conflict: bool, status: int = 200) -> Response:
    """What saving would change. ``conflict``: the operator saw an earlier policy than the one in force."""
    return page(
        "policy_review.html",
        status,
        service=service,
        stored=stored,
        typed=typed,
        conflict=conflict,
        lines=difference(stored.value, typed),
        policy=plain_of(typed),
        texts=(text_of(stored.value), text_of(typed)),
        terminal=(f"peerseal-registry policy set {service} --if-match {stored.seq} --file policy.json",),
    )
