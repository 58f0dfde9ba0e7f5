"""Periodic timers that expired while everything was frozen: criu would restore them switched off.

The kernel starts a periodic timerfd again only when its expirations are read. Until then
/proc/PID/fdinfo gives its remaining time as zero, which criu writes down and hands to
timerfd_settime(2), where zero means: off. A timer with expirations to read and an interval was on;
one nanosecond instead of zero lets it go off at once and then run on.

The image has the entry in files.img (criu's images/fdinfo.proto and timerfd.proto). Zero and one
are both one byte there, so nothing moves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

# criu/include/magic.h
_IMG_COMMON_MAGIC = 0x54564319

# Fields of file_entry and of timerfd_entry.
_TFD = 12
_TICKS, _VSEC, _VNSEC, _ISEC, _INSEC = 5, 7, 8, 9, 10

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


def _fields(data: bytearray, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, value (or length), where the content starts, where it ends; of varints and bytes."""
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


def rearm(data: bytearray) -> int:
    """Change a files.img in place; returns how many timers it concerned. Raises ImageError."""
    if len(data) < 8 or struct.unpack_from("<I", data)[0] != _IMG_COMMON_MAGIC:
        raise ImageError("no criu image")
    changed = 0
    at = 8
    while at < len(data):
        if at + 4 > len(data):
            raise ImageError("an entry is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        start, end = at + 4, at + 4 + length
        if end > len(data):
            raise ImageError("an entry is cut off")
        for number, _, inner, after in _fields(data, start, end):
            if number == _TFD:
                changed += _rearm_one(data, inner, after)
        at = end
    return changed


def _rearm_one(data: bytearray, start: int, end: int) -> bool:
    found = {number: (value, at) for number, value, at, _ in _fields(data, start, end)}
    try:
        ticks, vsec, isec, insec = (found[item][0] for item in (_TICKS, _VSEC, _ISEC, _INSEC))
        vnsec, where = found[_VNSEC]
    except KeyError as error:
        raise ImageError(f"a timer has no field {error}") from None
    if not ticks or vsec or vnsec or not (isec or insec):
        return False
    data[where] = 1
    return True


def rearm_images(images: Path) -> int:
    """All trees below a directory. Raises ImageError, OSError."""
    changed = 0
    for path in images.glob("*/files.img"):
        data = bytearray(path.read_bytes())
        count = rearm(data)
        if count:
            path.write_bytes(data)
        changed += count
    return changed
