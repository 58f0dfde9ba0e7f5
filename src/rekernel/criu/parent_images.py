"""A dump that leaves pages where they are: criu is told that a dump before it has them already.

criu dumps incrementally (https://criu.org/Memory_changes_tracking): what was not written since the
dump before is only named, and its data are left to that one's images. Ours has everything, and no
data: nothing is read, and criu takes its parasites out before it holds the tree. The agent's criu
then finds those pages marked as lazy and leaves them to the pager.

criu's own --lazy-pages would do as well, but it takes every page into pipes and waits with its
parasites inside, and it fills 16 bytes for each page of reserved address space: no dump of a
database that reserves 8 TiB to grow into ends.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles
from rekernel.criu import large_areas
from rekernel.run import run

# criu/include/magic.h
_COMMON, _INVENTORY, _PAGEMAP = 0x54564319, 0x58313116, 0x56084025
# The version of criu's images, and a time in microseconds that no process was started after.
_INVENTORY_ENTRY = bytes((1 << 3, 2, 8 << 3)) + b"\xff" * 8 + b"\x3f"
_PAGES_ID = bytes((1 << 3, 1))
# One entry: from address 0, PE_PRESENT, 2**35 pages; that is all of user space.
_EVERYTHING = bytes((1 << 3, 0, 2 << 3, 0, 4 << 3, 4, 5 << 3)) + b"\x80" * 5 + b"\x01"


def _image(magics: Sequence[int], *entries: bytes) -> bytes:
    parts = [struct.pack("<I", number) for number in magics]
    parts += [struct.pack("<I", len(entry)) + entry for entry in entries]
    return b"".join(parts)


def pretend(parent: Path, pids: Iterable[int], *, again: bool = False) -> None:
    """Write what a dump of these processes would look like that has all their pages.

    ``again``: this attempt has done so before, and some processes may be new. Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    everything = _image([_COMMON, _PAGEMAP], _PAGES_ID, _EVERYTHING)
    wanted = {"inventory.img": _image([_INVENTORY], _INVENTORY_ENTRY), "pages-1.img": b""}
    wanted |= {f"pagemap-{pid}.img": everything for pid in pids}
    # What an attempt before has left may be incomplete.
    for name in wanted.keys() - (os.listdir(parent) if again else ()):
        smallfiles.create(f"{parent}/{name}", wanted[name])


def nothing_written(pids: Sequence[int]) -> None:
    """Let no page of these frozen processes count as written since. Raises OSError."""
    # A walk over all their page tables, in the kernel. Given one by one, the threads would spend
    # most of the time on taking turns.
    count = os.cpu_count() or 1
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(_clear_soft_dirty, (pids[i::count] for i in range(count))))


def _clear_soft_dirty(pids: Iterable[int]) -> None:
    # https://docs.kernel.org/admin-guide/mm/soft-dirty.html; a zombie has no memory.
    for pid in pids:
        with suppress(ProcessLookupError):
            smallfiles.write(f"/proc/{pid}/clear_refs", b"4")


def complete(images: Sequence[Path]) -> None:
    """Mark what criu left out as lazy, or write it down; split what is too large for criu.

    Raises CommandFailedError.
    The processes must still stand where they were dumped.
    """
    for directory in images:
        with suppress(FileNotFoundError):
            (directory / "parent").unlink()
    if images:
        run([large_areas.PROGRAM, *map(str, images)])
