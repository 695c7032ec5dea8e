"""The settings of an identity, from the environment and from code."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peerseal.errors import ConfigurationError, InvalidName
from peerseal.identity.enrolment import PlatformToken
from peerseal.identity.key_folder import KeyFolder
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.join import JoinToken
from peerseal.protocol.jose import ALGORITHMS
from peerseal.protocol.ledger.quorum import MAX_WITNESSES, Quorum
from peerseal.protocol.names import REGISTRY, check_service, split_kid
from peerseal.protocol.plain import plain_text
from peerseal.runtime.limits import LONGEST_WITNESS_DELAY, RotationSchedule, TrustLimits
from peerseal.runtime.options import (
    check_callable,
    check_flag,
    check_is,
    check_path,
    check_pin,
    check_text_or_texts,
    shortened,
)
from peerseal.runtime.settings import SettingsReader, named, warn_of_unknown
from peerseal.transport.fetch import check_urls
from peerseal.transport.webhook import Webhook
from peerseal.verify.audit_log import audit_by_default
from peerseal.verify.target import check_external_prefix

log = logging.getLogger("peerseal.identity")

_SECRETS = (
    *("JOIN_TOKEN", "KEY_PASSPHRASE", "REPLAY_URL", "INTROSPECTION_SECRET", "OPERATOR_TOKEN"),
    "SPLIT_VIEW_WEBHOOK",
)
KNOWN = (
    *("PEERSEAL_SERVICE", "PEERSEAL_REGISTRY_URL", "PEERSEAL_REGISTRY_PIN", "PEERSEAL_OIDC_TOKEN_FILE"),
    *("PEERSEAL_KEY_DIR", "PEERSEAL_CACHE_DIR", "PEERSEAL_EXTERNAL_PREFIX"),
    *("PEERSEAL_WITNESSES", "PEERSEAL_WITNESS_QUORUM", "PEERSEAL_WITNESS_DELAY"),
    *("PEERSEAL_REPLAY_DIR", "PEERSEAL_REPLAY_UNSAFE_FALLBACK"),
    *("PEERSEAL_ROTATE_EVERY", "PEERSEAL_ROTATE_LEAD", "PEERSEAL_ROTATE_OVERLAP", "PEERSEAL_RETIRE_AT_EXIT"),
    *(
        "PEERSEAL_AUDIT",
        "PEERSEAL_SHARE_CHECKPOINTS",
        "PEERSEAL_REFUSE_SPLIT_VIEW",
        "PEERSEAL_LOG_FORMAT",
        "PEERSEAL_INTROSPECTION_ISSUER",
        "PEERSEAL_INTROSPECTION_CLIENT_ID",
    ),
    *(f"PEERSEAL_{name}{suffix}" for name in _SECRETS for suffix in ("", "_FILE")),
)
"""Every variable of the SDK and of its commands."""
_LONGEST = 366 * 24 * 3600.0


def options_in(environ: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `Identity`; its ``from_env`` lists the variables. Raises ConfigurationError."""
    settings = settings_of(environ)
    return {
        "service": named("PEERSEAL_SERVICE", check_own_service, settings.required("PEERSEAL_SERVICE")),
        "registry": named("PEERSEAL_REGISTRY_URL", check_urls, settings.required("PEERSEAL_REGISTRY_URL")),
        "join_token": _join_token_in(settings),
        "oidc_token": _platform_token_in(settings),
        "pin": settings.checked("PEERSEAL_REGISTRY_PIN", check_pin),
        "key_dir": settings.path("PEERSEAL_KEY_DIR"),
        "key_passphrase": _passphrase_in(settings),
        "cache_dir": settings.path("PEERSEAL_CACHE_DIR"),
        "external_prefix": settings.checked("PEERSEAL_EXTERNAL_PREFIX", check_external_prefix) or "",
        "replay_dir": settings.path("PEERSEAL_REPLAY_DIR"),
        "replay_url": _replay_url_in(settings),
        "unsafe_replay_fallback": settings.flag("PEERSEAL_REPLAY_UNSAFE_FALLBACK", False),
        "rotation": _rotation_in(settings),
        "retire_at_exit": settings.optional_flag("PEERSEAL_RETIRE_AT_EXIT"),
        "audit": audit_by_default(environ),
        "share_checkpoints": settings.flag("PEERSEAL_SHARE_CHECKPOINTS", False),
        "split_view_webhook": _webhook_in(settings),
        **trust_options_in(settings),
    }


def trust_options_in(settings: SettingsReader) -> dict[str, Any]:
    """The arguments ``witnesses``, ``quorum`` and ``limits`` of a trust store. Raises ConfigurationError."""
    own, default = own_quorum_in(settings), TrustLimits().witness_delay
    delay = settings.seconds("PEERSEAL_WITNESS_DELAY", default, at_least=1.0, at_most=LONGEST_WITNESS_DELAY)
    asked = {"witnesses": (), "quorum": None} if own is None else {"witnesses": own.vkeys, "quorum": own.needed}
    refuses = settings.flag("PEERSEAL_REFUSE_SPLIT_VIEW", False)
    return {**asked, "limits": TrustLimits(witness_delay=delay, refuse_split_view=refuses)}


def own_quorum_in(settings: SettingsReader) -> Quorum | None:
    """The witnesses that this host asks for itself. Raises ConfigurationError."""
    witnesses = settings.several("PEERSEAL_WITNESSES")
    needed = settings.count("PEERSEAL_WITNESS_QUORUM", 0, at_least=1, at_most=MAX_WITNESSES)
    if bool(witnesses) != bool(needed):
        raise ConfigurationError("PEERSEAL_WITNESSES and PEERSEAL_WITNESS_QUORUM: set both, or neither")
    return named("PEERSEAL_WITNESSES", lambda _: Quorum.of(witnesses, needed), "") if needed else None


def settings_of(environ: Mapping[str, str]) -> SettingsReader:
    """The settings of a process. Logs the names of unknown variables."""
    warn_of_unknown(environ, "PEERSEAL_", KNOWN)
    return SettingsReader(environ)


def check_own_service(name: str) -> str:
    """The name itself, if a service may have it. Raises InvalidName."""
    if check_service(name) == REGISTRY:
        raise InvalidName(f"{name} is reserved for the registry itself; expected the name of a service")
    return name


def absent_join_token(environ: Mapping[str, str]) -> str | None:
    """A message if the file of the join token does not exist, which only a new service needs; else None."""
    return SettingsReader(environ).absent("PEERSEAL_JOIN_TOKEN_FILE")


def _passphrase_in(settings: SettingsReader) -> str | None:
    name = "PEERSEAL_KEY_PASSPHRASE"
    return KeyPassphrase(name, settings.secret(name)).value


def _replay_url_in(settings: SettingsReader) -> str | None:
    """Checks the scheme only; the replay guard checks the rest with its library."""
    url = settings.secret("PEERSEAL_REPLAY_URL")
    if url is not None and not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigurationError("PEERSEAL_REPLAY_URL: expected redis://host:6379/0, rediss://… or unix://…")
    return url


def _webhook_in(settings: SettingsReader) -> str | None:
    url = settings.secret("PEERSEAL_SPLIT_VIEW_WEBHOOK")
    if url is not None:
        named("PEERSEAL_SPLIT_VIEW_WEBHOOK", Webhook, url)
    return url


def _rotation_in(settings: SettingsReader) -> RotationSchedule:
    default = RotationSchedule()
    return RotationSchedule(
        every=settings.seconds("PEERSEAL_ROTATE_EVERY", default.every, at_least=0.001, at_most=_LONGEST),
        lead=settings.seconds("PEERSEAL_ROTATE_LEAD", default.lead, at_most=_LONGEST),
        overlap=settings.seconds("PEERSEAL_ROTATE_OVERLAP", default.overlap, at_most=_LONGEST),
    )


def _join_token_in(settings: SettingsReader) -> str | None:
    absent = settings.absent("PEERSEAL_JOIN_TOKEN_FILE")
    if absent is not None and settings.text("PEERSEAL_JOIN_TOKEN") is None:
        log.warning("%s; a service without a key in its key folder cannot start", absent)
        return None
    token = settings.secret("PEERSEAL_JOIN_TOKEN", may_be_empty=True)
    name = "PEERSEAL_JOIN_TOKEN" if settings.path("PEERSEAL_JOIN_TOKEN_FILE") is None else "PEERSEAL_JOIN_TOKEN_FILE"
    return None if token is None else named(name, _check_join_token, token)


def _check_join_token(text: str) -> str:
    return JoinToken.parse(text).encode()


def _platform_token_in(settings: SettingsReader) -> Callable[[], str] | None:
    """The file is read at each enrolment: the platform may write it later."""
    file = settings.path("PEERSEAL_OIDC_TOKEN_FILE")
    return PlatformToken.in_file(file, "PEERSEAL_OIDC_TOKEN_FILE").get if file else None


def check_switches(**switches: object) -> None:
    """Raises ConfigurationError for a value other than True, False and None (the default)."""
    for name, value in switches.items():
        check_flag(name, False if value is None else value)


def check_places(registry: object, *, replay_url: object, **folders: object) -> None:
    """Raises ConfigurationError for a value that is no URL, list of URLs, or path."""
    check_text_or_texts("registry", registry)
    if replay_url is not None:
        check_is("replay_url", replay_url, str, "a URL such as redis://host:6379/0")
    for name, folder in folders.items():
        if folder is not None:
            check_path(name, folder)


def check_parts(alg: object, rotation: object, limits: object, clock: object, oidc_token: object) -> None:
    """Raises ConfigurationError for a value of another type than expected."""
    if plain_text(alg) not in ALGORITHMS:
        raise ConfigurationError(f"alg={shortened(alg)}: expected one of {', '.join(sorted(ALGORITHMS))}")
    check_is("rotation", RotationSchedule() if rotation is None else rotation, RotationSchedule, "a RotationSchedule")
    check_is("limits", TrustLimits() if limits is None else limits, TrustLimits, "a TrustLimits")
    check_callable("clock", clock)
    if not isinstance(oidc_token, str | None):
        check_callable("oidc_token", oidc_token)


def one_pin(pin: str | None, admission: JoinToken | PlatformToken | None, folder: KeyFolder) -> str | None:
    """The pin: given, or from the join token, or from the key folder. Raises ConfigurationError if two differ."""
    if pin is not None:
        check_pin(pin)
    pins = {known for known in (pin, admission.pin if isinstance(admission, JoinToken) else None) if known is not None}
    if len(pins) > 1:
        raise ConfigurationError(f"PEERSEAL_REGISTRY_PIN={pin}: the join token is for a registry with another root key")
    return pins.pop() if pins else folder.pin()


def announce(kid: str, admitted: str, registry: str | Sequence[str], pin: str | None) -> None:
    """Log at the start the service, its key, how the key was obtained, and the registry. Without a logging
    configuration, as under gunicorn, Python shows only warnings: then this is a warning."""
    urls = registry if isinstance(registry, str) else ", ".join(registry)
    root = f"root key {pin}" if pin else "root key believed on first use, since no pin is set"
    level = logging.INFO if log.hasHandlers() else logging.WARNING
    log.log(level, "%s signs with %s, %s; registry %s, %s", *(split_kid(kid)[0], kid, admitted, urls, root))
