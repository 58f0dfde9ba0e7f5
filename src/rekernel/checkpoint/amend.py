"""What criu wrote of the trees' descriptors: looked at and mended in one pass, as all is frozen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rekernel.checkpoint import timers, unixentries
from rekernel.checkpoint.images import entries, fields
from rekernel.checkpoint.unixentries import UnixEntry

# Fields of file_entry (criu's images/fdinfo.proto).
_TIMER, _UNIX = 12, 16


@dataclass(frozen=True, slots=True)
class Sockets:
    """Inodes of the trees' own unix sockets: without a peer; with a descriptor in their queue."""

    unconnected: frozenset[int]
    with_descriptors: frozenset[int]


def amend(data: bytearray, disconnected: Collection[int]) -> tuple[int, list[UnixEntry]]:
    """Mend a files.img in place: how many entries that were, and its sockets as they were.

    ``disconnected``: inodes of sockets that shall have no peer. Raises ImageError.
    """
    changed = 0
    sockets = []
    for start, end in entries(data):
        for number, _, inner, after in fields(data, start, end):
            if number == _TIMER:
                changed += timers.rearm(data, inner, after)
            elif number == _UNIX:
                entry = unixentries.parse(data, inner, after)
                if entry.external:
                    continue
                sockets.append(entry)
                if entry.inode in disconnected:
                    unixentries.disconnect(data, entry)
                    changed += 1
    return changed, sockets


def amend_images(images: Path, disconnected: Collection[int]) -> Sockets:
    """All trees below a directory. Raises ImageError, OSError."""
    unconnected: set[int] = set()
    with_descriptors: set[int] = set()
    for path in images.glob("*/files.img"):
        data = bytearray(path.read_bytes())
        changed, sockets = amend(data, disconnected)
        if changed:
            path.write_bytes(data)
        unconnected |= {item.inode for item in sockets if not item.peer}
        queues = path.with_name("sk-queues.img")
        if queues.exists():
            numbers = set(unixentries.with_descriptors(bytearray(queues.read_bytes())))
            with_descriptors |= {item.inode for item in sockets if item.number in numbers}
    return Sockets(frozenset(unconnected), frozenset(with_descriptors))
