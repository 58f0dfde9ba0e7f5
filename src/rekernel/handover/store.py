"""The handover store: named blobs in memory that survives the kexec.

Layout, little-endian, from the start of the area:

    0       superblock: magic, version, CRC-32 of the index, index offset, index length
    4096    blobs, each at a multiple of 4096
    ...     index: JSON list of [name, offset, length, CRC-32]

The superblock is written last and wiped by the reader, so a half-written or an already used
store is never taken for a valid one. The area is any writable buffer: a devdax mapping in
production, a plain file for the image back-end.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from typing import TypeAlias

from rekernel.records import record

MAGIC = b"RKSTORE1"
VERSION = 1
BLOCK = 4096
_SUPERBLOCK = struct.Struct("<8sIIQQ")


class StoreError(Exception):
    """The store cannot be read: empty, foreign, or damaged. The message says which."""


class StoreFullError(Exception):
    """A blob does not fit. ``needed`` and ``capacity`` are bytes."""

    def __init__(self, name: str, needed: int, capacity: int) -> None:
        super().__init__(
            f"the handover store is full: {name} needs it to hold {needed} bytes, "
            f"it holds {capacity}"
        )
        self.needed = needed
        self.capacity = capacity


# What a store lies in.
Area: TypeAlias = "mmap.mmap | bytearray"


@record
class Entry:
    """Where a blob lies; offset and length in bytes."""

    name: str
    offset: int
    length: int
    crc32: int


def _round_up(value: int) -> int:
    return -(-value // BLOCK) * BLOCK


class StoreWriter:
    """Fills an area. Nothing is valid before :meth:`commit`."""

    def __init__(self, area: Area, capacity: int | None = None) -> None:
        """``capacity`` limits the store to the first bytes of the area."""
        self._area = area
        self.capacity = len(area) if capacity is None else capacity
        self._next = BLOCK
        self._entries: list[Entry] = []
        wipe(area)

    @property
    def used(self) -> int:
        """Bytes taken so far."""
        return self._next

    def add(self, name: str, data: bytes) -> Entry:
        """Append a blob. Raises StoreFullError."""
        end = self._next + len(data)
        if end > self.capacity:
            raise StoreFullError(name, end, self.capacity)
        self._area[self._next : end] = data
        entry = Entry(name, self._next, len(data), zlib.crc32(data))
        self._entries.append(entry)
        self._next = _round_up(end)
        return entry

    def add_file(self, name: str, fd: int, length: int) -> Entry:
        """Append what a file holds, without another copy of it. Raises StoreFullError, OSError."""
        end = self._next + length
        if end > self.capacity:
            raise StoreFullError(name, end, self.capacity)
        with memoryview(self._area) as area, area[self._next : end] as target:
            at = 0
            while at < length:
                with target[at:] as rest:
                    count = os.preadv(fd, [rest], at)
                if not count:
                    raise OSError(errno.EIO, "became shorter", name)
                at += count
            entry = Entry(name, self._next, length, zlib.crc32(target))
        self._entries.append(entry)
        self._next = _round_up(end)
        return entry

    def commit(self) -> None:
        """Write index and superblock: from here on the store is valid. Raises StoreFullError."""
        index = json.dumps(
            [[entry.name, entry.offset, entry.length, entry.crc32] for entry in self._entries]
        ).encode()
        end = self._next + len(index)
        if end > self.capacity:
            raise StoreFullError("its index", end, self.capacity)
        self._area[self._next : end] = index
        self._area[0 : _SUPERBLOCK.size] = _SUPERBLOCK.pack(
            MAGIC, VERSION, zlib.crc32(index), self._next, len(index)
        )


def wipe(area: Area) -> None:
    """Make the area hold no store."""
    area[0 : _SUPERBLOCK.size] = bytes(_SUPERBLOCK.size)


class StoreReader:
    """Reads an area. Raises StoreError for anything but an intact store of this version."""

    def __init__(self, area: Area) -> None:
        self._area = area
        if len(area) < _SUPERBLOCK.size:
            raise StoreError("the handover store is cut off")
        magic, version, crc, offset, length = _SUPERBLOCK.unpack(area[0 : _SUPERBLOCK.size])
        if magic == bytes(len(magic)):
            raise StoreError("no handover was left")
        if magic != MAGIC:
            raise StoreError("the handover store holds something else")
        if version != VERSION:
            raise StoreError(f"the handover store has version {version}, this is {VERSION}")
        if offset + length > len(area):
            raise StoreError("the index of the handover store lies outside of it")
        index = area[offset : offset + length]
        if zlib.crc32(index) != crc:
            raise StoreError("the index of the handover store is damaged (checksum)")
        self._entries = {name: Entry(name, *rest) for name, *rest in json.loads(index)}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Where the blob lies, not whether it is intact. Raises StoreError if it is missing."""
        entry = self._entries.get(name)
        if entry is None:
            raise StoreError(f"the handover store has no {name}")
        if entry.offset + entry.length > len(self._area):
            raise StoreError(f"{name} lies outside of the handover store")
        return entry

    def view(self, name: str) -> memoryview:
        """The blob where it lies, checked. Raises StoreError if it is missing or damaged.

        To be released before the area is closed.
        """
        entry = self.entry(name)
        data = memoryview(self._area)[entry.offset : entry.offset + entry.length]
        if zlib.crc32(data) != entry.crc32:
            data.release()
            raise StoreError(f"{name} in the handover store is damaged (checksum)")
        return data

    def read(self, name: str) -> bytes:
        """The blob, checked. Raises StoreError if it is missing or damaged."""
        with self.view(name) as data:
            return bytes(data)
