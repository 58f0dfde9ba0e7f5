"""Move strays into the carry region while their processes run.

MADV_COLLAPSE makes the kernel copy a 2 MiB range into a fresh huge page, and fresh movable pages
come from the region first (mm/khugepaged.c; process_madvise(2) for another process, since 6.1).
Only ranges that are nearly full are moved, so that a process does not grow by it. What cannot be
moved that way (small ranges, processes that forbid huge pages) is copied at the freeze instead.
"""

from __future__ import annotations

import array
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rekernel import syscalls
from rekernel.memory.dax import Range

_PAGE = 4096
_HUGE = 2 << 20
_PER_HUGE = _HUGE // _PAGE
# Documentation/admin-guide/mm/pagemap.rst
_PRESENT = 1 << 63
_FILE_OR_SHARED = 1 << 61
_PFN = (1 << 55) - 1
# A range with fewer pages than this share would grow noticeably.
_NEARLY_FULL = 0.9
# Address space looked at in one go.
_WINDOW = 256 * _HUGE

_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *(\[heap\]|\[anon:.*\])?$")


def anonymous_ranges(maps: str) -> list[Range]:
    """Private writable anonymous mappings in the text of /proc/PID/maps, cut to whole 2 MiB."""
    found = []
    for line in maps.splitlines():
        match = _ANONYMOUS.match(line)
        if match:
            start = -(-int(match[1], 16) // _HUGE) * _HUGE
            end = int(match[2], 16) // _HUGE * _HUGE
            if end > start:
                found.append(Range(start, end))
    return found


def stray_chunks(entries: Sequence[int], base: int, region: Sequence[Range]) -> list[int]:
    """Addresses of the 2 MiB chunks that hold strays and are nearly full.

    ``entries``: pagemap words of the pages from address ``base`` on.
    """
    found = []
    for index in range(0, len(entries) - _PER_HUGE + 1, _PER_HUGE):
        present = 0
        strays = 0
        for entry in entries[index : index + _PER_HUGE]:
            if entry & _PRESENT and not entry & _FILE_OR_SHARED:
                present += 1
                address = (entry & _PFN) * _PAGE
                strays += not any(address in part for part in region)
        if strays and present >= _NEARLY_FULL * _PER_HUGE:
            found.append(base + index * _PAGE)
    return found


def _windows(pid: int) -> Iterator[tuple[int, array.array[int]]]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for mapping in anonymous_ranges(maps):
            for start in range(mapping.start, mapping.end, _WINDOW):
                size = min(_WINDOW, mapping.end - start) // _PAGE * 8
                words = array.array("Q")
                words.frombytes(os.pread(pagemap, size, start // _PAGE * 8))
                yield start, words
    finally:
        os.close(pagemap)


def gather(pids: Sequence[int], region: Sequence[Range]) -> int:
    """Move what can be moved; returns the bytes that were.

    A process that ends meanwhile or refuses is left alone. Nothing is lost if this stops midway.
    """
    moved = 0
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            for base, words in _windows(pid):
                for address in stray_chunks(words, base, region):
                    syscalls.process_madvise(pidfd, address, _HUGE, syscalls.MADV_COLLAPSE)
                    moved += _HUGE
        except OSError:
            continue
        finally:
            os.close(pidfd)
    return moved
