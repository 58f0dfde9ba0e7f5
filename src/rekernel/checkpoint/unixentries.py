"""Unix sockets in criu's images, as far as the agent restores them, or criu alone cannot.

A connected datagram socket criu connects again by name while it restores, when that name may not
be there yet. So if its other side is in another tree, or boots afresh, its image is told that it is
not connected, and the agent connects it once all trees are back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rekernel.checkpoint.images import ImageError, entries, fields, set_to_zero

# Fields of file_entry (criu's images/fdinfo.proto) and of unix_sk_entry (images/sk-unix.proto).
_USK = 16
_ID, _INODE, _FLAGS, _PEER = 1, 2, 6, 8
# Of sk_packet_entry (images/sk-packet.proto).
_ID_FOR, _LENGTH, _SCM = 1, 2, 4
# criu/sk-unix.c: USK_EXTERN, on the entry that stands for a far end outside of the tree.
_EXTERN = 1


def _sockets(data: bytearray) -> Iterator[tuple[int, int, int, int]]:
    """Of the trees' own: inode, peer, and where the peer's number stands. Raises ImageError."""
    for start, end in entries(data):
        for number, _, inner, after in fields(data, start, end):
            if number == _USK:
                found = {key: item for key, *item in fields(data, inner, after)}
                try:
                    inode, flags = found[_INODE][0], found[_FLAGS][0]
                    peer, at, after_it = found[_PEER]
                except KeyError as error:
                    raise ImageError(f"a socket has no field {error}") from None
                if not flags & _EXTERN:
                    yield inode, peer, at, after_it


def with_descriptors(images: Path) -> set[int]:
    """Sockets in whose queue a descriptor or credentials wait. Raises ImageError, OSError."""
    found = set()
    for path in images.glob("*/sk-queues.img"):
        files = bytearray((path.parent / "files.img").read_bytes())
        inode_of = dict(_numbers(files))
        data = bytearray(path.read_bytes())
        at = 8
        while at + 4 <= len(data):
            start, end = at + 4, at + 4 + int.from_bytes(data[at : at + 4], "little")
            entry = {key: value for key, value, *_ in fields(data, start, end)}
            if _SCM in entry:
                found.add(inode_of.get(entry.get(_ID_FOR, 0), 0))
            # What was sent follows its entry.
            at = end + entry.get(_LENGTH, 0)
    return found


def _numbers(data: bytearray) -> Iterator[tuple[int, int]]:
    """The number that other images know a socket by, and its inode."""
    for start, end in entries(data):
        for number, _, inner, after in fields(data, start, end):
            if number == _USK:
                found = {key: value for key, value, *_ in fields(data, inner, after)}
                yield found.get(_ID, 0), found.get(_INODE, 0)


def disconnect(data: bytearray, inodes: Collection[int]) -> int:
    """Change a files.img in place; returns how many sockets it concerned. Raises ImageError."""
    changed = 0
    for inode, _, start, end in _sockets(data):
        if inode in inodes:
            set_to_zero(data, start, end)
            changed += 1
    return changed


def disconnect_images(images: Path, inodes: Collection[int]) -> None:
    """All trees below a directory. Raises ImageError, OSError."""
    if not inodes:
        return
    for path in images.glob("*/files.img"):
        data = bytearray(path.read_bytes())
        if disconnect(data, inodes):
            path.write_bytes(data)


def unconnected(images: Path) -> set[int]:
    """Sockets without a peer in all trees below a directory. Raises ImageError, OSError."""
    return {
        inode
        for path in images.glob("*/files.img")
        for inode, peer, *_ in _sockets(bytearray(path.read_bytes()))
        if not peer
    }
