"""Settings as people write them: what can be read is, and what cannot names the variable, the value and the remedy."""

import logging
from pathlib import Path
from typing import Any

import pytest

from client_service.settings import Settings as ClientSettings
from peerseal.errors import ConfigurationError
from peerseal.peers.environment import KNOWN, options_in
from peerseal.runtime import settings as reader
from peerseal.runtime.settings import SettingsReader
from registry.settings import KNOWN as KNOWN_OF_REGISTRY
from registry.settings import Settings
from resource_service.settings import ConsumerSettings

NEEDED = {"PEERSEAL_SERVICE": "shop", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}
ROOT = Path(__file__).parents[2]
FLAGS = {"PEERSEAL_RETIRE_AT_EXIT": "retire_at_exit", "PEERSEAL_REPLAY_UNSAFE_FALLBACK": "unsafe_replay_fallback"}


def options(**changes: str) -> dict[str, Any]:
    return options_in(NEEDED | changes)


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_warned", set())


# ---- booleans


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("text", ["1", "true", "TRUE", "Yes", "on", " on ", '"on"', "'1'\r\n"])
def test_a_switch_is_on(name: str, text: str) -> None:
    assert options(**{name: text})[FLAGS[name]] is True
    assert Settings.from_environ({"REGISTRY_APPLICANTS": text}).applicants is True


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("text", ["0", "false", "False", "no", "OFF", " off\n"])
def test_a_switch_is_off(name: str, text: str) -> None:
    assert options(**{name: text})[FLAGS[name]] is False
    assert Settings.from_environ({"REGISTRY_APPLICANTS": text}).applicants is False


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("text", ["2", "enabled", "tru", "y", "-1", "0.0", "none", "\u0661", "on off", "'"])
def test_anything_else_is_no_switch(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        options(**{name: text})
    with pytest.raises(ConfigurationError, match="REGISTRY_APPLICANTS"):
        Settings.from_environ({"REGISTRY_APPLICANTS": text})


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert options(PEERSEAL_RETIRE_AT_EXIT="", PEERSEAL_KEY_DIR=" ")["retire_at_exit"] is None
    with pytest.raises(ConfigurationError, match="PEERSEAL_SERVICE is not set"):
        options(PEERSEAL_SERVICE='""')


# ---- numbers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5", 0.5), ("90s", 90), ("10m", 600), ("24h", 86400), ("7d", 604800), (" 1H ", 3600)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert options(PEERSEAL_ROTATE_EVERY=text)["rotation"].every == seconds


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e3",
        "-1",
        "0",
        "1_000",
        "\u0661\u0662",
        "9" * 5000,
        "10 m",
        "1w",
        "+1",
        "1.",
        "0x10",
    ],
)
def test_what_is_no_length_of_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PEERSEAL_ROTATE_EVERY=.*expected") as refused:
        options(PEERSEAL_ROTATE_EVERY=text)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("text", ["-1", "100", "1.0", "1e1", "9" * 5000, "\u0663", "one", "1 2"])
def test_what_is_no_count_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"REGISTRY_PROXIES=.*from 0 to 99"):
        Settings.from_environ({"REGISTRY_PROXIES": text})


# ---- text, paths and files

WRITTEN = ["{}", " {} ", "{}\r\n", '"{}"', "'{}'", "\ufeff{}", '\ufeff"{}"\r\n']


@pytest.mark.parametrize("written", WRITTEN)
def test_text_is_read_as_env_files_leave_it(written: str, tmp_path: Path) -> None:
    assert options(PEERSEAL_REGISTRY_PIN=written.format("a-pin"))["pin"] == "a-pin"
    assert options(PEERSEAL_KEY_DIR=written.format("/keys"))["key_dir"] == Path("/keys")
    file = tmp_path / "secret"
    file.write_bytes(written.format("psj1.a.b.c").encode())
    assert options(PEERSEAL_JOIN_TOKEN_FILE=str(file))["join_token"] == "psj1.a.b.c"
    assert ClientSettings.from_env({"CLIENT_OPERATOR_SECRET_FILE": str(file)}).operator_secret == "psj1.a.b.c"
    file.write_bytes(written.format("postgresql://h/d").encode())
    assert Settings.from_environ({"REGISTRY_DATABASE_URL_FILE": str(file)}).database_url == "postgresql://h/d"


def test_a_path_may_begin_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert options(PEERSEAL_CACHE_DIR="~/cache")["cache_dir"] == Path("/home/ada/cache")
    assert Settings.from_environ({"REGISTRY_HOME": "~/registry"}).home == Path("/home/ada/registry")
    assert ClientSettings.from_env({"CLIENT_USER_KEY_FILE": "~/key.pem"}).user_key_file == Path("/home/ada/key.pem")
    with pytest.raises(ConfigurationError, match="PEERSEAL_KEY_DIR"):
        options(PEERSEAL_KEY_DIR="~nobody-of-that-name/keys")


BOTH = {
    "PEERSEAL_JOIN_TOKEN": options_in,
    "PEERSEAL_REPLAY_URL": options_in,
    "REGISTRY_DATABASE_URL": Settings.from_environ,
    "REGISTRY_RATE_LIMIT_STORAGE": Settings.from_environ,
    "CLIENT_OPERATOR_SECRET": ClientSettings.from_env,
    "CLIENT_DEMO_PASSWORD": ClientSettings.from_env,
    "CLIENT_DATABASE_URL": ClientSettings.from_env,
    "BROKER_URL": ConsumerSettings.from_env,
}


@pytest.mark.parametrize("name", BOTH)
def test_a_variable_and_its_file_are_not_both_set(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    for file in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match=f"{name} and {name}_FILE are both set"):
            BOTH[name](NEEDED | {name: "secret", f"{name}_FILE": str(file)})


@pytest.mark.parametrize("name", [name for name in BOTH if name != "PEERSEAL_JOIN_TOKEN"])
def test_a_file_that_is_missing_is_said_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}_FILE={tmp_path / 'missing'}: cannot be read: No such file"):
        BOTH[name](NEEDED | {f"{name}_FILE": str(tmp_path / "missing")})


def test_a_join_token_file_that_is_gone_is_said_by_name_and_needed_for_a_first_key_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert options(PEERSEAL_JOIN_TOKEN_FILE=str(tmp_path / "gone"))["join_token"] is None
    assert f"PEERSEAL_JOIN_TOKEN_FILE={tmp_path / 'gone'}: no such file" in caplog.text


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80"])
def test_a_file_of_other_bytes_than_text_is_said_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"PEERSEAL_JOIN_TOKEN_FILE=.*not UTF-8"):
        options(PEERSEAL_JOIN_TOKEN_FILE=str(tmp_path / "file"))


def test_no_error_shows_a_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        options(PEERSEAL_JOIN_TOKEN="the secret", PEERSEAL_JOIN_TOKEN_FILE=str(tmp_path))
    assert "the secret" not in str(refused.value)


# ---- unknown names


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "peerseal.settings"]


def test_a_misspelt_name_is_warned_of_once_with_the_one_that_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        options(PEERSEAL_KEYDIR="/keys")
        Settings.from_environ({"REGISTRY_TRUSTDOMAIN": "a"})
    assert warnings(caplog) == [
        "PEERSEAL_KEYDIR is no setting, and is ignored; is PEERSEAL_KEY_DIR meant?",
        "REGISTRY_TRUSTDOMAIN is no setting, and is ignored; is REGISTRY_TRUST_DOMAIN meant?",
    ]


INJECTED = {
    "{}_SERVICE_HOST": "10.0.0.1",
    "{}_SERVICE_PORT": "80",
    "{}_SERVICE_PORT_HTTP": "80",
    "{}_SERVICE_PORT_HTTP_METRICS": "80",
    "{}_PORT": "tcp://10.0.0.1:80",
    "{}_PORT_80_TCP": "tcp://10.0.0.1:80",
    "{}_PORT_80_TCP_ADDR": "10.0.0.1",
    "{}_PORT_80_TCP_PORT": "80",
    "{}_PORT_80_TCP_PROTO": "tcp",
    "{}_PORT_53_UDP": "udp://10.0.0.1:53",
}


@pytest.mark.parametrize("service", ["PEERSEAL", "PEERSEAL_REGISTRY", "REGISTRY", "REGISTRY_HOME"])
def test_what_kubernetes_sets_for_a_service_is_no_misspelt_name(service: str, caplog: pytest.LogCaptureFixture) -> None:
    injected = {name.format(service): value for name, value in INJECTED.items()}
    options(**injected)
    Settings.from_environ(injected)
    assert warnings(caplog) == []


def test_a_port_that_somebody_set_by_hand_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Settings.from_environ({"REGISTRY_PORT": "8080"})
    assert len(warnings(caplog)) == 1


def test_a_name_that_is_not_printable_does_not_reach_the_log_raw(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    options(**{"PEERSEAL_\x1b[2J": "1"})
    assert "\x1b" not in caplog.text


def test_the_docs_name_every_setting_and_no_other() -> None:
    docs = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for name in (*KNOWN, *KNOWN_OF_REGISTRY):
        short = name.removeprefix("PEERSEAL_ROTATE").removeprefix("PEERSEAL").removeprefix("REGISTRY")
        assert name in docs or f"…{short}" in docs or name.endswith("_FILE"), name


def test_a_reader_of_an_empty_environment_has_every_default() -> None:
    empty = SettingsReader({})
    assert (empty.text("A"), empty.secret("A"), empty.path("A"), empty.several("A")) == (None, None, None, ())
    assert (empty.flag("A", True), empty.seconds("A", 2.0), empty.count("A", 3, at_most=9)) == (True, 2.0, 3)
