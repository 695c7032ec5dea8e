"""URLs of databases as people have them, on a real PostgreSQL, and addresses to serve on."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import sqlalchemy
from click.testing import CliRunner
from sqlalchemy.engine import make_url

from client_service.storage import open_database as open_orders
from peerseal.errors import ConfigurationError
from peerseal.runtime.database_url import sqlalchemy_url
from registry.__main__ import main
from registry.services.registry import store_of
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.migrate import migrate
from registry.storage.revisions import commit_listener
from resource_service.database import open_database as open_invoices
from tests.support.forwarding import forwarded
from tests.support.processes import Server, free_port

SECRET = "p%40ss,w0rd"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def scalar(url: str, statement: str) -> object:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.text(statement)).scalar()
    finally:
        engine.dispose()


@pytest.fixture
def spellings(postgres_url: str) -> Iterator[list[str]]:
    """One database, as libpq and others write its URL: by its socket, by a port, and second to a host that is dead."""
    name, folder = urlsplit(postgres_url).path, make_url(postgres_url).query["host"]
    login, file, dead = f"postgres:{SECRET}@", quote(str(folder), safe=""), f"127.0.0.1:{free_port()}"
    by_socket = f"{name}?host={file}"
    with forwarded(Path(str(folder)) / ".s.PGSQL.5432") as port:
        yield [
            f"postgresql+psycopg://{login}{by_socket}",
            f"postgresql://{login}{by_socket}",
            f"postgres://{login}{by_socket}",
            f"POSTGRES://{login}{by_socket}",
            f" postgresql://{login}{by_socket}\n",
            f"postgresql://{login}{file}{name}",
            f"postgresql://{login}127.0.0.1:{port}{name}",
            f"postgresql://{login}{dead},127.0.0.1:{port}{name}",
            f"postgresql://{login}127.0.0.1:{port},{dead}{name}?target_session_attrs=read-write",
            f"postgresql://{login}{dead},{file}{name}",
            f"postgresql://{login}{name}?host=127.0.0.1,{file}&port={free_port()},5432&target_session_attrs=read-write",
            f"postgresql://{login}{name}?host=127.0.0.1,127.0.0.1&port={free_port()},{port}",
        ]


def test_every_spelling_of_a_postgresql_url_connects(spellings: list[str]) -> None:
    for url in spellings:
        assert scalar(url, "select 1") == 1, url


def test_options_of_the_url_count(postgres_url: str) -> None:
    url = f"{postgres_url}&options=-csearch_path%3Dapp%20-cstatement_timeout%3D1234&application_name=mine"
    assert scalar(url, "show search_path") == "app"
    assert scalar(url, "show statement_timeout") == "1234ms"
    assert scalar(url, "show application_name") == "mine"
    assert scalar(url, "show lock_timeout") == "3s", "ours stay where the URL says nothing"


def test_tables_are_made_in_the_schema_that_the_url_names(postgres_url: str) -> None:
    url = f"{postgres_url}&options=-csearch_path%3Dapp"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create schema app"))
    migrate(engine)
    engine.dispose()
    schemas = "select string_agg(distinct schemaname, ',') from pg_tables where schemaname in ('app', 'public')"
    assert scalar(postgres_url, schemas) == "app"


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_hosts_may_be_ipv6_addresses(postgres_url: str) -> None:
    name, folder = urlsplit(postgres_url).path, make_url(postgres_url).query["host"]
    with forwarded(Path(str(folder)) / ".s.PGSQL.5432", "::1") as port:
        for places in (f"[::1]:{port}", f"[::1]:{free_port()},[::1]:{port}"):
            assert scalar(f"postgresql://postgres@{places}{name}", "select 1") == 1, places


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("POSTGRESQL://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u:p@a:1,b:2/d?x=y", "postgresql+psycopg://u:p@/d?host=a,b&port=1,2&x=y"),
        ("postgresql://u@a,b/d", "postgresql+psycopg://u@/d?host=a,b"),
        ("postgresql://u@[::1]:1,[::2]/d", "postgresql+psycopg://u@/d?host=::1,::2&port=1,"),
        ("postgresql://u@[::1]:5432/d", "postgresql+psycopg://u@[::1]:5432/d"),
        ("postgresql://u@h:/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u@%2Frun%2Fpostgresql/d", "postgresql+psycopg://u@/d?host=/run/postgresql"),
        (f"postgresql://u:p@{SECRET}@h/d", f"postgresql+psycopg://u:p%40{SECRET}@h/d"),
        ("postgresql:///d?host=a,b&port=1,2", "postgresql+psycopg:///d?host=a,b&port=1,2"),
        ("postgresql:///d?host=/run/postgresql", "postgresql+psycopg:///d?host=/run/postgresql"),
        ("postgresql:///d?host=a,b&port=1", "postgresql+psycopg:///d?host=a,b&port=1,1"),
        ("postgresql:///d?host=a&host=b&port=1&x=y", "postgresql+psycopg:///d?host=a,b&port=1,1&x=y"),
        ("postgresql:///d?host=a:1,[::1]:2,::2", "postgresql+psycopg:///d?host=a,::1,::2&port=1,2,"),
        ("postgresql://u@h:1/d?host=a,b", "postgresql+psycopg://u@/d?host=a,b&port=1,1"),
        ("postgresql://u@h:1/d?port=2", "postgresql+psycopg://u@/d?host=h&port=2"),
        ("sqlite:////tmp/a b.sqlite3", "sqlite:////tmp/a b.sqlite3"),
        ("sqlite:////tmp/a+%E9\udce9", "sqlite:////tmp/a+%E9\udce9"),
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
        f"postgresql://u:{SECRET}@h:99999/d",
        f"postgresql://u:{SECRET}@h:0/d",
        f"postgresql://u:{SECRET}@h:1_0/d",
        f"postgresql://u:{SECRET}@h:-1/d",
        f"postgresql://u:{SECRET}@[::1/d",
        f"postgresql://u:{SECRET}@,h/d",
        f"postgresql://u:{SECRET}@a,b/d?host=c",
        f"postgresql://u:{SECRET}@a,b/d?port=1,2",
        f"postgresql://u:{SECRET}@h/d?port=x",
        f"postgresql://u:{SECRET}@h/d?nonsense=1",
        f"postgresql://u:{SECRET}@h/d?options",
        f"postgresql://u:{SECRET}@h/d?options=-cx=1&options=-cy=1",
        f"postgresql://u:{SECRET}@h/d?connect_timeout=soon",
        f"postgresql://u:12/{SECRET}@h/d",
        f"postgresql://u:12?{SECRET}@h/d",
        "postgresql://u:12?w0rd=1@h/d",
        "postgresql://u:12?w0rd=1&w0rd=2@h/d",
        f"postgresql://u:p/{SECRET}@h/d",
        f"nonsense://u:{SECRET}@h/d",
        "sqlite:////tmp/x?mode=ro",
        f"postgresql://u:{SECRET}@/d?host=a,b,c&port=1,2",
        f"postgresql://u:{SECRET}@h/d?port=1,2",
        f"postgresql://u:{SECRET}@/d?host=a:1,b&port=1,2",
        f"postgresql://u:{SECRET}@/d?host=a:x",
        f"postgresql://u:{SECRET}%00@h/d",
        f"sqlite://u:{SECRET}@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "not a url",
        "",
        "postgresql://u:w0rd@h/d?user=x",
        "postgresql://u:w0rd@h/d?dbname=x",
        "postgresql://u:w0rd@h/d?password=w0rd",
        "postgresql://h/d?port=1&port=2",
        "postgresql://h/d?port=1,2",
        "postgresql://u:w0rd@h/d%00b",
        "postgresql://u:w0rd@h/d\0b",
        "sqlite://host/file",
        "sqlite://file",
        f"postgresql://u@h/d?password={SECRET}+x",
        f"postgresql://u:{SECRET}%E9@h/d",
        f"postgresql://u:{SECRET}\udce9@h/d",
        f"postgresql://u@h/d?password={SECRET}%E9",
    ],
)
def test_another_database_is_one_clear_error(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_engine(url)
    assert "database" in str(refused.value)
    assert "w0rd" not in str(refused.value)


@pytest.mark.parametrize("url", ["mysql://u:w0rd@h/d", "postgresql://u:w0rd@h:x/d", "not a url"])
def test_every_reader_of_a_database_url_refuses_it_before_it_connects(url: str, tmp_path: Path) -> None:
    for refuse in (
        lambda: Settings.from_environ({"REGISTRY_DATABASE_URL": url}),
        lambda: open_orders(url, tmp_path / "state"),
        lambda: open_invoices(url),
    ):
        with pytest.raises(ConfigurationError) as refused:
            refuse()
        assert "w0rd" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="REGISTRY_DATABASE_URL: the database"):
        Settings.from_environ({"REGISTRY_DATABASE_URL": url})


@pytest.mark.parametrize("urls", [("sqlite:///a", "postgresql:///a"), ("postgresql:///a", "sqlite:///a")])
def test_no_other_database_is_listened_to(urls: tuple[str, str]) -> None:
    settings = Settings.from_environ(dict(zip(("REGISTRY_DATABASE_URL", "REGISTRY_LISTEN_URL"), urls, strict=True)))
    with pytest.raises(ConfigurationError, match="REGISTRY_LISTEN_URL is for PostgreSQL"):
        store_of(settings)


def test_a_password_in_the_query_is_never_shown() -> None:
    engine = create_engine("postgresql://u@h/d?password=w0rd&sslmode=prefer")
    assert engine.url.password == "w0rd"
    assert "w0rd" not in repr(engine)


def test_the_examples_take_the_same_urls(spellings: list[str], tmp_path: Path) -> None:
    for url in spellings:
        for engine in (open_orders(url, tmp_path), open_invoices(url)):
            with engine.connect() as connection:
                assert connection.execute(sqlalchemy.text("select 1")).scalar() == 1, url
            engine.dispose()


def test_notifications_of_commits_come_through_the_same_url(spellings: list[str]) -> None:
    for url in spellings:
        engine = create_engine(url)
        listener = commit_listener(engine)
        listener.listen()
        assert listener.listening, url
        listener.close()
        engine.dispose()


@pytest.mark.parametrize(
    "host",
    [
        "nowhere.invalid",
        "1.2.3.4.5",
        "a b",
        "[",
        "é" * 80,
        "",
        " ",
        "[::1",
        "::1]",
        "[127.0.0.1]",
        "127.0.0.1:80",
        "192.0.2.1",
    ],
)
def test_what_is_no_address_is_a_usage_error(host: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["serve", "--host", host], env={"REGISTRY_HOME": str(tmp_path)})
    assert (ended.exit_code, "is no address of this host" in ended.output) == (2, True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_an_address_of_this_host_is_served_on(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[str] = []
    monkeypatch.setattr("registry.commands.node.run_gunicorn", lambda _settings, bind, _workers: bound.append(bind))
    CliRunner().invoke(main, ["serve", "--host", host], env={"REGISTRY_HOME": str(tmp_path)}, catch_exceptions=False)
    assert bound == [f"{host}:8080"]


@pytest.mark.parametrize("number", ["0", "65536", "-1", "8_080", "+8080", "\u0668\u0660", "80.0", "http", ""])
def test_what_is_no_port_is_a_usage_error(number: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["serve", f"--port={number}"], env={"REGISTRY_HOME": str(tmp_path)})
    assert (ended.exit_code, "--port" in ended.output) == (2, True)


@pytest.mark.e2e
@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize("host", ["[::1]", "::1"])
@pytest.mark.thorough
def test_the_registry_serves_on_an_ipv6_address(host: str, tmp_path: Path) -> None:
    port, settings = free_port(), {"REGISTRY_HOME": str(tmp_path / "home")}
    CliRunner().invoke(main, ["init", "--trust-domain", "acme.internal"], env=settings, catch_exceptions=False)
    serve = f"from registry.__main__ import main; main(['serve', '--host', '{host}', '--port', '{port}'])"
    url = f"http://[::1]:{port}"
    with Server("registry", [sys.executable, "-c", serve], url=url, log=tmp_path / "log", settings=settings) as server:
        server.wait_until_answers(f"{url}/readyz")
