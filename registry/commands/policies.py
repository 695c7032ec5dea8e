"""``peerseal-registry policy …`` and ``domain …``: who may call whom, and the settings of the whole domain."""

import json
from collections.abc import Iterable
from typing import IO, Any

import click

from peerseal.errors import CodedError, MalformedToken
from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.names import check_service, qualify, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.runtime.terminal import folded, say
from registry.commands.common import WholeNumber, json_option, operator_client, show, url_option, without_mark
from registry.commands.operator_client import OperatorClient, keys_of
from registry.domain.errors import BadRequest
from registry.domain.federation import unbelieved
from registry.domain.policy import explain, explain_domain, settings_from

DENIED = 1


def if_match_option(command: Any) -> Any:
    """``--if-match``, as ``seen``."""
    text = "Only if ENTRY set the current value (0 for none), as `get --json` shows.  [default: any]"
    return click.option("--if-match", "seen", metavar="ENTRY", type=WholeNumber(0), help=text)(command)


_LARGEST = 1024 * 1024
"""Bytes of a file that are read; a registry accepts fewer."""


@click.group()
def policy() -> None:
    """Who may call a service. A call is allowed only if both the service's policy and its code allow it."""


@policy.command("get")
@click.argument("service")
@url_option
@json_option
def get_policy(service: str, url: str | None, as_json: bool) -> None:
    """Prints the policy of SERVICE."""
    _show(operator_client(url).setting(check_service(service)), as_json)


@policy.command("set")
@click.argument("service")
@click.option(
    "--allow",
    "rules",
    multiple=True,
    metavar="CALLER[=SCOPES]",
    help="A caller, or *; scopes separated by blanks.",
)
@click.option("--restricted", is_flag=True, help="Show the policy only to SERVICE and to the services that it names.")
@click.option("--file", "file", type=click.File("rb"), help="The policy as a JSON file instead; - for standard input.")
@if_match_option
@url_option
@json_option
def set_policy(
    service: str,
    rules: tuple[str, ...],
    restricted: bool,
    file: IO[bytes] | None,
    seen: int | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Replaces the policy of SERVICE.

    Without --allow no service may call it.
    """
    if file is not None and (rules or restricted):
        raise click.UsageError("--file excludes --allow and --restricted: use one of the two")
    body = {"allow": _allow(rules), "restricted": restricted} if file is None else _read(file)
    _show(_set_policy(service, body, seen, url), as_json)


@policy.command("remove")
@click.argument("service")
@if_match_option
@url_option
@json_option
def remove_policy(service: str, seen: int | None, url: str | None, as_json: bool) -> None:
    """Removes the policy of SERVICE: its code alone decides."""
    _show(_set_policy(service, {"allow": None}, seen, url), as_json)


@policy.command("explain")
@click.argument("caller")
@click.argument("callee")
@click.argument("scope")
@url_option
@json_option
@click.pass_context
def explain_policy(
    context: click.Context, caller: str, callee: str, scope: str, url: str | None, as_json: bool
) -> None:
    """Shows which rule decides whether CALLER may use SCOPE at CALLEE. Exit code 0 if it may, 1 if not.

    The code of CALLEE, which the registry does not know, must allow the call too.
    """
    client = operator_client(url)
    domain = client.trust_domain()
    callee, caller = qualify(callee, domain), qualify(caller, domain)
    if split_service_id(callee)[0] != domain:
        raise BadRequest("foreign_service", f"{callee} is of another trust domain, expected {domain}")
    found = client.setting(split_service_id(callee)[1])
    policy = None if found["setting"]["allow"] is None else CallPolicy.from_json(found["setting"])
    foreign = split_service_id(caller)[0] != domain
    federation = client.federation().value if foreign else Federation()
    why = explain(policy, found["entry"], caller, callee, scope, federation)
    asked = {"caller": caller, "callee": callee, "scope": scope}
    answer = {"allowed": why.allowed, "rule": why.rule, "entry": why.entry, "reason": why.reason}
    show({**asked, **answer}, as_json, folded(why.reason))
    context.exit(0 if why.allowed else DENIED)


@click.group()
def domain() -> None:
    """The domain's settings: who may mint transaction tokens, who issues users' tokens, and what they may be used
    for."""


@domain.command("get")
@url_option
@json_option
def get_domain(url: str | None, as_json: bool) -> None:
    """Prints the domain's settings."""
    _show(operator_client(url).setting(None), as_json)


@domain.command("set")
@click.argument("file", type=click.File("rb"))
@if_match_option
@url_option
@json_option
def set_domain(file: IO[bytes], seen: int | None, url: str | None, as_json: bool) -> None:
    """Replaces the domain's settings by the JSON in FILE (- for standard input).

    {"minters": [service…],
    "issuers": [{"issuer", "audience", "jwks_url"?, "jwks"?, "ca"?, "introspection_url"?, "introspection_signed"?,
    "introspect_jwts"?}…], "exchange"?: {client: {audience: [scope…]}}, "derived_scopes"?: [{"minter": service,
    "from": scope, "to": [scope…]}…], "access_tokens"?: {name: {"audience": URI, "services": [service…], "scopes":
    [scope…], "lifetime"?: seconds}}}."""
    client, body = operator_client(url), _read(file)
    settings_from(body, client.trust_domain())  # checked here: a refusal over HTTP has a code and no detail
    entry = client.setting(None)["entry"] if seen is None else seen
    _show(client.change_setting(None, body, entry), as_json)


@domain.command("explain")
@url_option
@json_option
def explain_settings(url: str | None, as_json: bool) -> None:
    """Explains in sentences who may mint, which issuers are trusted, and what each derived scope allows."""
    found = operator_client(url).setting(None)
    sentences = explain_domain(DomainSettings.from_json(found["setting"]), found["entry"])
    show({**found, "sentences": sentences}, as_json, folded("\n".join(sentences)))


def _set_policy(service: str, body: dict[str, Any], seen: int | None, url: str | None) -> dict[str, Any]:
    client, name = operator_client(url), check_service(service)
    entry = client.setting(name)["entry"] if seen is None else seen
    done = client.change_setting(name, body, entry)
    if done["setting"]["allow"] is not None and not _is_known(client, name):
        say(f"warning: no key of {name} was ever registered; is that the service's name?", error=True)
    for domain in unbelieved(done["setting"]["allow"] or (), client.trust_domain(), lambda: client.federation().value):
        say(f"warning: {domain} is not believed, so none of its services may call", error=True)
    return done


def _is_known(client: OperatorClient, service: str) -> bool:
    try:
        return next(client.rows(keys_of(service)), None) is not None
    except CodedError as error:
        if error.code != "service_not_found":
            raise
        return False


def _allow(rules: Iterable[str]) -> dict[str, list[str]]:
    """Callers with their scopes. Raises click.UsageError for a caller that is given twice."""
    allow: dict[str, list[str]] = {}
    for rule in rules:
        caller, _, scopes = rule.partition("=")
        if caller in allow:
            raise click.UsageError(f"--allow {caller} is given twice")
        allow[caller] = scopes.split()
    return allow


def _read(file: IO[bytes]) -> dict[str, Any]:
    """Raises BadRequest."""
    try:
        return strict_json_object(without_mark(file.read(_LARGEST)))
    except MalformedToken as error:
        raise BadRequest("malformed_body", str(error)) from error


def _show(found: dict[str, Any], as_json: bool) -> None:
    """Prints ``{"entry", "setting"}``."""
    entry, setting = found["entry"], found["setting"]
    text = json.dumps(setting, indent=2) if entry else f"none set: {json.dumps(setting)}"
    show(found, as_json, text)
