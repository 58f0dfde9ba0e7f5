"""criu's image files, as far as something in them is changed in place between dump and restore.

A file is a magic number and a sequence of entries, each a length and a protobuf message
(https://criu.org/Images; criu's images/*.proto). Nothing is ever moved: a number keeps the bytes
that it takes, as protobuf allows for leading zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# criu/include/magic.h
_IMG_COMMON_MAGIC = 0x54564319

_VARINT, _BYTES = 0, 2


class ImageError(ValueError):
    """Not the format that is expected here."""


def _varint(data: bytearray, at: int) -> tuple[int, int]:
    """Value, and where the next thing begins."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise ImageError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytearray, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields in data[start:end]: of each its number, its value (or length), where its content
    starts and ends. Raises ImageError.
    """
    at = start
    while at < end:
        key, at = _varint(data, at)
        if key & 7 == _VARINT:
            value, after = _varint(data, at)
        elif key & 7 == _BYTES:
            value, at = _varint(data, at)
            after = at + value
        else:
            after = at + {1: 8, 5: 4}.get(key & 7, end)
            value = 0
        if after > end:
            raise ImageError("an entry is cut off")
        yield key >> 3, value, at, after
        at = after


def entries(data: bytearray) -> Iterator[tuple[int, int]]:
    """Where each entry of an image starts and ends. Raises ImageError."""
    if len(data) < 8 or struct.unpack_from("<I", data)[0] != _IMG_COMMON_MAGIC:
        raise ImageError("no criu image")
    at = 8
    while at < len(data):
        if at + 4 > len(data):
            raise ImageError("an entry is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        start, at = at + 4, at + 4 + length
        if at > len(data):
            raise ImageError("an entry is cut off")
        yield start, at


def set_varint(data: bytearray, start: int, end: int, value: int) -> None:
    """Make the varint at data[start:end] another number, in as many bytes. Raises ImageError."""
    if value >> 7 * (end - start):
        raise ImageError(f"{value} does not fit into {end - start} bytes")
    for at in range(start, end):
        more = 0x80 if at < end - 1 else 0
        data[at] = value & 0x7F | more
        value >>= 7
