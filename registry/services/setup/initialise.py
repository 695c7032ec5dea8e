"""``peerseal-registry init``: makes what is missing, and changes nothing that exists."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.fernet import Fernet

from peerseal.errors import ConfigurationError
from peerseal.protocol import jose
from peerseal.protocol.documents.frame import MAX_DOCUMENT, sign_document
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_LIFETIME, RegistryKeys
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.checkpoint import ledger_jwk
from peerseal.protocol.ledger.entries import OPERATOR_CREATED, REGISTRY_CREATED, REGISTRY_KEYS_ISSUED
from peerseal.protocol.names import REGISTRY, check_trust_domain, registry_id
from peerseal.runtime.files import Access, Folder
from registry.services.access.operators import LOCAL, Role, create_token
from registry.services.authority.authority import RENEW_BEFORE, AuthoritySource
from registry.services.authority.fork_guard import ForkGuard
from registry.services.authority.ledger_watch import LedgerWatch
from registry.services.setup import keyfiles
from registry.settings import DATABASE_FILE, Settings
from registry.storage.migrate import migrate
from registry.storage.queries import audit, documents, ledger, services
from registry.storage.queries.ledger import Change, append
from registry.storage.unit import Store

FIRST_OPERATOR_TTL = 90 * 24 * 3600
"""Lifetime of the first operator token in seconds: long enough to make others."""
OPERATOR_TOKEN_FILE = "operator-token"

_COPY = "copy the key files from the first node"


@dataclass(frozen=True, slots=True)
class Initialised:
    """The trust domain, the root's pin, and the names of what was made.

    ``operator_token`` is the first operator's token if it was made; ``operator_token_file`` holds it too.
    """

    domain: str
    pin: str
    made: Sequence[str]
    operator_token_file: Path
    operator_token: str | None = field(default=None, repr=False)


def initialise(
    settings: Settings,
    store: Store,
    domain: str | None,
    clock: Callable[[], float] = time.time,
    *,
    default_domain: str | None = None,
) -> Initialised:
    """Makes the schema, the keys, the root-signed document and the first operator token if they are missing.

    The first call needs a trust domain, ``domain`` or the one in the settings; later it must be the same.
    ``default_domain`` is for a new registry without either. Raises ConfigurationError, InvalidName, or LedgerForked for
    another ledger than this host has seen.
    """
    _prepare_home(settings)
    migrate(store.engine)
    guard = ForkGuard.of(settings, store, clock)
    store = store.guarded(guard)
    if guard.unconfirmed and settings.signing_key_file.exists() and settings.ledger_key_file.exists():
        LedgerWatch(settings, store, guard, AuthoritySource(settings, store, guard, clock)).ask()
    while (documented := _documented(settings, store, domain, default_domain, clock)) is None:
        pass  # another node was faster: look again
    document, made = documented
    token = _first_operator(settings, store, clock)
    if token:
        made.append("operator token")
    AuthoritySource(settings, store, guard, clock).current()  # remembers the ledger
    token_file = settings.home / OPERATOR_TOKEN_FILE
    return Initialised(document.subject, document.root.thumbprint, made, token_file, token)


def make_keys(settings: Settings) -> tuple[str, Sequence[str]]:
    """Makes the four key files without a database, for secrets that a platform mounts. Returns the root's pin, and the
    names of the files that were made: none where all are there. Raises ConfigurationError where only some are."""
    _home(settings).make()
    files = settings.root_key_file, settings.signing_key_file, settings.ledger_key_file, settings.sealing_key_file
    missing = [str(file) for file in files if not file.exists()]
    if 0 < len(missing) < len(files):
        raise ConfigurationError(f"{', '.join(missing)}: missing next to other keys: make new keys in an empty folder")
    made = _make_files(settings, fresh=True)
    root = keyfiles.read_key_pair(settings.root_key_file, "root key", settings.key_passphrase)
    return root.public.thumbprint, made


def _documented(
    settings: Settings, store: Store, domain: str | None, default_domain: str | None, clock: Callable[[], float]
) -> tuple[RegistryKeys, list[str]] | None:
    """The root-signed document that fits this node's keys, and the names of what was made for it. None if another node
    issued one at the same time."""
    with store.read() as connection:
        ledger.frontier(connection)  # the guard checks it
        known_jws = documents.registry_keys(connection)
    known = None if known_jws is None else decode_document(known_jws)
    domain = _settled_domain(domain or settings.trust_domain, known, default_domain)
    if known is not None:
        _check_files(settings, known)
    made = _make_files(settings, fresh=known is None)
    document = _wanted(settings, domain, known, int(clock()))
    if document is not known:
        root = keyfiles.read_key_pair(settings.root_key_file, "root key", settings.key_passphrase)
        if not issue(store, document, sign_document(document, root), replaces=known_jws):
            return None
        made.append("registry keys document")
    return document, made


def decode_document(jws: str) -> RegistryKeys:
    """A document of the registry's own database, which may have expired."""
    return RegistryKeys.from_claims(strict_json_object(jose.parse(jws, limit=MAX_DOCUMENT).payload))


def _settled_domain(wanted: str | None, known: RegistryKeys | None, default: str | None) -> str:
    if known is not None and wanted in (None, known.subject):
        return known.subject
    if known is not None:
        raise ConfigurationError(f"this registry's trust domain is {known.subject}, not {wanted}; it cannot be changed")
    if (new := wanted or default) is None:
        raise ConfigurationError("the trust domain is needed: --trust-domain NAME")
    return check_trust_domain(new)


def _check_files(settings: Settings, known: RegistryKeys) -> None:
    """Checks, before any file is written, that missing files may be made. Raises ConfigurationError."""
    path = settings.sealing_key_file
    if not path.exists():  # a new one could not open the existing join tokens
        raise ConfigurationError(f"the sealing key {path} is missing, and a new one would not fit: {_COPY}")
    if not (settings.signing_key_file.exists() and settings.ledger_key_file.exists()):
        _check_root(settings, known)


def _check_root(settings: Settings, known: RegistryKeys) -> None:
    """Checks that the root key is here to sign another document. Raises ConfigurationError."""
    if not settings.root_key_file.exists():
        raise ConfigurationError(
            "the database was initialised with other signing or ledger keys or URLs than this node's: "
            f"{_COPY}, or bring the root key to have these signed"
        )
    pin = keyfiles.read_key_pair(settings.root_key_file, "root key", settings.key_passphrase).public.thumbprint
    if pin != known.root.thumbprint:
        raise ConfigurationError(
            f"the root key in {settings.root_key_file} has the pin {pin}, clients have pinned {known.root.thumbprint}"
        )


def _make_files(settings: Settings, fresh: bool) -> list[str]:
    """Makes the missing key files, and returns their names."""
    passphrase = settings.key_passphrase
    wanted: list[tuple[str, Path, Callable[[], bytes]]] = [
        ("signing key", settings.signing_key_file, lambda: keyfiles.new_key_pair(passphrase)),
        ("ledger key", settings.ledger_key_file, lambda: keyfiles.new_ledger_key(passphrase)),
    ]
    if fresh:  # later it may be offline
        wanted.insert(0, ("root key", settings.root_key_file, lambda: keyfiles.new_root_key(passphrase)))
        wanted.append(("sealing key", settings.sealing_key_file, Fernet.generate_key))
    return [f"{name} {path}" for name, path, make in wanted if keyfiles.ensure(path, make)]


def _wanted(settings: Settings, domain: str, known: RegistryKeys | None, now: int) -> RegistryKeys:
    """The document that names this node's keys: the known one, or its next version, which also names the previous keys,
    so documents that they signed stay valid.

    Raises ConfigurationError where the root key is needed and missing, or another one.
    """
    passphrase = settings.key_passphrase
    signing = keyfiles.read_key_pair(settings.signing_key_file, "signing key", passphrase).public
    ledger_key = ledger_jwk(keyfiles.read_ledger_key(settings.ledger_key_file, passphrase).public_key())
    signing_keys: tuple[PublicKey, ...] = (signing,)
    past: tuple[Mapping[str, str], ...] = ()
    if known is not None:
        named = signing in known.signing_keys and ledger_key in known.ledger_keys
        fits = named and known.urls == settings.public_urls
        renew = now > known.expires_at - RENEW_BEFORE and settings.root_key_file.exists()
        if fits and not renew:
            return known
        signing_keys = (signing, *(key for key in known.signing_keys if key != signing))[:2]
        past = tuple(key for key in known.ledger_keys if key != ledger_key)[:1]
        _check_root(settings, known)
    root = keyfiles.read_key_pair(settings.root_key_file, "root key", passphrase).public
    return RegistryKeys(
        issuer=registry_id(domain),
        subject=domain,
        issued_at=now,
        expires_at=now + REGISTRY_KEYS_LIFETIME,
        version=1 if known is None else known.version + 1,
        root=root,
        signing_keys=signing_keys,
        ledger_key=ledger_key,
        urls=settings.public_urls,
        past_ledger_keys=past,
        witnesses=None if known is None else known.witnesses,
    )


def issue(store: Store, document: RegistryKeys, jws: str, *, replaces: str | None) -> bool:
    """Writes the signed document. False if another one than ``replaces`` is in force by now."""
    kind = REGISTRY_CREATED if replaces is None else REGISTRY_KEYS_ISSUED
    data = {"version": document.version, "root": document.root.thumbprint, "domain": document.subject, "document": jws}
    with store.write() as connection:
        seq = append(connection, document.issued_at, Change(kind, by=LOCAL, data=data)).entry.seq
        if documents.registry_keys(connection) != replaces:
            connection.rollback()
            return False
        documents.add_registry_keys(connection, document.version, jws)
        services.changed(connection, REGISTRY, seq)
        audit.record(connection, document.issued_at, LOCAL, kind, document.subject, seq)
    return True


def _home(settings: Settings) -> Folder:
    return Folder(settings.home, "REGISTRY_HOME", access=Access.COMMON)


def _prepare_home(settings: Settings) -> None:
    """Makes the folder of the keys and the operator's token, before the database is changed. Raises
    ConfigurationError."""
    home = _home(settings).make()
    missing = [file for file in (settings.signing_key_file, settings.ledger_key_file) if not file.exists()]
    if missing or settings.database_url == f"sqlite:///{settings.home / DATABASE_FILE}":
        home.check_writable()


def _first_operator(settings: Settings, store: Store, clock: Callable[[], float]) -> str | None:
    """Writes the first operator's token into its file, and returns it; None where there ever was one: the rows of past
    tokens are removed, their entries stay."""
    with store.look() as connection:
        if ledger.has_any(connection, OPERATOR_CREATED):
            return None
    _, token = create_token(store, Role.ADMIN, FIRST_OPERATOR_TTL, int(clock()))
    _home(settings).write(OPERATOR_TOKEN_FILE, token.encode("ascii") + b"\n")  # over one of another database
    return token
