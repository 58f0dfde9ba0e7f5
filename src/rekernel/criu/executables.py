"""Executables that somebody has open for their path only (O_PATH), as systemd has its own.

criu gives an executable the number of any open file with its inode (criu/file-ids.c,
fd_id_generate_special), and then opens it as that was: with O_PATH, and the kernel refuses such a
descriptor for an executable. So it gets an entry of its own, a copy that is open for reading.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Iterator
from pathlib import Path

from rekernel.criu.images import ImageError, entries, fields, set_varint
from rekernel.errors import RekernelError
from rekernel.records import record

# Fields of file_entry, reg_file_entry and mm_entry (criu's images/fdinfo.proto, regfile.proto and
# mm.proto).
_ID, _REGULAR = 2, 3
_ID_INSIDE, _FLAGS = 1, 2
_EXECUTABLE = 12
# Field of remap_file_path_entry (remap-file-path.proto).
_ORIGINAL = 1


@record
class _Entry:
    """An entry of files.img, data[start:end], and in it data[from:to] of its fields."""

    start: int
    end: int
    number: int
    ids: tuple[tuple[int, int], ...]
    flags: int
    flags_at: tuple[int, int]


def separate(data: bytearray, images: Path) -> int:
    """Add entries to a files.img, and change mm-*.img beside it; how many were added.

    Raises ImageError, RekernelError, OSError.
    """
    paths_only = {item.number: item for item in _regular(data) if item.flags & os.O_PATH}
    if not paths_only:
        return 0
    taken = {value for start, end in entries(data) for value in _values(data, start, end, _ID)}
    copies: dict[int, int] = {}
    for path in images.glob("mm-*.img"):
        memory = bytearray(path.read_bytes())
        for start, end in entries(memory):
            for number, value, at, after in fields(memory, start, end):
                if number == _EXECUTABLE and value in paths_only:
                    if value not in copies:
                        copies[value] = _free(taken, value)
                        data += _copy(data, paths_only[value], copies[value])
                    set_varint(memory, at, after, copies[value])
                    path.write_bytes(memory)
    if copies:
        _assert_there(images, copies)
    return len(copies)


def _assert_there(images: Path, numbers: Container[int]) -> None:
    """Raises RekernelError for a file that criu brings back under another name: it was deleted."""
    remapped = images / "remap-fpath.img"
    if not remapped.exists():
        return
    data = bytearray(remapped.read_bytes())
    for start, end in entries(data):
        for value in _values(data, start, end, _ORIGINAL):
            if value in numbers:
                raise RekernelError(
                    "an executable that was replaced is still open for its path",
                    "start whoever runs it anew; a user's manager: systemctl --user daemon-reexec",
                )


def _regular(data: bytearray) -> Iterator[_Entry]:
    for start, end in entries(data):
        outer = {number: (value, at, to) for number, value, at, to in fields(data, start, end)}
        if _REGULAR not in outer or _ID not in outer:
            continue
        _, at, to = outer[_REGULAR]
        inner = {number: (value, at, to) for number, value, at, to in fields(data, at, to)}
        if _ID_INSIDE not in inner or _FLAGS not in inner:
            raise ImageError("a file has no number or no flags")
        yield _Entry(
            start,
            end,
            outer[_ID][0],
            (outer[_ID][1:], inner[_ID_INSIDE][1:]),
            inner[_FLAGS][0],
            inner[_FLAGS][1:],
        )


def _values(data: bytearray, start: int, end: int, wanted: int) -> Iterator[int]:
    for number, value, _, _ in fields(data, start, end):
        if number == wanted:
            yield value


def _free(taken: set[int], like: int) -> int:
    """A number that is not taken and takes as many bytes; it is from then on. Raises ImageError."""
    width = max(1, (like.bit_length() + 6) // 7)
    for number in range((1 << 7 * width) - 1, (1 << 7 * (width - 1)) - 1, -1):
        if number not in taken:
            taken.add(number)
            return number
    raise ImageError("there are too many open files")


def _copy(data: bytearray, item: _Entry, number: int) -> bytes:
    copied = data[item.start : item.end]
    for at, to in item.ids:
        set_varint(copied, at - item.start, to - item.start, number)
    at, to = item.flags_at
    set_varint(copied, at - item.start, to - item.start, os.O_RDONLY)
    return struct.pack("<I", len(copied)) + copied
