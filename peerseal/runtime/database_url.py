"""URLs of databases as people have them, in the form that SQLAlchemy reads."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, quote, unquote

from peerseal.errors import ConfigurationError

_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}")
_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::([0-9]*))?")
_PORT = re.compile(r"[0-9]{1,5}")
_SEVERAL = ("host", "port")
"""What SQLAlchemy takes more than once in a query."""


def sqlalchemy_url(text: str) -> str:
    """The same database for SQLAlchemy: ``postgres://`` and ``postgresql://`` by psycopg 3, and several hosts
    (``postgresql://user@one:5432,two:5433/name``), which libpq tries in turn, as its query names them; or SQLite.

    Raises ConfigurationError for anything else, and for parts that would be dropped or be found wrong at the first
    connection only. It quotes nothing but the scheme: a URL may hold a password.
    """
    if "\0" in unquote(text):
        raise ConfigurationError("the database URL holds a NUL character")
    scheme, separator, rest = text.strip().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ConfigurationError("the database URL must read postgresql://user@host:port/name or sqlite:///FILE")
    if scheme.lower() in _SQLITE:
        if "?" in rest:
            raise ConfigurationError("the database URL has options, of which SQLite takes none here")
        if rest and not rest.startswith("/"):
            raise ConfigurationError("the database URL must read sqlite:///FILE, and sqlite:////FILE from the root")
        return f"sqlite://{rest}"
    if scheme.lower() not in _POSTGRESQL:
        raise ConfigurationError(f"the database must be PostgreSQL, or SQLite in a file, and not {scheme}://…")
    return f"postgresql+psycopg://{_for_psycopg(rest)}"


def _for_psycopg(rest: str) -> str:
    """Login, hosts, path and query, checked."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    login, at, places = authority.rpartition("@")
    named = _query(query)
    hosts, ports = zip(*map(_host, places.split(",")), strict=True) if places else ((), ())
    several = len(hosts) > 1 or any(host.startswith("/") for host in hosts)
    if named.keys() & {*(["host"] if hosts else []), *(["port"] if any(ports) else [])} or (
        several and named.keys() & {"port", "hostaddr"}
    ):
        raise ConfigurationError("the database URL names hosts both before its path and in its query")
    _check_said_once(login, path, named)
    _check_ports(hosts, named)
    if several:
        where = [f"host={quote(','.join(hosts), safe=',/:')}"]
        if any(ports):
            where.append(f"port={','.join(ports)}")
        query, places = "&".join([*where, *([query] if query else [])]), ""
    if "@" in path:
        raise ConfigurationError("the database URL's name holds an @; quote it as %40, and / in a password as %2F")
    user, colon, password = login.partition(":")
    login = user + colon + password.replace("@", "%40")  # psycopg would name what follows it as the host, in errors
    return f"{login}{at}{places.removesuffix(':')}{slash}{path}" + (f"?{query}" if query else "")


def _host(text: str) -> tuple[str, str]:
    """The host, decoded and without brackets, and its port, which may be empty. Raises ConfigurationError."""
    match = _HOST.fullmatch(text)
    if match is None or (match[2] and not _is_port(match[2])):
        raise ConfigurationError("the database URL names a host or a port that is none; is a password quoted as %XX?")
    return unquote(match[1].removeprefix("[").removesuffix("]")), match[2] or ""


def _check_said_once(login: str, path: str, named: Mapping[str, list[str]]) -> None:
    """Raises ConfigurationError for what stands before the query and in it: one would be dropped."""
    user, _, password = login.partition(":")
    for name, given in (("user", user), ("password", password), ("dbname", path)):
        if given and name in named:
            raise ConfigurationError(f"the database URL names the {name} both before its query and in it")


def _check_ports(hosts: Sequence[str], named: Mapping[str, list[str]]) -> None:
    """SQLAlchemy wants a port for each host. Raises ConfigurationError."""
    hosts, ports = hosts or named.get("host", []), named.get("port", [])
    if hosts and ports and len(hosts) != len(ports):
        raise ConfigurationError(
            f"the database URL names {len(hosts)} hosts and {len(ports)} ports; each needs its own"
        )


def _query(text: str) -> dict[str, list[str]]:
    """The values in a query by name; of hosts and ports each by itself. Raises ConfigurationError for one without a
    value, and for one that stands there twice, of which one would be dropped."""
    if "@" in text:  # the end of a password, which must not stand in an error as a parameter's name
        raise ConfigurationError("the database URL's query holds an @; quote it as %40, and ? in a password as %3F")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else []
    except ValueError:
        raise ConfigurationError("the database URL's query must read name=value&…") from None  # the cause quotes it
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1 and name not in _SEVERAL]
    if twice:
        raise ConfigurationError(f"the database URL names {twice[0][:40]!r} more than once")
    for name, value in pairs:
        if name == "port" and not all(not port or _is_port(port) for port in value.split(",")):
            raise ConfigurationError("the database URL names a port that is none")
    return {name: [part for other, value in pairs if other == name for part in value.split(",")] for name, _ in pairs}


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 0 < int(text) < 65536
