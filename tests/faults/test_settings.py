"""Settings as people write them: what can be read is, and what cannot names the variable, the value and the remedy."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client_service.settings import Settings as ClientSettings
from client_service.storage import open_database as open_orders
from demo.case_service.settings import database_url as case_database_url
from demo.identity_provider.settings import Settings as LoginSettings
from peerseal import Identity, IntrospectionClient
from peerseal.errors import ConfigurationError
from peerseal.identity.enrolment import PlatformToken
from peerseal.identity.environment import KNOWN, options_in, settings_of
from peerseal.protocol.join import JoinToken
from peerseal.runtime.settings import SettingsReader
from peerseal.runtime.trusted_path import warn_once
from registry.app import create_app
from registry.services.keys.rights import read_rules
from registry.settings import KNOWN as KNOWN_OF_REGISTRY
from registry.settings import Settings
from resource_service.settings import ConsumerSettings
from resource_service.settings import database_url as invoices_database_url
from tests.registry.driver import Driver
from tests.registry.in_process import InProcess

NEEDED = {"PEERSEAL_SERVICE": "shop", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}
PIN = "A" * 43
DAY = 24 * 3600.0
ROOT = Path(__file__).parents[2]
FLAGS = {"PEERSEAL_RETIRE_AT_EXIT": "retire_at_exit", "PEERSEAL_REPLAY_UNSAFE_FALLBACK": "unsafe_replay_fallback"}


def options(**changes: str) -> dict[str, Any]:
    return options_in(NEEDED | changes)


@pytest.fixture(autouse=True)
def nothing_warned_of() -> None:
    warn_once.cache_clear()


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
        "10\u017f",
        "10\u212a",
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

WRITTEN = [
    "{}",
    " {} ",
    "{}\r\n",
    '"{}"',
    "'{}'",
    "\ufeff{}",
    '\ufeff"{}"\r\n',
    ' \ufeff"{}"',
    "'\ufeff{}'",
    "\ufeff\ufeff{}\ufeff",
]


@pytest.mark.parametrize("written", WRITTEN)
def test_text_is_read_as_env_files_leave_it(written: str, tmp_path: Path) -> None:
    assert options(PEERSEAL_REGISTRY_PIN=written.format(PIN))["pin"] == PIN
    assert options(PEERSEAL_KEY_DIR=written.format("/keys"))["key_dir"] == Path("/keys")
    file = tmp_path / "secret"
    token = JoinToken.generate(PIN).encode()
    file.write_bytes(written.format(token).encode())
    assert options(PEERSEAL_JOIN_TOKEN_FILE=str(file))["join_token"] == token
    assert ClientSettings.from_env({"CLIENT_OPERATOR_SECRET_FILE": str(file)}).operator_secret == token
    file.write_bytes(written.format("postgresql://h/d").encode())
    assert Settings.from_environ({"REGISTRY_DATABASE_URL_FILE": str(file)}).database_url == "postgresql://h/d"


def test_a_path_may_begin_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert options(PEERSEAL_CACHE_DIR="~/cache")["cache_dir"] == Path("/home/ada/cache")
    assert Settings.from_environ({"REGISTRY_HOME": "~/registry"}).home == Path("/home/ada/registry")
    assert LoginSettings.from_env({"IDP_KEY_FILE": "~/key.pem"}).key_file == Path("/home/ada/key.pem")
    with pytest.raises(ConfigurationError, match="PEERSEAL_KEY_DIR"):
        options(PEERSEAL_KEY_DIR="~nobody-of-that-name/keys")
    with pytest.raises(ConfigurationError, match="PEERSEAL_KEY_DIR"):
        options(PEERSEAL_KEY_DIR="~a\0b/keys")


def test_the_greatest_age_of_an_event_has_a_unit_and_bounds() -> None:
    needed = {"BROKER_URL": "kafka://localhost:9092"}
    given = {"": 7 * DAY, "90": 90, "36h": 1.5 * DAY, "365d": 365 * DAY}
    for text, seconds in given.items():
        assert ConsumerSettings.from_env(needed | {"EVENTS_MAX_AGE": text}).events_max_age.total_seconds() == seconds
    for text in ("0", "366d", "a week", "-1", "7 days"):
        with pytest.raises(ConfigurationError, match=f"EVENTS_MAX_AGE='{text}': expected 1 to 31536000 seconds"):
            ConsumerSettings.from_env(needed | {"EVENTS_MAX_AGE": text})


def test_the_publishers_that_a_consumer_believes_are_listed_by_commas() -> None:
    needed = {"BROKER_URL": "kafka://localhost:9092"}
    assert ConsumerSettings.from_env(needed).events_publishers == ("client-service",)
    given = needed | {"EVENTS_PUBLISHERS": "client-service, legacy-shop,registry,"}
    assert ConsumerSettings.from_env(given).events_publishers == ("client-service", "legacy-shop", "registry")


BOTH = {
    "PEERSEAL_JOIN_TOKEN": options_in,
    "PEERSEAL_KEY_PASSPHRASE": options_in,
    "REGISTRY_KEY_PASSPHRASE": Settings.from_environ,
    "PEERSEAL_REPLAY_URL": options_in,
    "REGISTRY_DATABASE_URL": Settings.from_environ,
    "REGISTRY_RATE_LIMIT_STORAGE": Settings.from_environ,
    "CLIENT_OPERATOR_SECRET": ClientSettings.from_env,
    "IDP_PASSWORD": LoginSettings.from_env,
    "CASE_DATABASE_URL": case_database_url,
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


@pytest.mark.parametrize(
    "name",
    ["PEERSEAL_KEY_PASSPHRASE", "PEERSEAL_REPLAY_URL", "REGISTRY_DATABASE_URL", "CLIENT_DATABASE_URL", "BROKER_URL"],
)
@pytest.mark.parametrize("content", ["", "\n", '""', "\ufeff"])
def test_an_empty_file_is_no_default(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(ConfigurationError, match=f"{name}_FILE={tmp_path / 'file'}: empty"):
        BOTH[name](NEEDED | {f"{name}_FILE": str(tmp_path / "file")})


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_of_a_join_token_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    assert options(PEERSEAL_JOIN_TOKEN_FILE=str(tmp_path / "file"))["join_token"] is None


def test_a_join_token_file_that_is_gone_is_said_by_name_and_needed_for_a_first_key_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert options(PEERSEAL_JOIN_TOKEN_FILE=str(tmp_path / "gone"))["join_token"] is None
    assert f"PEERSEAL_JOIN_TOKEN_FILE={tmp_path / 'gone'}: no such file" in caplog.text


def test_what_the_environment_names_and_is_not_there_is_said_when_a_key_must_be_registered(
    tmp_path: Path, sqlite_url: str
) -> None:
    registry = Driver(sqlite_url, tmp_path / "registry")
    identity = Identity.from_env(NEEDED | {"PEERSEAL_JOIN_TOKEN_FILE": str(tmp_path / "gone")})
    identity.trust.fetcher = InProcess(registry)
    with pytest.raises(ConfigurationError, match=f"PEERSEAL_JOIN_TOKEN_FILE={tmp_path / 'gone'}: no such file"):
        identity.start(timeout=1)
    registry.close()


def test_a_platforms_token_file_that_is_missing_is_said_by_name(tmp_path: Path) -> None:
    platform = PlatformToken.of(options(PEERSEAL_OIDC_TOKEN_FILE=str(tmp_path / "gone"))["oidc_token"])
    with pytest.raises(ConfigurationError, match=f"PEERSEAL_OIDC_TOKEN_FILE={tmp_path / 'gone'}: cannot be read"):
        platform.text()


@pytest.mark.parametrize("path", ["/" + "a" * 300, "/dev/null/token", "/dev/zero"])
def test_a_file_that_cannot_be_looked_for_or_never_ends_is_said_by_name(path: str) -> None:
    with pytest.raises(ConfigurationError, match="PEERSEAL_JOIN_TOKEN_FILE=/"):
        options(PEERSEAL_JOIN_TOKEN_FILE=path)
    with pytest.raises(ConfigurationError, match="REGISTRY_DATABASE_URL_FILE=/"):
        Settings.from_environ({"REGISTRY_DATABASE_URL_FILE": path})


@pytest.mark.parametrize("file", ["/dev/zero", "/dev/null", "/nowhere", "/"])
def test_rules_and_keys_of_platforms_that_cannot_be_read_are_said_by_name(file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^REGISTRY_OIDC_FILE={file}: "):
        read_rules(Path(file))
    for member in ("jwks_file", "ca_file"):
        rules = [{"issuer": "https://i", "services": {"sub": "shop"}, member: file}]
        (tmp_path / "rules").write_text(json.dumps(rules))
        if (member, file) == ("ca_file", "/dev/zero"):
            continue  # OpenSSL reads it, and ends at what is no PEM
        with pytest.raises(ConfigurationError, match=rf"element 0: {member} .*{file}"):
            read_rules(tmp_path / "rules")


@pytest.mark.parametrize("member", ["jwks_file", "ca_file"])
def test_a_path_with_a_nul_is_no_path_of_a_file(member: str, tmp_path: Path) -> None:
    rules = [{"issuer": "https://i", "services": {"sub": "shop"}, member: "a\0b"}]
    (tmp_path / "rules").write_text(json.dumps(rules))
    with pytest.raises(ConfigurationError, match=f"REGISTRY_OIDC_FILE=.*{member}"):
        read_rules(tmp_path / "rules")


WRONG: dict[str, list[str]] = {
    "PEERSEAL_SERVICE": ["Shop", "a/b", "a b", "x" * 300],
    "PEERSEAL_REGISTRY_URL": [
        "http://h:0",
        "http://a..b",
        "http://a%20b",
        f"http://{'a' * 64}",
        "x",
        "ftp://h",
        ",",
        "http://[::1",
        "http://login.example.com[::1]",
        "http://*.example.com",
        "http://h:99999",
        "http://u:w0rd@h",
        "http://a b",
    ],
    "PEERSEAL_REGISTRY_PIN": ["a-pin", "A" * 44, f"sha256:{PIN}"],
    "PEERSEAL_JOIN_TOKEN": ["w0rd", "psj1.w0rd.b.c"],
    "PEERSEAL_EXTERNAL_PREFIX": ["api", "/api/", "/", "http://h", "/a/../b", "/.", "/a/.."],
    "PEERSEAL_REPLAY_URL": ["w0rd", "http://:w0rd@h"],
    "REGISTRY_TRUST_DOMAIN": ["Acme Internal", "x" * 300],
    "REGISTRY_PUBLIC_URLS": ["x", "https://a,ftp://b", "https://a b"],
    "REGISTRY_DATABASE_URL": ["mysql://u:w0rd@h", "postgresql://u:w0rd@h:x/d", "w0rd"],
    "REGISTRY_EXCHANGED_TOKEN_LIFETIME": ["0", "1.5", "366d", "1e3"],
    "REGISTRY_WAITING_CALLS": ["-1", "1.5", "many", "1e3", "100001"],
}
WRONG["PEERSEAL_REGISTRY_URL"] += ["http://:w0rd@h", "http://@h", "http://h/a?", "http://h/a#", "http://a..b"]
WRONG["PEERSEAL_REGISTRY_URL"] += ["http://.h", f"http://{'a' * 64}"]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_means_nothing_is_refused_at_once_by_name(name: str, value: str) -> None:
    read = options_in if name.startswith("PEERSEAL") else Settings.from_environ
    with pytest.raises(ConfigurationError, match=f"^{name}") as refused:
        read(NEEDED | {name: value})
    assert "w0rd" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:w0rd@h:port", "redis://:w0rd@h:99999", "w0rd", "http://:w0rd@h", "async+memory://", "memory"),
        "redis+cluster://:w0rd@127.0.0.1:1",
    ],
)
def test_what_is_no_storage_of_limits_ends_the_start_by_name(url: str, tmp_path: Path, sqlite_url: str) -> None:
    registry = Driver(sqlite_url, tmp_path)
    with pytest.raises(ConfigurationError, match="REGISTRY_RATE_LIMIT_STORAGE") as refused:
        create_app(replace(registry.registry.settings, rate_limit_storage=url))
    assert "w0rd" not in str(refused.value)
    registry.close()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80"])
def test_a_file_of_other_bytes_than_text_is_said_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"PEERSEAL_JOIN_TOKEN_FILE=.*not UTF-8"):
        options(PEERSEAL_JOIN_TOKEN_FILE=str(tmp_path / "file"))


@pytest.mark.parametrize("name", BOTH)
def test_bytes_in_a_variable_that_are_no_text_are_said_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}: not UTF-8 text"):
        BOTH[name](NEEDED | {name: "a secret of enough length \udcff"})


def test_a_path_may_hold_any_bytes() -> None:
    assert options(PEERSEAL_KEY_DIR="/k\udcff")["key_dir"] == Path("/k\udcff")


@pytest.mark.parametrize("changes", [{"ISSUER": "login"}, {"ISSUER": "https://"}, {"CLIENT_ID": "\udcff"}])
def test_credentials_that_no_issuer_can_be_asked_with_end_the_start(changes: dict[str, str]) -> None:
    given = {"ISSUER": "https://i", "CLIENT_ID": "edge", "SECRET": "w0rd", **changes}
    environ = {f"PEERSEAL_INTROSPECTION_{name}": value for name, value in given.items()}
    with pytest.raises(ConfigurationError) as refused:
        IntrospectionClient.from_env(Identity("shop", registry="http://127.0.0.1:1"), environ)
    assert "w0rd" not in str(refused.value)


@pytest.mark.parametrize("read", [ConsumerSettings.from_env, ClientSettings.from_env])
def test_settings_of_a_broker_that_nest_too_deeply_are_no_json(read: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[" * 60_000)
    with pytest.raises(ConfigurationError, match=r"BROKER_CONFIG_FILE=.*not JSON"):
        read({"BROKER_URL": "kafka://h:1", "BROKER_CONFIG_FILE": str(tmp_path / "file"), "RESOURCE_DATABASE_URL": "x"})


@pytest.mark.parametrize("folder", ["/dev/null/keys", "/proc/nowhere/keys"])
def test_a_folder_of_state_that_cannot_be_made_is_said_with_the_remedy(folder: str) -> None:
    with pytest.raises(ConfigurationError, match="set PEERSEAL_KEY_DIR or RESOURCE_DATABASE_URL"):
        invoices_database_url({"PEERSEAL_KEY_DIR": folder})
    with pytest.raises(ConfigurationError, match="set PEERSEAL_KEY_DIR or INVOICING_DATABASE_URL"):
        ConsumerSettings.from_env({"BROKER_URL": "kafka://h:1", "PEERSEAL_KEY_DIR": folder})
    with pytest.raises(ConfigurationError, match="set PEERSEAL_KEY_DIR or CASE_DATABASE_URL"):
        case_database_url({"PEERSEAL_KEY_DIR": folder})
    settings = ClientSettings.from_env({"PEERSEAL_KEY_DIR": folder})
    with pytest.raises(ConfigurationError, match="set PEERSEAL_KEY_DIR or CLIENT_DATABASE_URL"):
        open_orders(settings.database_url, settings.state)


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


def test_no_setting_has_a_name_that_kubernetes_could_set() -> None:
    injected = re.compile("_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")
    assert not [name for name in (*KNOWN, *KNOWN_OF_REGISTRY) if injected.search(name)]


def test_a_misspelt_setting_of_the_sdk_is_warned_of_in_the_registry_and_in_commands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Settings.from_environ({"PEERSEAL_EXTERNAL_PREFX": "/api"})
    settings_of({"PEERSEAL_REGISTRY_PINN": PIN})
    assert warnings(caplog) == [
        "PEERSEAL_EXTERNAL_PREFX is no setting, and is ignored; is PEERSEAL_EXTERNAL_PREFIX meant?",
        "PEERSEAL_REGISTRY_PINN is no setting, and is ignored; is PEERSEAL_REGISTRY_PIN meant?",
    ]


def test_a_port_that_somebody_set_by_hand_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Settings.from_environ({"REGISTRY_PORT": "8080"})
    assert len(warnings(caplog)) == 1


def test_a_name_that_is_not_printable_does_not_reach_the_log_raw(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    options(**{"PEERSEAL_\x1b[2J": "1"})
    assert "\x1b" not in caplog.text


def test_a_name_of_any_length_takes_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    options(**{"PEERSEAL_" + "A" * 100_000: "1"})
    assert len(caplog.text) < 300


def test_the_docs_name_every_setting_and_no_other() -> None:
    docs = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for name in (*KNOWN, *KNOWN_OF_REGISTRY):
        short = name.removeprefix("PEERSEAL_ROTATE").removeprefix("PEERSEAL").removeprefix("REGISTRY")
        with_file = f"`{name.removesuffix('_FILE')}`, or `…_FILE`"
        assert name in docs or f"…{short}" in docs or with_file in docs or with_file.replace(", or", " (or") in docs, (
            name
        )


def test_the_docs_tell_of_no_setting_that_is_none() -> None:
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.name != "faults.md")]
    told = {name for page in pages for name in re.findall(r"`((?:PEERSEAL|REGISTRY)_[A-Z_]+)", page.read_text())}
    assert told - {*KNOWN, *KNOWN_OF_REGISTRY, "PEERSEAL_REGISTRY_PORT"} == set()


def test_no_module_reads_the_environment_past_the_reader() -> None:
    packages = ("peerseal", "registry", "client_service", "resource_service", "benchmarks", "migrations")
    past = re.compile(r"os\.getenv|os\.environ(\[|\.get)|[\"'](PEERSEAL|REGISTRY)_[A-Z_]+[\"']\s+in ")
    found = [file for package in packages for file in (ROOT / package).rglob("*.py") if past.search(file.read_text())]
    assert found == []


def test_a_reader_of_an_empty_environment_has_every_default() -> None:
    empty = SettingsReader({})
    assert (empty.text("A"), empty.secret("A"), empty.path("A"), empty.several("A")) == (None, None, None, ())
    assert (empty.flag("A", True), empty.seconds("A", 2.0), empty.count("A", 3, at_most=9)) == (True, 2.0, 3)
