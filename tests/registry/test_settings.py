"""Settings from the environment."""

from pathlib import Path

import pytest

from peerseal.errors import ConfigurationError
from registry.__main__ import main
from registry.app import create_app
from registry.limits import LIMIT_SETTINGS
from registry.settings import KNOWN, Settings
from registry.storage.engine import database_url


def test_defaults_are_under_the_home(tmp_path: Path) -> None:
    settings = Settings.from_environ({"REGISTRY_HOME": str(tmp_path)})
    assert settings.database_url == f"sqlite:///{tmp_path}/registry.sqlite3"
    files = settings.root_key_file, settings.signing_key_file, settings.ledger_key_file, settings.sealing_key_file
    assert {file.parent for file in files} == {tmp_path}
    assert settings.trust_domain is None
    assert not settings.dev
    assert Settings.from_environ({}).home == Path("registry-data").absolute()


def test_the_help_of_the_command_names_every_variable_but_those_of_limits() -> None:
    named = [name for name in KNOWN if not name.endswith("_FILE") and name not in LIMIT_SETTINGS]
    assert [name for name in named if name not in str(main.help)] == []


def test_no_variable_turns_the_laptop_mode_on() -> None:
    assert not Settings.from_environ({"REGISTRY_DEV": "1", "DEV": "1"}).dev


def test_the_database_url_may_be_a_secret_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://user:hunter2@db/registry\n")
    settings = Settings.from_environ({"REGISTRY_DATABASE_URL_FILE": str(file)})
    assert settings.database_url == "postgresql://user:hunter2@db/registry"
    assert "hunter2" not in repr(settings)
    both = {"REGISTRY_DATABASE_URL_FILE": str(file), "REGISTRY_DATABASE_URL": "sqlite:///x"}
    with pytest.raises(ConfigurationError):
        Settings.from_environ(both)
    with pytest.raises(ConfigurationError):
        Settings.from_environ({"REGISTRY_DATABASE_URL_FILE": str(tmp_path / "nothing")})


def test_by_default_applicants_are_off_and_limits_are_in_memory() -> None:
    default = Settings.from_environ({})
    assert (default.applicants, default.proxies, default.rate_limit_storage) == (False, 0, "memory://")
    environ = {
        "REGISTRY_APPLICANTS": "on",
        "REGISTRY_PROXIES": "2",
        "REGISTRY_RATE_LIMIT_STORAGE": "redis://:hunter2@r/0",
    }
    settings = Settings.from_environ(environ)
    assert (settings.applicants, settings.proxies, settings.rate_limit_storage) == (True, 2, "redis://:hunter2@r/0")
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_APPLICANTS", "maybe"),
        ("REGISTRY_PROXIES", "-1"),
        ("REGISTRY_PROXIES", "1.0"),
        ("REGISTRY_PROXIES", "100"),
        ("REGISTRY_WAITING_CALLS", "-1"),
        ("REGISTRY_WAITING_CALLS", "100001"),
        ("REGISTRY_WAITING_CALLS", "1.5"),
        ("REGISTRY_EXCHANGED_TOKEN_LIFETIME", "0"),
        ("REGISTRY_EXCHANGED_TOKEN_LIFETIME", "7w"),
        ("REGISTRY_EXCHANGED_TOKEN_LIFETIME", "1.5"),
        ("REGISTRY_EXCHANGED_TOKEN_LIFETIME", "366d"),
        ("REGISTRY_EXCHANGED_TOKEN_LIFETIME", "31536001"),
        ("REGISTRY_EXCHANGED_TOKEN_LIFETIME", "999999999"),
    ],
)
def test_switches_and_counts_are_checked(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_environ({name: value})


def test_an_exchanged_token_lives_a_week_or_as_long_as_the_operator_says() -> None:
    lifetimes = {"": 604_800, "3600": 3600, "7d": 604_800, "31536000": 31_536_000}
    for text, seconds in lifetimes.items():
        environ = {"REGISTRY_EXCHANGED_TOKEN_LIFETIME": text}
        assert Settings.from_environ(environ).limits.exchanged_token_lifetime == seconds


def test_calls_wait_as_the_server_has_room_or_as_the_operator_says() -> None:
    settings = [Settings.from_environ({"REGISTRY_WAITING_CALLS": text}) for text in ("", "0", "50")]
    assert [each.limits.waiting_calls for each in settings] == [None, 0, 50]


def test_names_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="REGISTRY_TRUST_DOMAIN: not a trust domain"):
        Settings.from_environ({"REGISTRY_TRUST_DOMAIN": "Acme Internal"})


@pytest.mark.parametrize("url", ["mysql://db/x", "sqlite://", "sqlite:///:memory:", "nonsense", "://secret@"])
def test_databases_that_are_not_supported(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        database_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_postgresql_is_reached_by_psycopg(scheme: str) -> None:
    assert database_url(f"{scheme}://db/x").drivername == "postgresql+psycopg"


def test_an_app_without_keys_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="initialised"):
        create_app(Settings.from_environ({"REGISTRY_HOME": str(tmp_path)}))
