"""Database URLs as people write them, in the form that SQLAlchemy reads."""

import re
from collections.abc import Collection
from urllib.parse import parse_qsl, quote, unquote

from peerseal.errors import ConfigurationError

_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}")
_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::([0-9]*))?")
_PORT = re.compile(r"[0-9]{1,5}")
_SEVERAL = ("host", "port")
"""Names that SQLAlchemy accepts more than once in a query."""


def sqlalchemy_url(text: str) -> str:
    """The same database for SQLAlchemy: ``postgres://`` and ``postgresql://`` by psycopg 3, and several hosts
    (``postgresql://user@one:5432,two:5433/name``), which libpq tries in turn, as its query names them; or SQLite.

    Raises ConfigurationError for anything else, and for parts that would be dropped or fail only at the first
    connection. It quotes only the scheme: a URL may hold a password."""
    if "\0" in unquote(text):
        raise ConfigurationError("the database URL holds a NUL character")
    scheme, separator, rest = text.strip().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ConfigurationError("the database URL must read postgresql://user@host:port/name or sqlite:///FILE")
    if scheme.lower() in _SQLITE:
        if "?" in rest:
            raise ConfigurationError("the database URL has options, of which SQLite takes none here")
        if not rest.startswith("/"):
            raise ConfigurationError("the database URL of SQLite must read sqlite:///FILE, without login and host")
        return f"sqlite://{rest}"
    if scheme.lower() not in _POSTGRESQL:
        raise ConfigurationError(f"the database must be PostgreSQL, or SQLite in a file, and not {scheme}://…")
    _check_unicode(rest)
    return f"postgresql+psycopg://{_for_psycopg(rest)}"


def _check_unicode(text: str) -> None:
    """Raises ConfigurationError for bytes that are no UTF-8: SQLAlchemy would put another character in their place."""
    try:
        unquote(text, errors="strict").encode()
    except UnicodeError:
        raise ConfigurationError("the database URL holds bytes that are no UTF-8") from None  # the cause quotes it


def _for_psycopg(rest: str) -> str:
    """Login, hosts, path and query, checked."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    login, at, places = authority.rpartition("@")
    pairs = _query(query)
    named = {name for name, _ in pairs}
    _check_said_once(login, path, named)
    where = list(map(_host, places.split(","))) if places else []
    if len(where) > 1 or any(host.startswith("/") for host, _ in where):
        if named & {*_SEVERAL, "hostaddr"}:
            raise ConfigurationError("the database URL names hosts both before its path and in its query")
        query, places = _with_places(where, query), ""
    elif named & {*_SEVERAL}:
        ours = where[0] if where else ("", "")
        query, places = _with_places(_places(pairs, ours), query), ""
    if "@" in path:
        raise ConfigurationError("the database URL's name holds an @; quote it as %40, and / in a password as %2F")
    user, colon, password = login.partition(":")
    login = user + colon + password.replace("@", "%40")  # psycopg would name what follows it as the host, in errors
    return f"{login}{at}{places.removesuffix(':')}{slash}{path}" + (f"?{query}" if query else "")


def _places(pairs: list[tuple[str, str]], ours: tuple[str, str]) -> list[tuple[str, str]]:
    """The hosts of a query, each with its port, as libpq reads them: one port counts for every host, and ``ours``, the
    host and port before the path, where the query names none. Raises ConfigurationError."""
    hosts = [_host_in_query(host) for name, value in pairs if name == "host" for host in value.split(",")] or [ours]
    ports = [port for name, value in pairs if name == "port" for port in value.split(",")]
    if not ports:
        return [(host, port or ours[1]) for host, port in hosts]
    if any(port for host, port in hosts if (host, port) != ours):
        raise ConfigurationError("the database URL's query names a port both with a host and by itself")
    if len(ports) not in (1, len(hosts)):
        raise ConfigurationError(
            f"the database URL names {len(hosts)} hosts and {len(ports)} ports; give one port each"
        )
    return [(host, port) for (host, _), port in zip(hosts, ports * len(hosts), strict=False)]


def _with_places(places: list[tuple[str, str]], query: str) -> str:
    """The query with these hosts and ports, in the one form that SQLAlchemy hands on as it is."""
    hosts, ports = zip(*places, strict=True)
    named = [("host", ",".join(hosts)), ("port", ",".join(ports))]
    others = [part for part in query.split("&") if part and unquote(part.partition("=")[0]) not in _SEVERAL]
    return "&".join([*(f"{name}={quote(text, safe=',/:')}" for name, text in named if text.strip(",")), *others])


def _host(text: str) -> tuple[str, str]:
    """The host, decoded and without brackets, and its port, which may be empty. Raises ConfigurationError."""
    match = _HOST.fullmatch(text)
    if match is None or (match[2] and not _is_port(match[2])):
        raise ConfigurationError("the database URL names an invalid host or port; is a password quoted as %XX?")
    return unquote(match[1].removeprefix("[").removesuffix("]")), match[2] or ""


def _host_in_query(text: str) -> tuple[str, str]:
    """As `_host`; a query may leave a host empty, and names an IPv6 address without brackets."""
    return (text, "") if not text or text.startswith("/") or (text.count(":") > 1 and text[0] != "[") else _host(text)


def _check_said_once(login: str, path: str, named: Collection[str]) -> None:
    """Raises ConfigurationError for a value that stands both before the query and in it: one would be dropped."""
    user, _, password = login.partition(":")
    for name, given in (("user", user), ("password", password), ("dbname", path)):
        if given and name in named:
            raise ConfigurationError(f"the database URL names the {name} both before its query and in it")


def _query(text: str) -> list[tuple[str, str]]:
    """The names and values in a query. Raises ConfigurationError for a name without a value, and for a name that
    appears twice: SQLAlchemy would drop one of its values."""
    if "@" in text:  # the end of a password, which must not stand in an error as a parameter's name
        raise ConfigurationError("the database URL's query holds an @; quote it as %40, and ? in a password as %3F")
    if "+" in text:  # a space for SQLAlchemy, itself for libpq
        raise ConfigurationError("the database URL's query holds a +; quote it as %2B, or a space as %20")
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
            raise ConfigurationError("the database URL names an invalid port")
    return pairs


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 0 < int(text) < 65536
