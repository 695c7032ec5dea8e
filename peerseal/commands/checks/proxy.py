"""The check of what stands in front of the service: it calls itself through the URL that others use.

A refusal does not say which target arrived. So where the target is not the signed one, the check signs others: the
target without its first segments, as a proxy that strips a prefix sends it on. The first one that is accepted names
the prefix. All calls are GET, and one that is signed for another target reaches no view.
"""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from peerseal.commands.checks.finding import Finding, error, ok, warning
from peerseal.commands.checks.host import Host
from peerseal.commands.tokens import target_of
from peerseal.errors import BadTransactionToken, FetchError, InsufficientScope, MalformedToken
from peerseal.identity.key_folder import StoredKey
from peerseal.identity.signing import request_token
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.names import qualify
from peerseal.refusals import REFUSALS
from peerseal.session.problem import MAX_PROBLEM
from peerseal.transport.fetch import Answer, no_larger_than
from peerseal.wsgi_environ import MAX_BODY

_MOST_SEGMENTS: Final = 6
_PREFIX: Final = "PEERSEAL_EXTERNAL_PREFIX"

_REMEDIES: Final = {
    "missing_token": ("the token does not arrive", "let the proxy pass the header Authorization on"),
    "malformed_token": ("the token arrives altered", "let the proxy pass the header Authorization on as it is"),
    "wrong_audience": ("another service answers", "correct the URL, or PEERSEAL_SERVICE on one of both sides"),
    "replayed": ("the call arrives twice", "turn off the proxy's retries (proxy_next_upstream off)"),
    "unknown_key": ("the service does not know this key", "compare PEERSEAL_REGISTRY_URL of both sides"),
    "revoked_key": ("the key was revoked", "give this service an empty PEERSEAL_KEY_DIR and a new join token"),
    "expired": ("the service's clock is ahead of this host's", "synchronise both clocks (NTP)"),
    "not_yet_valid": ("the service's clock is behind this host's", "synchronise both clocks (NTP)"),
    "trust_unavailable": ("the service cannot decide now", "run the doctor there: it does not reach the registry"),
}
"""What an answer with that code means here, and what to do."""
_REFUSALS: Final = {kind.code for base in REFUSALS for kind in (base, *base.__subclasses__())}
_AFTER_BINDING: Final = (BadTransactionToken.code, InsufficientScope.code)
"""The codes of later steps than the one that compares the target."""
_ARRIVED: Final = (404, 405)
"""What else than 2xx and 3xx a router answers after the check: a call without a token got 401 there."""


def check_proxy(host: Host) -> Iterator[Finding]:
    """A signed call through the external URL arrives as it was signed."""
    if host.external_url is None:
        return
    key, url = host.signing_key, host.external_url
    if key is None or host.service is None:
        why, remedy = host.no_key
        yield warning(f"{url} is not called: {why}", remedy)
        return
    target = target_of(url)
    try:
        if _code(_call(host, url, {})) != "missing_token":
            yield warning(
                f"{url} answers without a token too: what arrives cannot be seen",
                "name a path that needs a token; without report_only, a call without one gets 401 missing_token",
            )
            return
        answer = _call(host, url, _signed(host, key, target))
        code = _code(answer)
        yield _prefix_of(host, key, target) if code == "wrong_binding" else _finding_of(host, answer, code)
    except FetchError as failed:
        yield error(f"{url} is not reached: {failed}", "check the host and port, and that the proxy and service run")


def _finding_of(host: Host, answer: Answer, code: str | None) -> Finding:
    if code == "caller_not_allowed":
        found = f"{host.external_url} reaches a service that does not allow {host.service} to call it"
        return warning(f"{found}{_log_line(answer)}", f"for this check, add {host.service!r}: set() to its allow=")
    if code in _REMEDIES:
        meaning, remedy = _REMEDIES[code]
        return error(f"{host.external_url}: {meaning} ({answer.status} {code}){_log_line(answer)}", remedy)
    if code in _REFUSALS and code not in _AFTER_BINDING:
        found = f"{host.external_url}: the call is refused ({answer.status} {code}){_log_line(answer)}"
        return error(found, "docs/reference/errors.md has the causes of this code")
    if code not in _AFTER_BINDING and answer.status >= 400 and answer.status not in _ARRIVED:
        return warning(
            f"{host.external_url} answers {answer.status}, which does not tell whether the call arrives as signed",
            "name a path that answers GET with 200; a server in front may limit headers, and a token has about 1 KiB",
        )
    return ok(f"{host.external_url}: the call arrives as it was signed ({answer.status}{f' {code}' if code else ''})")


def _prefix_of(host: Host, key: StoredKey, target: str) -> Finding:
    """Which prefix the proxy strips, or does not strip although the service expects it."""
    url = str(host.external_url)
    for prefix, rest in _stripped(target):
        if _code(_call(host, url, _signed(host, key, rest))) != "wrong_binding":
            return error(f"{url}: the service gets {rest}, without {prefix}", f"set {_PREFIX}={prefix} for the service")
    configured = host.settings.text(_PREFIX)
    if configured and _code(_call(host, url, _signed(host, key, configured + target))) != "wrong_binding":
        return error(
            f"{url}: the service gets {target}, and expects that a proxy strips {configured}",
            f"unset {_PREFIX}, or let the proxy strip it",
        )
    return error(
        f"{url}: method, path or headers arrive altered (wrong_binding)",
        "let the proxy pass the path and query on as they are: docs/reference/on-the-wire.md",
    )


def _stripped(target: str) -> Iterator[tuple[str, str]]:
    """Each prefix of whole segments, and the target without it."""
    path, mark, query = target.partition("?")
    segments = path.split("/")[1:]
    for count in range(1, min(len(segments), _MOST_SEGMENTS) + 1):
        rest = "/" + "/".join(segments[count:])
        yield "/" + "/".join(segments[:count]), f"{rest}{mark}{query}"


def _signed(host: Host, key: StoredKey, target: str) -> dict[str, str]:
    audience = qualify(str(host.service), key.domain)
    return {"Authorization": f"Bearer {request_token(key, audience, method='GET', target=target, now=host.now())}"}


def _call(host: Host, url: str, headers: dict[str, str]) -> Answer:
    """The answer. Raises FetchError."""
    parts = urlsplit(url)
    with no_larger_than(MAX_BODY):
        return host.connect(f"{parts.scheme}://{parts.netloc}").call("GET", target_of(url), headers=headers)


def _code(answer: Answer) -> str | None:
    """The code of a refusal of ours; None for every other answer."""
    try:
        code = strict_json_object(answer.body).get("code") if len(answer.body) <= MAX_PROBLEM else None
    except MalformedToken:
        return None
    return code if isinstance(code, str) and answer.status >= 400 else None


def _log_line(answer: Answer) -> str:
    """Which line of the service's log says more."""
    found = answer.headers.get("x-request-id")
    return f"; its log says more at request {found:.64}" if found else ""
