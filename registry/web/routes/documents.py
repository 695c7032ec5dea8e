"""What every caller may read: the registry's keys, the services' keys and statements, changes, and the ledger.

The ledger has the paths of C2SP tlog-tiles below ``/ledger``. For load balancers, orchestrators and Prometheus: what
this node can answer, and what all workers have counted.
"""

import re
from collections.abc import Iterator
from contextlib import suppress

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from peerseal.errors import ConfigurationError, InvalidName
from peerseal.protocol.documents.changes import Watched
from peerseal.protocol.ledger.checkpoint import TILE_WIDTH
from registry.domain.errors import BadRequest, NotFound, StorageUnavailable
from registry.services.authority.authority import Authority, NotInitialised
from registry.services.documents.answer_cache import JWK_SET, JWT, PublicAnswer
from registry.services.documents.changes import ALL
from registry.services.documents.publish import registry_jwks
from registry.services.registry import Registry
from registry.storage.queries import ledger
from registry.web.delayed_answer import DelayedAnswer, ended_wait
from registry.web.limiting import calling_account
from registry.web.metrics import WORKERS, answered
from registry.web.published import published
from registry.web.wire import number, parameter, private_json, registry

wellknown_blueprint = Blueprint("wellknown", __name__, url_prefix="/.well-known")
documents_blueprint = Blueprint("documents", __name__, url_prefix="/v1")
asap_blueprint = Blueprint("asap", __name__, url_prefix="/asap")
histories_blueprint = Blueprint("histories", __name__, url_prefix="/v1")
ledger_blueprint = Blueprint("ledger", __name__, url_prefix="/ledger")
health_blueprint = Blueprint("health", __name__)
metrics_blueprint = Blueprint("metrics", __name__)
BLUEPRINTS = (
    wellknown_blueprint,
    documents_blueprint,
    asap_blueprint,
    histories_blueprint,
    ledger_blueprint,
    health_blueprint,
    metrics_blueprint,
)

FOR_EVER = "public, max-age=31536000, immutable"
_LEVELS = frozenset("01234567")
"""A tree with more levels has more entries than any ledger. Each level has one spelling."""
_BLOCK = re.compile("0|[1-9][0-9]{0,11}")
"""The number of a block, in one spelling."""
_PART = re.compile("[0-9]|[1-5][0-9]|6[0-3]")
"""The number of a part, in one spelling."""
_TILE = re.compile(r"((?:x[0-9]{3}/){0,5})([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@wellknown_blueprint.get("/peerseal-registry")
def registry_keys() -> Response:
    """The root-signed registry keys document."""
    authority = registry().authority.newest()
    return published(_of_authority(authority, authority.jws.encode("ascii"), JWT))


@wellknown_blueprint.get("/jwks.json")
def jwks() -> Response:
    """The registry's own signing keys as a plain JWK Set."""
    authority = registry().authority.newest()
    return published(_of_authority(authority, registry_jwks(authority), JWK_SET))


def _of_authority(authority: Authority, body: bytes, content_type: str) -> PublicAnswer:
    return PublicAnswer.of(body, content_type, 0, 0, authority.keys.issued_at, authority.keys.expires_at)


@documents_blueprint.get("/services/<service>/jwks.jwt")
def signed_key_set(service: str) -> Response:
    """The signed JWK Set; with ``?seq=M`` as of entry M or later."""
    return published(registry().publisher.signed_key_set(service, number("seq")))


@documents_blueprint.get("/services/<service>/jwks/<part>.jwt")
def key_set_part(service: str, part: str) -> Response:
    """A part of a large JWK Set; with ``?seq=M`` as of entry M or later."""
    if not _PART.fullmatch(part):
        raise NotFound("part_not_found")
    return published(registry().publisher.part(service, int(part), number("seq")))


@documents_blueprint.get("/services/<service>/jwks.json")
def plain_key_set(service: str) -> Response:
    """The current keys for any JWT library."""
    return published(registry().publisher.plain_key_set(service, number("seq")))


@documents_blueprint.get("/services/<service>/keys/<thumbprint:thumbprint>.jwt")
def key_statement(service: str, thumbprint: str) -> Response:
    """The key statement; with ``?seq=M`` as of entry M or later."""
    return published(registry().publisher.statement(service, thumbprint, number("seq")))


@asap_blueprint.get("/<domain>/<service>/<thumbprint:thumbprint>")
def active_key(domain: str, service: str, thumbprint: str) -> Response:
    """An active key as PEM: the registry is a key repository of ASAP, in which a kid of Peerseal is the key's id."""
    return published(registry().publisher.active_key(domain, service, thumbprint))


@documents_blueprint.get("/changes")
def changes() -> Response:
    """Which services changed after entry ``since``. With ``?wait=S`` the answer comes at the first change, or after S
    seconds, where the server has room for calls that wait. With ``&services=`` other changes do not end the wait."""
    feed, waited = registry().changes, ended_wait(request.environ)
    if waited is not None:
        return published(feed.unchanged(waited.since), "no-cache")
    limits, since, wait = registry().settings.limits, number("since"), number("wait")
    if wait > limits.wait:
        raise BadRequest("invalid_parameter", f"wait is longer than {limits.wait} seconds")
    watched = _watched()
    call = feed.wait(since, calling_account(), watched) if wait and request.is_multithread else None
    return published(feed.since(since), "no-cache") if call is None else DelayedAnswer(call, wait, feed.kept)


def _watched() -> Watched:
    """The services whose changes end the wait. Raises BadRequest."""
    text = parameter("services")
    try:
        return ALL if text is None else Watched.read(text)
    except InvalidName as error:
        raise BadRequest("invalid_parameter", f"services: {error}") from error


@documents_blueprint.get("/changes/recent.jwt")
def recent_changes() -> Response:
    """The services that were changed last: one answer for all callers, which caches keep for a second."""
    return published(registry().changes.recent(), "public, max-age=1")


@documents_blueprint.get("/current/<block>.jwt")
def current(block: str) -> Response:
    """Which services the entries of that block of the ledger changed last."""
    if not _BLOCK.fullmatch(block):
        raise NotFound("block_not_found")
    return published(registry().current.block(int(block)))


@histories_blueprint.get("/history")
def history() -> Response:
    """The root's statements about lost entries. A client reads them when the registry has another ledger than the
    client remembers."""
    body, now = registry().histories.published(), int(registry().clock())
    return published(PublicAnswer.of(body, "application/json", 0, 0, now, now), "no-cache")


@ledger_blueprint.get("/checkpoint")
def checkpoint() -> Response:
    """The signed head of the ledger, as of now."""
    return published(registry().ledger.checkpoint(), "no-cache")


@ledger_blueprint.get("/checkpoint.cosigned")
def cosigned_checkpoint() -> Response:
    """The newest checkpoint that enough witnesses have cosigned, with their signatures."""
    return published(registry().cosigning.newest(), "public, max-age=1")


@ledger_blueprint.get("/tile/<level>/<path:place>")
def tile(level: str, place: str) -> Response:
    """A tile of hashes."""
    if level not in _LEVELS:
        raise NotFound("tile_not_found")
    return published(registry().ledger.tile(int(level), *_number_and_width(place)), FOR_EVER)


@ledger_blueprint.get("/tile/entries/<path:place>")
def entries(place: str) -> Response:
    """A bundle of entries."""
    return published(registry().ledger.bundle(*_number_and_width(place)), FOR_EVER)


@ledger_blueprint.get("/proof")
def proof() -> Response:
    """With ``?kid=`` the inclusion proof of a key's admission. With ``?from=M&to=N`` the proof that the ledger of size
    N begins with that of size M."""
    if not request.args.keys() <= {"kid", "from", "to"}:
        raise BadRequest("invalid_parameter", "either kid, or from and to")
    kid = parameter("kid")
    if (kid is None) == (parameter("from") is None):
        raise BadRequest("invalid_parameter", "either kid, or from and to")
    if kid is not None:
        return private_json(registry().ledger.inclusion(kid))
    response = private_json(registry().ledger.consistency(number("from"), number("to")))
    response.headers["Cache-Control"] = FOR_EVER
    return response


def _number_and_width(path: str) -> tuple[int, int]:
    """A tile's number and width from its path. Raises NotFound."""
    match = None if request.query_string else _TILE.fullmatch(path)  # caches take another query for another tile
    if match is None or path.startswith("x000/"):
        raise NotFound("tile_not_found")
    found, width = int(match[1].replace("x", "").replace("/", "") + match[2]), int(match[3] or TILE_WIDTH)
    if width > TILE_WIDTH or (match[3] and width == TILE_WIDTH):
        raise NotFound("tile_not_found")
    return found, width


@health_blueprint.get("/healthz")
def healthz() -> Response:
    """This process answers. It does not ask the database: a restart would not repair that."""
    return private_json({"status": "ok"})


@health_blueprint.get("/readyz")
def readyz() -> Response:
    """Whether this node can answer calls that read; with ``?for=write`` whether it can answer all calls."""
    purpose = parameter("for")
    if purpose not in (None, "write"):
        raise BadRequest("invalid_parameter", "for is other than write")
    found = registry().readiness()
    ready = found.can_write if purpose == "write" else found.can_read
    members = {"ready": ready, "can_read": found.can_read, "can_write": found.can_write}
    return private_json({**members, **found.reading, **found.writing}, 200 if ready else 503)


@metrics_blueprint.get("/metrics")
def metrics() -> Response:
    """The counts of all workers. Not for the public: the proxy in front does not pass this path on, or the node answers
    it at a port of its own only (REGISTRY_METRICS_ONLY_AT)."""
    port = registry().settings.metrics_port
    if port is not None and not _came_in_at(port):
        raise NotFound("not_found")
    answered.count()
    told = CollectorRegistry()
    told.register(WORKERS)
    told.register(_Ledger(registry()))
    told.register(_Readiness(registry()))
    told.register(_Witnesses(registry()))
    return Response(generate_latest(told), content_type=CONTENT_TYPE_LATEST)


def _came_in_at(port: int) -> bool:
    """Whether the request came in at that TCP port. At a Unix socket, where callers have no port, servers take
    SERVER_PORT from the Host header, which the caller writes."""
    return request.environ["SERVER_PORT"] == str(port) and "REMOTE_PORT" in request.environ


class _Ledger(Collector):
    """The size of the ledger and the end of the root's document, read at each scrape and left out while the database is
    down, and whether the ledger forked."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        with suppress(StorageUnavailable), self._registry.store.look() as connection:
            size = ledger.head(connection)
            self._registry.watch.passes(connection)
            yield GaugeMetricFamily("registry_ledger_size", "Entries in the ledger.", size)
        with suppress(StorageUnavailable, NotInitialised, ConfigurationError):
            ends = self._registry.authority.in_force().keys.expires_at
            told = "When the root's document ends, in seconds since the epoch."
            yield GaugeMetricFamily("registry_root_expires_timestamp_seconds", told, ends)
        forked = self._registry.fork_guard.fork is not None
        yield GaugeMetricFamily("registry_ledger_forked", "1: another ledger than the one that was seen.", forked)


class _Readiness(Collector):
    """What ``/readyz`` says of each check, asked at each scrape."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        found, now = (
            GaugeMetricFamily("registry_ready", "1: the check passes.", labels=["check"]),
            self._registry.readiness(),
        )
        for check, passes in {**now.reading, **now.writing}.items():
            found.add_metric([check], passes)
        yield found


class _Witnesses(Collector):
    """What each witness of this node has cosigned, and what the quorum of the root has, as all workers know it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        states = self._registry.cosigning.states()
        told = (
            ("entries", "Entries of the newest checkpoint that the witness cosigned.", "size"),
            ("cosigned_timestamp_seconds", "When the witness last cosigned, in seconds since the epoch.", "at"),
            ("failures", "Submissions in a row that the witness did not cosign.", "failures"),
        )
        for name, help, member in told if states else ():
            found = GaugeMetricFamily(f"registry_witness_{name}", help, labels=["witness"])
            for witness, state in states.items():
                found.add_metric([witness], getattr(state, member))
            yield found
        with suppress(StorageUnavailable, NotInitialised, ConfigurationError):
            yield from self._quorum()

    def _quorum(self) -> Iterator[GaugeMetricFamily]:
        quorum = self._registry.cosigning.quorum()
        told = (
            ("needed", "Witnesses that must have cosigned what clients believe.", "needed"),
            ("entries", "Entries of the newest checkpoint that the quorum cosigned.", "size"),
            ("cosigned_timestamp_seconds", "When the quorum had cosigned it, in seconds since the epoch.", "at"),
        )
        for name, help, member in told if quorum else ():
            yield GaugeMetricFamily(f"registry_quorum_{name}", help, getattr(quorum, member))
