"""Every limit of a registry is a setting, which docs/reference/limits.md describes."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from demo.processes import BIN, ROOT, environment
from peerseal.errors import ConfigurationError
from peerseal.protocol.documents.changes import MAX_WATCHED, Watched
from peerseal.protocol.names import make_kid, service_id
from peerseal.runtime.settings import SettingsReader
from registry.limits import LIMIT_SETTINGS, Limits, ServerLimits, Setting, server_limits
from registry.settings import KNOWN, Settings

PAGE = ROOT / "docs/reference/limits.md"
ROW = re.compile(
    r"^\| `(?P<name>REGISTRY_\w+)` \| (?P<default>\S+) \| (?P<least>\S+), (?P<most>\S+) \| (?P<why>.+) \|$", re.M
)
SETTINGS = [setting for limits in (Limits, ServerLimits) for _, setting in limits.settings()]
GROUPS = {setting.name: limits for limits in (Limits, ServerLimits) for _, setting in limits.settings()}
FIELDS = {setting.name: limit for limits in (Limits, ServerLimits) for limit, setting in limits.settings()}


def described() -> dict[str, dict[str, str]]:
    """The rows of the page's tables."""
    return {row["name"]: row.groupdict() for row in ROW.finditer(PAGE.read_text())}


def number(text: str) -> int:
    """What a setting with that value means."""
    return SettingsReader({"X": text}).size("X", 0, at_most=2**63)


def limit_of(setting: Setting, value: str) -> object:
    """The limit of a registry that starts with that value."""
    environ = {setting.name: value}
    limits = server_limits(environ) if GROUPS[setting.name] is ServerLimits else Settings.from_environ(environ).limits
    return getattr(limits, FIELDS[setting.name])


def test_the_page_describes_every_limit_once_and_no_other() -> None:
    names = [row["name"] for row in ROW.finditer(PAGE.read_text())]
    assert sorted(names) == sorted(LIMIT_SETTINGS)
    assert set(names) <= set(KNOWN)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_page_has_the_default_and_the_bounds_of_the_code(setting: Setting) -> None:
    row = described()[setting.name]
    assert (None if row["default"] == "–" else number(row["default"])) == setting.default
    assert (number(row["least"]), number(row["most"])) == (setting.at_least, setting.at_most)
    assert len(row["why"]) > 20


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_value_within_the_bounds_is_taken_and_none_outside(setting: Setting) -> None:
    for value in (setting.at_least, setting.at_most):
        assert limit_of(setting, str(value)) == value
    for wrong in (str(setting.at_least - 1), str(setting.at_most + 1), "many", "1.5", "٣"):
        with pytest.raises(ConfigurationError, match=rf"^{setting.name}='{re.escape(wrong)}': expected "):
            limit_of(setting, wrong)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_limit_that_is_not_set_has_its_default(setting: Setting) -> None:
    assert limit_of(setting, "") == setting.default
    assert setting.default is None or setting.at_least <= setting.default <= setting.at_most


PARTS = [
    ("REGISTRY_APPLICANTS_OF_SERVICE", "REGISTRY_APPLICANTS_KEPT", 21, 19),
    ("REGISTRY_WAITING_CALLS_OF_ADDRESS", "REGISTRY_WAITING_CALLS", 5001, 4999),
    ("REGISTRY_SOCKET_TIMEOUT", "REGISTRY_REQUEST_DEADLINE", 46, 9),
]
"""Limits, the limits that they are a part of, a value of each part, and a smaller one of the whole."""


@pytest.mark.parametrize(("part", "whole", "greater", "less"), PARTS)
def test_two_limits_that_contradict_each_other_end_the_start(part: str, whole: str, greater: int, less: int) -> None:
    environ = {part: str(greater), whole: str(less)}
    with pytest.raises(ConfigurationError, match=f"^{part}={greater}: expected {less} at most, which is {whole}"):
        server_limits(environ) if GROUPS[part] is ServerLimits else Settings.from_environ(environ)


@pytest.mark.parametrize(("part", "whole", "greater", "less"), PARTS)
def test_a_limit_that_is_not_set_follows_one_that_is(part: str, whole: str, greater: int, less: int) -> None:
    settings = {setting.name: setting for setting in SETTINGS}
    group, names = GROUPS[part], (FIELDS[part], FIELDS[whole])
    lowered, raised = (group.from_settings(SettingsReader(each)) for each in ({whole: str(less)}, {part: str(greater)}))
    assert [getattr(lowered, name) for name in names] == [less, less]
    bound = settings[whole].default
    assert [getattr(raised, name) for name in names] == [greater, bound and max(bound, greater)]


def test_sizes_and_durations_have_units() -> None:
    environ = {"REGISTRY_DOCUMENTS_CACHED": "1GiB", "REGISTRY_KEY_LIFETIME": "3d", "REGISTRY_TILES_CACHED": "2mib"}
    limits = Settings.from_environ(environ).limits
    assert (limits.documents_cached, limits.key_lifetime, limits.tiles_cached) == (2**30, 3 * 24 * 3600, 2 * 2**20)


@pytest.mark.parametrize("line", re.findall(r"^\$ (\S+)=(\S+) peerseal-registry serve\n(.*)$", PAGE.read_text(), re.M))
def test_a_wrong_value_ends_the_start_as_the_page_shows(tmp_path: Path, line: tuple[str, str, str]) -> None:
    name, value, says = line
    settings = environment({"REGISTRY_HOME": str(tmp_path), name: value})
    command = [sys.executable, "-m", "registry", "serve"]
    ended = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"{says}\n")


def test_a_wrong_limit_of_the_server_ends_gunicorn_with_one_line(tmp_path: Path) -> None:
    command = [str(BIN / "gunicorn"), "--config", "python:registry.gunicorn_conf", "registry.wsgi:app"]
    settings = environment({"REGISTRY_HOME": str(tmp_path), "REGISTRY_KEEPALIVE": "long"})
    ended = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    says = "Error: configuration: REGISTRY_KEEPALIVE='long': expected 0 to 75 seconds, or a duration such as 10m\n"
    assert (ended.returncode, ended.stderr) == (1, says)


def test_the_longest_valid_targets_fit_into_the_shortest_request_line() -> None:
    most, number = [setting.at_least for setting in SETTINGS if setting.name == "REGISTRY_REQUEST_LINE"], 10**15
    kid = make_kid(service_id(".".join(["d" * 63] * 3 + ["d" * 61]), "s" * 60 + "." + "s" * 39), "A" * 43)
    watched = Watched.of(f"{n:07}" for n in range(MAX_WATCHED // 8))
    assert len(watched.text) == MAX_WATCHED - 1, "as many names as a question may have"
    targets = [
        f"/v1/changes?since={number}&wait={Limits().wait}&services={watched.text}",
        f"/ledger/proof?kid={quote(kid, safe='')}",
        f"/ledger/proof?from={number}&to={number}",
    ]
    assert [len(f"GET {target} HTTP/1.1\r\n") <= most[0] for target in targets] == [True] * 3
