"""Image files for tests, as criu writes them."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(**fields: int | bytes) -> bytes:
    """A protobuf message of fields f1, f2, … in that order."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:])
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(value)
    return out


def image(*entries: bytes) -> bytearray:
    head = struct.pack("<II", 0x54564319, 0x56303138)
    return bytearray(head + b"".join(struct.pack("<I", len(one)) + one for one in entries))
