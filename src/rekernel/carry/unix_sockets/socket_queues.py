"""Messages that wait in a socket, as one blob of the store: each after its length."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

_LENGTH = struct.Struct("<I")


def pack(messages: Iterable[bytes]) -> bytes:
    """The blob; "" for no messages."""
    return b"".join(_LENGTH.pack(len(item)) + item for item in messages)


def unpack(blob: bytes) -> Iterator[bytes]:
    """The messages. Raises struct.error if the blob is cut off within a length."""
    offset = 0
    while offset < len(blob):
        (length,) = _LENGTH.unpack_from(blob, offset)
        offset += _LENGTH.size + length
        yield blob[offset - length : offset]
