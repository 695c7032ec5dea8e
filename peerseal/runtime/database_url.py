"""URLs of databases as people have them, in the form that SQLAlchemy reads."""

from urllib.parse import quote, unquote

from peerseal.errors import ConfigurationError

_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")


def sqlalchemy_url(text: str) -> str:
    """The same database for SQLAlchemy: ``postgres://`` and ``postgresql://`` by psycopg 3, and several hosts
    (``postgresql://user@one:5432,two:5433/name``), which libpq tries in turn, as its query names them.

    Other URLs stay as they are. Raises ConfigurationError, which quotes nothing: a URL may hold a password.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme.lower() not in _POSTGRESQL:
        return text.strip()
    authority, path, query = _parts(rest)
    login, at, hosts = authority.rpartition("@")
    if "," in hosts:
        names = [_host(one) for one in hosts.split(",")]
        query = "&".join([*(f"host={name}" for name in names), *([query] if query else [])])
        hosts = ""
    return f"postgresql+psycopg://{login}{at}{hosts}{path}" + (f"?{query}" if query else "")


def _parts(rest: str) -> tuple[str, str, str]:
    """Authority, path with its slash, and query."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    return authority, slash + path, query


def _host(text: str) -> str:
    """``host:port``, encoded for a query. Raises ConfigurationError."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, ""
    if not host or (port and not (port.isascii() and port.isdigit() and len(port) <= 5)):
        raise ConfigurationError("the database URL names a host or a port that is none")
    return quote(f"{unquote(host)}:{port}" if port else unquote(host), safe="[]:")
