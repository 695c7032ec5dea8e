"""Kinds of arguments that several commands take."""

import threading

from peerseal.runtime.settings import duration


def seconds(text: str) -> float:
    """An argument that is a time, in seconds or such as ``10m``. Raises ValueError, which argparse reports."""
    value = duration(text)
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{text!r}: expected a duration such as 90 or 10m")
    return value
