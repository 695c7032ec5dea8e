"""An identity's settings, as the environment has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peerseal.errors import ConfigurationError
from peerseal.peers.enrol import PlatformToken
from peerseal.peers.limits import RotationSchedule


def options_in(env: Mapping[str, str]) -> dict[str, Any]:
    """What `Identity` is made with; its ``from_env`` names the variables. Raises ConfigurationError."""
    for name in ("PEERSEAL_SERVICE", "PEERSEAL_REGISTRY_URL"):
        if not env.get(name):
            raise ConfigurationError(f"{name} is not set")
    oidc_file = env.get("PEERSEAL_OIDC_TOKEN_FILE")
    return {
        "service": env["PEERSEAL_SERVICE"],
        "registry": env["PEERSEAL_REGISTRY_URL"],
        "join_token": _join_token_in(env),
        "oidc_token": PlatformToken.in_file(oidc_file).get if oidc_file else None,
        "pin": env.get("PEERSEAL_REGISTRY_PIN") or None,
        "key_dir": env.get("PEERSEAL_KEY_DIR") or None,
        "cache_dir": env.get("PEERSEAL_CACHE_DIR") or None,
        "external_prefix": env.get("PEERSEAL_EXTERNAL_PREFIX", ""),
        "replay_url": env.get("PEERSEAL_REPLAY_URL") or None,
        "unsafe_replay_fallback": env.get("PEERSEAL_REPLAY_UNSAFE_FALLBACK", "0") == "1",
        "rotation": _rotation_in(env),
        "retire_at_exit": env["PEERSEAL_RETIRE_AT_EXIT"] != "0" if env.get("PEERSEAL_RETIRE_AT_EXIT") else None,
    }


def _rotation_in(env: Mapping[str, str]) -> RotationSchedule:
    default = RotationSchedule()
    return RotationSchedule(
        every=_seconds(env, "PEERSEAL_ROTATE_EVERY", default.every),
        lead=_seconds(env, "PEERSEAL_ROTATE_LEAD", default.lead),
        overlap=_seconds(env, "PEERSEAL_ROTATE_OVERLAP", default.overlap),
    )


def _join_token_in(env: Mapping[str, str]) -> str | None:
    if env.get("PEERSEAL_JOIN_TOKEN"):
        return env["PEERSEAL_JOIN_TOKEN"]
    file = env.get("PEERSEAL_JOIN_TOKEN_FILE")
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None  # a service that has its key already needs none
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"PEERSEAL_JOIN_TOKEN_FILE cannot be read: {error}") from error


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(env.get(name) or default)
    except ValueError as error:
        raise ConfigurationError(f"{name} is not a number of seconds") from error
