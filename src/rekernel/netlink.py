"""Netlink messages (include/uapi/linux/netlink.h): their framing, and asking the kernel for many.

Standard library only: the agent sends what the old side has made.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

# nlmsghdr: length, type, flags, sequence number, port.
HEADER = struct.Struct("=IHHII")
ERROR, _DONE = 2, 3
_REQUEST, _DUMP = 0x001, 0x300
_ATTRIBUTE = struct.Struct("=HH")
# NLA_TYPE_MASK: without the flags for nested attributes and for the order of bytes.
_TYPE = 0x3FFF
_BUFFER = 1 << 20
_TIMEOUT_S = 10


def align(size: int) -> int:
    """Up to the next multiple of 4."""
    return size + 3 & ~3


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A message to the kernel; ``body``: padded."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Messages: of each its type, where it starts and ends. One that is cut off is left out."""
    at = 0
    while at + HEADER.size <= len(data):
        size, kind, *_ = HEADER.unpack_from(data, at)
        end = at + align(size)
        if size < HEADER.size or at + size > len(data):
            return
        yield kind, at, min(end, len(data))
        at = end


def error_number(data: bytes, start: int) -> int:
    """The error number in a message of type ERROR, or in the one that ends a dump; 0 for none."""
    (number,) = struct.unpack_from("=i", data, start + HEADER.size)
    return -int(number)


def attribute(kind: int, content: bytes) -> bytes:
    """An attribute, padded."""
    size = _ATTRIBUTE.size + len(content)
    return (_ATTRIBUTE.pack(size, kind) + content).ljust(align(size), b"\0")


def attributes(data: bytes, at: int = 0, end: int | None = None) -> dict[int, bytes]:
    """Type -> content of attributes that stand one after the other."""
    end = len(data) if end is None else end
    found = {}
    while at + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : min(at + size, end)]
        at += align(size)
    return found


def replies(data: bytes, source: str) -> Iterator[bytes | None]:
    """The messages in an answer to a dump, headers and all; None where the dump ends.

    Raises OSError for the error in it, in the name of ``source``.
    """
    for kind, start, end in messages(data):
        if kind not in (ERROR, _DONE):
            yield data[start:end]
            continue
        number = error_number(data, start) if end >= start + HEADER.size + 4 else 0
        if number:
            raise OSError(number, os.strerror(number), source)
        yield None
        return


def dump(protocol: int, kind: int, body: bytes, source: str) -> Iterator[bytes]:
    """All that the kernel has to answer to a request, message by message. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.send(message(kind, _REQUEST | _DUMP, body))
        while True:
            for reply in replies(sock.recv(_BUFFER), source):
                if reply is None:
                    return
                yield reply
