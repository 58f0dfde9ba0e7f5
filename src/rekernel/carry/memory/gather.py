"""Move strays into the carry region while their processes run.

MADV_COLLAPSE makes the kernel copy a 2 MiB range into a fresh huge page, and fresh movable pages
come from the region first (mm/khugepaged.c; process_madvise(2) for another process, since 6.1).
Only ranges that are nearly full are moved, so that a process does not grow by it. What cannot be
moved that way (small ranges, processes that forbid huge pages) is copied at the freeze instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from rekernel import syscalls
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.recorder import stat

_HUGE = 2 << 20


def gather(pids: Sequence[int], region: Sequence[Range]) -> int:
    """Move what can be moved; returns the bytes that were. Raises CommandFailedError.

    A process that ends meanwhile or refuses is left alone. Nothing is lost if this stops midway.
    """
    moved = 0
    for space in stat(pids, region)["spaces"]:
        with suppress(OSError):
            moved += _collapse(space["pid"], space["stray_chunks"])
    return moved


def _collapse(pid: int, chunks: Sequence[int]) -> int:
    pidfd = os.pidfd_open(pid)
    moved = 0
    try:
        for address in chunks:
            # Not all of it is one mapping, say.
            with suppress(OSError):
                syscalls.process_madvise(pidfd, address, _HUGE, syscalls.MADV_COLLAPSE)
                moved += _HUGE
    finally:
        os.close(pidfd)
    return moved
