"""Consistency proofs computed from the tiles of a ledger (C2SP tlog-tiles): a mirror that serves files alone has no
proofs to give."""

from peerseal.errors import AnswerTooLarge, DocumentRefused, FetchError
from peerseal.protocol.ledger.checkpoint import (
    CHECKPOINT_PATH,
    MAX_NOTE_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    levels_of,
    parse_checkpoint,
    tile_path,
)
from peerseal.protocol.ledger.merkle import HASH_SIZE, NodeReader, Proof, consistency_proof
from peerseal.transport.fetch import Answer, Fetcher, content, no_larger_than


def proof_from_tiles(fetcher: Fetcher, old: int, new: int) -> Proof:
    """The proof that the tree of size ``new`` begins with that of size ``old``. It is not checked: a wrong tile makes a
    wrong proof, which the caller refuses.

    Raises DocumentRefused where the mirror's ledger is shorter, or an answer is no tile, and FetchError.
    """
    return consistency_proof(old, new, nodes_of_mirror(fetcher, new))


def nodes_of_mirror(fetcher: Fetcher, at_least: int) -> NodeReader:
    """The nodes of the mirror's tree as of its own checkpoint: it may have no other files. They are not checked.

    Raises DocumentRefused where the mirror has fewer entries than ``at_least``, FetchError, and as `nodes_from_tiles`.
    """
    size = _size(fetcher)
    if size < at_least:
        raise DocumentRefused("document_rolled_back", f"the mirror has {size} entries, {at_least} were seen")
    return nodes_from_tiles(fetcher, size)


def nodes_from_tiles(fetcher: Fetcher, size: int) -> NodeReader:
    """The nodes of the ledger's tree at that size, from tiles that are fetched once each. They are not checked.

    Reading a node raises DocumentRefused where an answer is no tile of that tree, and FetchError.
    """
    tiles = dict[tuple[int, int], list[list[bytes]]]()

    def node(level: int, number: int) -> bytes:
        above = level % TILE_HEIGHT
        place = level // TILE_HEIGHT, (number << above) // TILE_WIDTH
        if place not in tiles:
            tiles[place] = _tile(fetcher, *place, size)
        try:
            return tiles[place][above][number % (TILE_WIDTH >> above)]
        except IndexError as error:
            raise DocumentRefused("document_malformed", f"a tile is too short for {size} entries") from error

    return node


def _size(fetcher: Fetcher) -> int:
    """The size of the mirror's ledger: what its checkpoint says, without a check, since it only names files."""
    with no_larger_than(MAX_NOTE_BYTES):
        found = fetcher.ask(
            CHECKPOINT_PATH, lambda answer: parse_checkpoint(content(answer).decode("utf-8", "replace"))
        )
    return 0 if found is None else found.size


def _tile(fetcher: Fetcher, level: int, number: int, size: int) -> list[list[bytes]]:
    """The hashes of a tile of the ledger of that size, as `levels_of`."""
    width = min(TILE_WIDTH, (size >> TILE_HEIGHT * level) - number * TILE_WIDTH)
    if width < 1:
        raise DocumentRefused("document_malformed", f"no tile {number} at level {level} in {size} entries")

    def read(answer: Answer) -> list[list[bytes]]:
        hashes = content(answer)
        if len(hashes) > TILE_WIDTH * HASH_SIZE:
            raise AnswerTooLarge(f"{len(hashes)} bytes, and a tile has {TILE_WIDTH * HASH_SIZE} at most")
        if len(hashes) < width * HASH_SIZE:
            raise DocumentRefused("document_malformed", f"a tile of {len(hashes)} bytes, expected {width * HASH_SIZE}")
        return levels_of(hashes)

    with no_larger_than(TILE_WIDTH * HASH_SIZE + 1):
        try:
            found = fetcher.ask(f"/ledger/{tile_path(level, number, width)}", read)
        except FetchError as error:
            if error.http_status != 404 or width == TILE_WIDTH:
                raise
            found = fetcher.ask(f"/ledger/{tile_path(level, number)}", read)  # the tile has been filled meanwhile
    if found is None:
        raise AssertionError("unreachable: no tile says that there is nothing new")
    return found
