"""Tests of the chart need the program helm."""

import os

import pytest

from tools.chart import find_helm


def need_helm() -> None:
    """Skips a test where helm is not installed; in CI, which installs it, fails it."""
    if find_helm() is None:
        reason = "helm is not installed: make chart installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
