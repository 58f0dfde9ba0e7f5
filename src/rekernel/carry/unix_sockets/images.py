"""Unix sockets in criu's images, as far as the agent restores them, or criu alone cannot.

A connected datagram socket criu connects again by name while it restores, when that name may not
be there yet. So if its other side is in another tree, or boots afresh, its image is told that it is
not connected, and the agent connects it once all trees are back.
"""

from __future__ import annotations

from collections.abc import Iterator

from rekernel.criu.images import ImageError, fields, set_varint
from rekernel.records import record

# Fields of unix_sk_entry (criu's images/sk-unix.proto).
_ID, _INODE, _FLAGS, _PEER = 1, 2, 6, 8
# Of sk_packet_entry (images/sk-packet.proto).
_ID_FOR, _LENGTH, _SCM = 1, 2, 4
# criu/sk-unix.c: USK_EXTERN, on the entry that stands for a far end outside of the tree.
_EXTERN = 1


@record
class UnixEntry:
    """``number``: what other images know it by. ``external``: not of this tree."""

    number: int
    inode: int
    peer: int
    external: bool
    # Where the peer's number stands in the image.
    start: int
    end: int


def parse(data: bytearray, start: int, end: int) -> UnixEntry:
    """From a unix_sk_entry. Raises ImageError."""
    found = {key: item for key, *item in fields(data, start, end)}
    try:
        number, inode, flags = (found[key][0] for key in (_ID, _INODE, _FLAGS))
        peer, peer_start, peer_end = found[_PEER]
    except KeyError as error:
        raise ImageError(f"a socket has no field {error}") from None
    return UnixEntry(number, inode, peer, bool(flags & _EXTERN), peer_start, peer_end)


def disconnect(data: bytearray, entry: UnixEntry) -> None:
    """Change the image that an entry was found in."""
    set_varint(data, entry.start, entry.end, 0)


def with_descriptors(queues: bytearray) -> Iterator[int]:
    """Numbers of the sockets in whose queue a descriptor waits, from sk-queues.img.

    Raises ImageError.
    """
    at = 8
    while at + 4 <= len(queues):
        start, end = at + 4, at + 4 + int.from_bytes(queues[at : at + 4], "little")
        if end > len(queues):
            raise ImageError("an entry is cut off")
        entry = {key: value for key, value, *_ in fields(queues, start, end)}
        if _SCM in entry:
            yield entry.get(_ID_FOR, 0)
        # What was sent follows its entry.
        at = end + entry.get(_LENGTH, 0)
