"""Breaks record batches in the segment files of a stopped broker, which checks none of them when it serves them."""

import collections
import struct

Batch = collections.namedtuple("Batch", "at size first_offset last_offset")
# Sizes of Kafka's record batch format, version 2: base offset and length stand before what the length counts.
BEFORE_BYTES, HEADER_BYTES = 12, 61


def batches(path):
    """Where each batch of a segment begins, how long it is and which offsets are in it."""
    data, at, found = path.read_bytes(), 0, []
    while at + HEADER_BYTES <= len(data):
        first, length = struct.unpack_from(">qi", data, at)
        (last_delta,) = struct.unpack_from(">i", data, at + 23)
        if length <= 0:
            break
        found.append(Batch(at, BEFORE_BYTES + length, first, first + last_delta))
        at += BEFORE_BYTES + length
    return found


def break_batch(path, number, how):
    """Flips bytes in one batch; the offsets that are in it.

    `body` is found by its checksum alone, or when it is unpacked where it is compressed; `framing` is the first
    record's length, without which no record of an uncompressed batch can be told from the next.
    """
    batch = batches(path)[number]
    data = bytearray(path.read_bytes())
    if how == "framing":
        data[batch.at + HEADER_BYTES] ^= 0x55
    else:
        for back in range(5, 8):
            data[batch.at + batch.size - back] ^= 0xFF
    path.write_bytes(data)
    return list(range(batch.first_offset, batch.last_offset + 1))
