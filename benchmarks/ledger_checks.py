"""What the ledger costs a client: a signed JWK Set read with every check, or with its signature and parsing alone.

The checks are: the ledger's head in the document, signed by its own key; for each key the entry that admitted it, and
its inclusion in the tree; and that this tree continues the one seen before. The last check needs a proof if the ledger
has grown; here the proof comes from memory, like the document. No request pays for these checks: a document is read
when a service is met for the first time, after a change, and every few minutes.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.figures import Figure
from benchmarks.many_services import DOMAIN, ManyServices, shaped_like_a_key
from benchmarks.timing import Contender, each, interleaved
from peerseal import TrustLimits
from peerseal.protocol.documents.frame import read_document
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.names import make_kid, registry_id
from peerseal.trust.disk.document_cache import NoCopies
from peerseal.trust.documents import DocumentReader

ENTRIES = 10_000  # in the ledger: a proof of 14 hashes for each key
KEYS = 10  # of the service: as many hosts
ROUNDS, DOCUMENTS = 11, 10
WATCHED = 1_000
SERVICE = "s"

_ALONE, _SAME, _GROWN = "alone", "same", "grown"


def measure() -> Iterator[Figure]:
    """The figures."""
    others = [shaped_like_a_key()] * (ENTRIES - KEYS)
    registry = ManyServices({"others": others, SERVICE: [shaped_like_a_key() for _ in range(KEYS)]})
    contenders = {_ALONE: _alone(registry), _SAME: _same(registry), _GROWN: each(_reading(registry))}
    timings = interleaved(contenders, (_documents(registry) for _ in range(ROUNDS)))
    name, against = f"reading a key set of {KEYS} keys", f"signature and parsing alone: {timings.micros(_ALONE):.0f} µs"
    for kind, what in ((_SAME, "all checks"), (_GROWN, "all checks, the ledger has grown")):
        yield Figure(f"{name}, {what}", timings.micros(kind), "µs", against, timings.ratio(kind, _ALONE))
    seconds, every = timings.seconds(_GROWN) - timings.seconds(_ALONE), TrustLimits().refresh_interval
    yield Figure(
        f"the ledger's checks of {WATCHED:,} watched services, of a core",
        100 * WATCHED * seconds / every,
        "%",
        f"each read every {every:.0f} s",
    )


def _documents(registry: ManyServices) -> list[str]:
    """Read each document; the ledger grows by an entry between two of them."""
    documents: list[str] = []
    for _ in range(DOCUMENTS):
        registry.grow()
        documents.append(registry.key_set(SERVICE))
    return documents


def _alone(registry: ManyServices) -> Contender[str]:
    signers = {make_kid(registry_id(DOMAIN), registry.signing.public.thumbprint): registry.signing.public}
    return each(lambda jws: read_document(KeySetDocument, jws, signers, now=time.time(), domain=DOMAIN))


def _same(registry: ManyServices) -> Contender[str]:
    """Read the last document repeatedly: its ledger does not change."""
    read = _reading(registry)

    def prepare(documents: Sequence[str]) -> Callable[[], object]:
        last = documents[-1]
        read(last)
        return each(lambda _: read(last))(documents)

    return prepare


def _reading(registry: ManyServices) -> Callable[[str], object]:
    limits = TrustLimits()
    reader = DocumentReader(registry, pin=None, limits=limits, clock=time.time, cache_dir=None, copies=NoCopies())
    return lambda jws: reader.read(KeySetDocument, jws)
