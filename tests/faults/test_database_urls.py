"""URLs of databases as people have them, on a real PostgreSQL, and addresses to serve on."""

import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy
from click.testing import CliRunner

from peerseal.errors import ConfigurationError
from peerseal.runtime.database_url import sqlalchemy_url
from registry.cli import main
from registry.storage.engine import create_engine
from tests.support.processes import Server, free_port

SECRET = "p%40ss,w0rd"


def scalar(url: str, statement: str) -> object:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.text(statement)).scalar()
    finally:
        engine.dispose()


def plain(url: str) -> str:
    return "postgresql://" + url.partition("://")[2]


def spellings(url: str) -> list[str]:
    """The same database, as libpq and others write it; the first of several hosts does not answer."""
    parts = urlsplit(plain(url))
    login, _, place = parts.netloc.rpartition("@")
    login += "@" if login else ""
    dead = f"127.0.0.1:{free_port()}"
    rest = f"{parts.path}" + (f"?{parts.query}" if parts.query else "")
    more = "&" if parts.query else "?"
    if not place:  # by a socket, which the query names
        return [plain(url), "postgres" + plain(url)[10:], f"postgresql+psycopg{plain(url)[10:]}"]
    return [
        plain(url),
        "postgres" + plain(url)[10:],
        " " + plain(url) + "\n",
        f"postgresql://{login}{dead},{place}{rest}",
        f"postgresql://{login}{dead},{place}{rest}{more}target_session_attrs=read-write",
    ]


def test_every_spelling_of_a_postgresql_url_connects(postgres_url: str) -> None:
    for url in spellings(postgres_url):
        assert scalar(url, "select 1") == 1, url


def test_options_of_the_url_count(postgres_url: str) -> None:
    more = "&" if "?" in postgres_url else "?"
    url = f"{plain(postgres_url)}{more}options=-csearch_path%3Dapp%20-cstatement_timeout%3D1234&application_name=mine"
    assert scalar(url, "show search_path") == "app"
    assert scalar(url, "show statement_timeout") == "1234ms"
    assert scalar(url, "show application_name") == "mine"
    assert scalar(url, "show lock_timeout") == "5s", "ours stay where the URL says nothing"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("POSTGRESQL://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u:p@a:1,b:2/d?x=y", "postgresql+psycopg://u:p@/d?host=a:1&host=b:2&x=y"),
        ("postgresql://u@a,b/d", "postgresql+psycopg://u@/d?host=a&host=b"),
        ("postgresql:///d?host=/run/postgresql", "postgresql+psycopg:///d?host=/run/postgresql"),
        ("sqlite:////tmp/a b.sqlite3", "sqlite:////tmp/a b.sqlite3"),
    ],
)
def test_a_url_as_sqlalchemy_reads_it(given: str, read: str) -> None:
    assert sqlalchemy_url(given) == read


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{SECRET}@h/d",
        f"postgresql+asyncpg://u:{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h:port/d",
        f"postgresql://u:{SECRET}@h:1,h:99999999/d",
        "sqlite://",
        "sqlite:///:memory:",
        "not a url",
        "",
    ],
)
def test_another_database_is_one_clear_error(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_engine(url)
    assert "database" in str(refused.value)
    assert "w0rd" not in str(refused.value)


@pytest.mark.parametrize("host", ["nowhere.invalid", "1.2.3.4.5", "a b", "[", "é" * 80])
def test_what_is_no_address_is_a_usage_error(host: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["serve", "--host", host], env={"REGISTRY_HOME": str(tmp_path)})
    assert (ended.exit_code, "is no address of this host" in ended.output) == (2, True)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.e2e
@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize("host", ["[::1]", "::1"])
def test_the_registry_serves_on_an_ipv6_address(host: str, tmp_path: Path) -> None:
    port, settings = free_port(), {"REGISTRY_HOME": str(tmp_path / "home")}
    CliRunner().invoke(main, ["init", "--trust-domain", "acme.internal"], env=settings, catch_exceptions=False)
    serve = f"from registry.cli import main; main(['serve', '--host', '{host}', '--port', '{port}'])"
    url = f"http://[::1]:{port}"
    with Server("registry", [sys.executable, "-c", serve], url=url, log=tmp_path / "log", settings=settings) as server:
        server.wait_until_answers(f"{url}/readyz")
