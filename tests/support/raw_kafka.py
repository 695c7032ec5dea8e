"""One record written to a Kafka broker byte by byte: what a foreign client may send, and ours would not."""

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import closing

_PRODUCE, _VERSION = 0, 7
_TOO_EARLY = 3, 6
"""Error codes of a partition that is not there yet, or has no leader yet."""
_POLYNOMIAL = 0x82F63B78
"""Of CRC-32C, bits reversed."""

Pairs = Sequence[tuple[bytes, bytes | None]]


def produce(url: str, topic: str, payload: bytes | None, headers: Pairs, *, partition: int = 0) -> None:
    """Send a record to the broker at ``kafka://host:port``, the only one there is, once it leads the partition. Raises
    AssertionError where it is not taken."""
    batch = _batch(payload, headers)
    body = struct.pack(">hhi", -1, -1, 10_000)  # no transaction; acknowledged by all; within ten seconds
    body += struct.pack(">i", 1) + _string(topic) + struct.pack(">iii", 1, partition, len(batch)) + batch
    request = struct.pack(">hhi", _PRODUCE, _VERSION, 1) + _string("raw") + body
    host, _, port = url.removeprefix("kafka://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
        ends = time.monotonic() + 10
        while (code := _ask(connection, request, topic)) in _TOO_EARLY and time.monotonic() < ends:
            time.sleep(0.05)
    assert code == 0, f"the broker says {code}"


def _ask(connection: socket.socket, request: bytes, topic: str) -> int:
    """The error code of the broker's answer; 0 for none."""
    connection.sendall(struct.pack(">i", len(request)) + request)
    with connection.makefile("rb") as answer:
        (size,) = struct.unpack(">i", answer.read(4))
        said = answer.read(size)
    code: int = struct.unpack_from(">h", said, 4 + 4 + 2 + len(topic.encode()) + 4 + 4)[0]
    return code


def _batch(payload: bytes | None, headers: Pairs) -> bytes:
    """A record batch of magic 2 with one record, without a key."""
    record = b"\0" + _varint(0) + _varint(0) + _sized(None) + _sized(payload) + _varint(len(headers))
    record += b"".join(_sized(name) + _sized(value) for name, value in headers)
    now = int(time.time() * 1000)
    checked = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + _varint(len(record)) + record
    rest = struct.pack(">ibI", -1, 2, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(rest)) + rest


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _sized(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _varint(number: int) -> bytes:
    left, written = (number << 1) ^ (number >> 63), bytearray()
    while left > 0x7F:
        written.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*written, left])


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
