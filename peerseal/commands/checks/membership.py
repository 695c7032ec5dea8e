"""Checks of what this service is at the registry: its join token, its keys and its policy."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from peerseal.commands.checks.finding import Finding, error, ok, warning
from peerseal.commands.checks.host import Asked, Host
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, TrustUnavailable
from peerseal.identity.enrolment import PlatformToken
from peerseal.identity.environment import absent_join_token
from peerseal.identity.key_folder import StoredKey
from peerseal.identity.signing import request_token
from peerseal.protocol.documents.key_set import ACTIVE, KeySetDocument
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.names import REGISTRY
from peerseal.transport.fetch import is_loopback

_SOON = 24 * 3600.0
_RENEW = "empty PEERSEAL_KEY_DIR, and give this service a new join token"
_COMPARE = "compare the clocks and the pin"
_READING = (FetchError, DocumentRefused, TrustUnavailable)


def check_join_token(host: Host) -> Iterator[Finding]:
    """There is a token for the first key, where there is no key yet. The registry says only at an enrolment for which
    service the token is, and whether it is used up."""
    make = f"`peerseal-registry join-token create {host.service or 'SERVICE'}` makes one"
    if host.keys_unreadable:
        why, remedy = host.no_key
        yield warning(f"whether one is needed is not known: {why}", remedy)
    elif host.signing_key is not None:
        yield ok("not needed: this host has a key")
    elif (file := host.settings.path("PEERSEAL_OIDC_TOKEN_FILE")) is not None:
        yield _finding_of_platform(file)
    elif absent := absent_join_token(host.environ):
        yield error(f"{absent}, and this host has no key", f"put a join token there; {make}")
    elif host.join_token is None:
        yield _without_join_token(host, make)
    else:
        yield ok(
            f"join token {host.join_token.id} is set; `peerseal-registry join-token list` says for which service,"
            " how often and until when"
        )


def _without_join_token(host: Host, make: str) -> Finding:
    """An error where no registry admits the first key: that of ``serve --dev`` does, and an operator admits a key that
    waits."""
    missing = "this host has no key, and PEERSEAL_JOIN_TOKEN is not set"
    if host.candidate is not None:
        return warning("PEERSEAL_JOIN_TOKEN is not set: an operator must approve the key of this host", make)
    if host.urls and all(map(is_loopback, host.urls)):
        return warning(f"{missing}: only a registry of `serve --dev` admits the service", make)
    return error(missing, make)


def _finding_of_platform(file: Path) -> Finding:
    """Whether the file has a platform's token. The registry says only at an enrolment whether it admits a service."""
    try:
        PlatformToken.in_file(file, "PEERSEAL_OIDC_TOKEN_FILE").text()
    except ConfigurationError as refused:
        return error(str(refused), "correct its name, or let the platform write it: the first start sends that token")
    return ok("not needed: PEERSEAL_OIDC_TOKEN_FILE names a platform's token")


def check_keys(host: Host) -> Iterator[Finding]:
    """The key that signs is good for some time, here and at the registry."""
    if host.service is None:
        return
    for refused in host.refused:
        said = f"the registry did not admit {refused.kid}, the last new key of this host"
        yield warning(said, "`peerseal rotate` makes another one, and says what the registry answers")
    key = host.stored.signing(host.now())
    if key is None:
        yield _without_key(host)
        if (candidate := host.candidate) is not None:
            yield _of_candidate(host, candidate)
        return
    left = key.expires_at - host.now()
    ends = f"{key.thumbprint} signs until {datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M}Z"
    if left < _SOON:
        yield warning(ends, "start the service, or run `peerseal assertion`, which replace the key")
    else:
        yield ok(ends)
    if host.registry is not None:
        yield _at_registry(host, host.registry, key)


def _of_candidate(host: Host, key: StoredKey) -> Finding:
    """What the registry says of a key that this host has made and not registered. A stranger's question does not tell
    the registry's answer to a key that waits from that to one that it never saw."""
    if host.registry is None:
        return warning(f"{key.kid} is not registered, as far as this host knows", "see the check of the registry")
    try:
        state = _statement(host, host.registry, key).state
    except FetchError as failed:
        if failed.http_status == 404:
            return warning(
                f"the registry has admitted no key {key.kid}: it was never sent there, was refused, or waits for an"
                " operator",
                "`peerseal join` sends it, and says what the registry answers; `peerseal-registry keys --pending` shows"
                " an operator whether it waits",
            )
        return warning(f"the registry does not say whether {key.kid} is good: {failed}", "see its check")
    except (DocumentRefused, TrustUnavailable) as refused:
        return error(f"the registry's statement about {key.kid} is refused: {refused}", _COMPARE)
    if state == ACTIVE:
        return warning(
            f"the registry says that {key.kid} is active, and this host has not noted it",
            "start the service, or run `peerseal join`: they note it, if the folder has room",
        )
    return error(f"the registry says that {key.kid} is {state}", _RENEW)


def _without_key(host: Host) -> Finding:
    """Whether the registry knows a key of this service, of another host or of before."""
    ended = [key for key in host.stored.keys if key.registered_at is not None]
    here = "each key on this host has ended" if ended else "this host has no registered key"
    own = None if host.registry is None else host.own_id(host.registry)
    if host.registry is not None and own is not None:
        try:
            path = f"/v1/services/{host.service}/jwks.jwt"
            host.trust(host.registry).document(
                KeySetDocument, path, own, witnessed=False
            )  # another check asks for them
        except FetchError as failed:
            if failed.http_status == 404:
                return warning(
                    f"{here}, and the registry knows no service {host.service}",
                    "normal before the first start; otherwise look for a typing mistake in PEERSEAL_SERVICE",
                )
        except (DocumentRefused, TrustUnavailable) as refused:
            return warning(f"{here}; the registry's key set is refused: {refused}", _COMPARE)
    return warning(here, "the first start registers one; it needs a join token or a platform's token")


def _at_registry(host: Host, registry: Asked, key: StoredKey) -> Finding:
    """What the registry says of the key."""
    if registry.keys is not None and key.domain != registry.keys.subject:
        return error(
            f"the key is of the domain {key.domain}, the registry of {registry.keys.subject}",
            "correct PEERSEAL_REGISTRY_URL, or give this service an empty PEERSEAL_KEY_DIR and a join token",
        )
    try:
        statement = _statement(host, registry, key)
    except FetchError as failed:
        if failed.http_status == 404:
            return error("the registry does not know this key", f"was it set up again? If so, {_RENEW}")
        return warning(f"the registry does not say whether the key is good: {failed}", "see the check of the registry")
    except (DocumentRefused, TrustUnavailable) as refused:
        return error(f"the registry's statement about the key is refused: {refused}", _COMPARE)
    if statement.state != ACTIVE:
        return error(f"the registry says that this key is {statement.state}", _RENEW)
    return ok("the registry says that this key is active")


def _statement(host: Host, registry: Asked, key: StoredKey) -> KeyStatement:
    """What the registry signs about the key. Raises FetchError, DocumentRefused or TrustUnavailable."""
    path = f"/v1/services/{host.service}/keys/{key.thumbprint}.jwt"
    return host.trust(registry).document(KeyStatement, path, key.owner, witnessed=False)


def check_policy(host: Host) -> Iterator[Finding]:
    """Who may call this service, as the registry's policy says."""
    registry = host.registry
    own = None if registry is None else host.own_id(registry)
    if registry is None or own is None:
        return
    trust, path = host.trust(registry), f"/v1/services/{host.service}/policy.jwt"
    try:
        document = trust.document(
            PolicyDocument, path, own, headers=lambda to: _signed(host, trust.fetcher.target(to)), witnessed=False
        )
    except _READING as failed:
        yield _unreadable(host, failed)
        return
    if document.policy is None:
        yield ok("the registry has no policy for this service: its own allow= decides")
        return
    callers = document.policy.allow
    named = ", ".join(
        f"{caller} ({' '.join(sorted(scopes)) or 'no scope'})" for caller, scopes in sorted(callers.items())
    )
    yield ok(f"besides allow=, the registry's policy decides; it names {named or 'no caller'}")


def _unreadable(host: Host, failed: FetchError | DocumentRefused | TrustUnavailable) -> Finding:
    if isinstance(failed, FetchError) and failed.http_status == 404:
        return warning(
            f"the registry knows no service {host.service}",
            "normal before its first start; otherwise look for a typing mistake in PEERSEAL_SERVICE",
        )
    if isinstance(failed, FetchError) and failed.http_status in (401, 403):
        why, remedy = host.no_key
        return warning(f"the policy is for named callers only, and {why}", remedy)
    return warning(f"the policy cannot be read: {failed}", "see the checks of the registry and the clock")


def _signed(host: Host, target: str) -> Mapping[str, str]:
    """The headers of a reading call to the registry, signed where this host has a key."""
    key = host.signing_key
    if key is None:
        return {}
    return {"Authorization": f"Bearer {request_token(key, REGISTRY, method='GET', target=target, now=host.now())}"}
