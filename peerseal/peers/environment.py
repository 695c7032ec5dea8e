"""An identity's settings, as the environment has them."""

import logging
from collections.abc import Mapping
from typing import Any

from peerseal.peers.enrol import PlatformToken
from peerseal.peers.limits import RotationSchedule
from peerseal.runtime.settings import SettingsReader, warn_of_unknown

log = logging.getLogger("peerseal.identity")

KNOWN = (
    "PEERSEAL_SERVICE",
    "PEERSEAL_REGISTRY_URL",
    "PEERSEAL_REGISTRY_PIN",
    "PEERSEAL_JOIN_TOKEN",
    "PEERSEAL_JOIN_TOKEN_FILE",
    "PEERSEAL_OIDC_TOKEN_FILE",
    "PEERSEAL_KEY_DIR",
    "PEERSEAL_CACHE_DIR",
    "PEERSEAL_EXTERNAL_PREFIX",
    "PEERSEAL_REPLAY_URL",
    "PEERSEAL_REPLAY_URL_FILE",
    "PEERSEAL_REPLAY_UNSAFE_FALLBACK",
    "PEERSEAL_ROTATE_EVERY",
    "PEERSEAL_ROTATE_LEAD",
    "PEERSEAL_ROTATE_OVERLAP",
    "PEERSEAL_RETIRE_AT_EXIT",
    "PEERSEAL_OPERATOR_TOKEN",
    "PEERSEAL_OPERATOR_TOKEN_FILE",
)
"""Every variable of the SDK and of its commands."""
_LONGEST = 366 * 24 * 3600.0


def options_in(environ: Mapping[str, str]) -> dict[str, Any]:
    """What `Identity` is made with; its ``from_env`` names the variables. Raises ConfigurationError."""
    warn_of_unknown(environ, "PEERSEAL_", KNOWN)
    settings = SettingsReader(environ)
    oidc_file = settings.path("PEERSEAL_OIDC_TOKEN_FILE")
    return {
        "service": settings.required("PEERSEAL_SERVICE"),
        "registry": settings.required("PEERSEAL_REGISTRY_URL"),
        "join_token": _join_token_in(settings),
        "oidc_token": PlatformToken.in_file(oidc_file).get if oidc_file else None,
        "pin": settings.text("PEERSEAL_REGISTRY_PIN"),
        "key_dir": settings.path("PEERSEAL_KEY_DIR"),
        "cache_dir": settings.path("PEERSEAL_CACHE_DIR"),
        "external_prefix": settings.text("PEERSEAL_EXTERNAL_PREFIX", ""),
        "replay_url": settings.secret("PEERSEAL_REPLAY_URL"),
        "unsafe_replay_fallback": settings.flag("PEERSEAL_REPLAY_UNSAFE_FALLBACK", False),
        "rotation": _rotation_in(settings),
        "retire_at_exit": settings.optional_flag("PEERSEAL_RETIRE_AT_EXIT"),
    }


def _rotation_in(settings: SettingsReader) -> RotationSchedule:
    default = RotationSchedule()
    return RotationSchedule(
        every=settings.seconds("PEERSEAL_ROTATE_EVERY", default.every, at_least=0.01, at_most=_LONGEST),
        lead=settings.seconds("PEERSEAL_ROTATE_LEAD", default.lead, at_most=_LONGEST),
        overlap=settings.seconds("PEERSEAL_ROTATE_OVERLAP", default.overlap, at_most=_LONGEST),
    )


def _join_token_in(settings: SettingsReader) -> str | None:
    file = settings.path("PEERSEAL_JOIN_TOKEN_FILE")
    if file is None or file.exists() or settings.text("PEERSEAL_JOIN_TOKEN") is not None:
        return settings.secret("PEERSEAL_JOIN_TOKEN")
    log.warning("PEERSEAL_JOIN_TOKEN_FILE=%s: no such file; only a service that has a key already can go on", file)
    return None
