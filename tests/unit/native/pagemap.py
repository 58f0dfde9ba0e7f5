"""The page map: which physical page holds which virtual page.

``rekernel-pagemap`` writes it on the old kernel while everything is frozen,
``rekernel-pager`` reads it on the new one. The format is defined in
``native/common/pagemap_format.h``; this module mirrors it for tests.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from itertools import pairwise

from rekernel.records import record

MAGIC = b"RKPGMAP1"
VERSION = 1
PAGE_SIZE = 4096

_HEADER = struct.Struct("<8sIIIIQQ")
_SPACE = struct.Struct("<IIIIQQQ")
_RUN = struct.Struct("<QQII")
_CRC_START = 24
_USER_END = 1 << 56


class PageMapError(ValueError):
    """The bytes are no page map, a damaged one, or one of another version."""


class Kind(IntEnum):
    """What the addresses of a space mean."""

    ANON = 0
    """Private anonymous pages of one address space."""
    SHMEM = 1
    """Reserved: pages of a shared memory object, vaddr being the offset in it."""


class RunFlag(IntFlag):
    """Properties of a run."""

    NONE = 0
    STRAY = 1
    """The frame is in the stray area: the page was outside the region and copied."""


@record
class Run:
    """Pages with consecutive addresses in consecutive frames."""

    vaddr: int
    pfn: int
    npages: int
    flags: RunFlag = RunFlag.NONE

    @property
    def end(self) -> int:
        """First virtual address behind the run."""
        return self.vaddr + self.npages * PAGE_SIZE


@record
class Space:
    """One address space. ``nspid`` is the PID CRIU uses: that of the innermost namespace.

    ``runs`` is empty in a map that was parsed without them; ``pages`` always counts.
    """

    pid: int
    nspid: int
    tree: int
    pages: int
    runs: tuple[Run, ...] = ()
    kind: int = Kind.ANON

    @classmethod
    def of(cls, pid: int, runs: Iterable[Run], *, nspid: int | None = None, tree: int = 0) -> Space:
        """A space whose page count is that of its runs."""
        runs = tuple(runs)
        pages = sum(run.npages for run in runs)
        return cls(pid, pid if nspid is None else nspid, tree, pages, runs)


@record
class PageMap:
    """A whole page map."""

    spaces: tuple[Space, ...]

    @property
    def pages(self) -> int:
        """Pages in all spaces."""
        return sum(space.pages for space in self.spaces)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview, *, runs: bool = True) -> PageMap:
        """Read and check a page map; bytes after its end are ignored.

        With ``runs=False`` only the table of spaces is made into objects, which is
        quick for a large map; the checksum is still verified.
        Raises PageMapError if anything is wrong.
        """
        view = memoryview(data)
        n_spaces, n_runs = _parse_header(view)
        spaces_end = _HEADER.size + n_spaces * _SPACE.size
        run_bytes = view[spaces_end : spaces_end + n_runs * _RUN.size]
        spaces = []
        for fields in _SPACE.iter_unpack(view[_HEADER.size : spaces_end]):
            pid, nspid, kind, tree, first, count, pages = fields
            if first > n_runs or count > n_runs - first:
                raise PageMapError(f"page map gives process {pid} runs it does not have")
            found: tuple[Run, ...] = ()
            if runs:
                part = run_bytes[first * _RUN.size : (first + count) * _RUN.size]
                found = tuple(
                    Run(vaddr, pfn, npages, RunFlag(flags))
                    for vaddr, pfn, npages, flags in _RUN.iter_unpack(part)
                )
                _check_runs(pid, found, pages)
            spaces.append(Space(pid, nspid, tree, pages, found, kind))
        return cls(tuple(spaces))

    def build(self) -> bytes:
        """The map as a file. Raises PageMapError if a space contradicts itself."""
        table = bytearray()
        run_table = bytearray()
        first = 0
        for space in self.spaces:
            _check_runs(space.pid, space.runs, space.pages)
            table += _SPACE.pack(
                space.pid,
                space.nspid,
                space.kind,
                space.tree,
                first,
                len(space.runs),
                space.pages,
            )
            for run in space.runs:
                run_table += _RUN.pack(run.vaddr, run.pfn, run.npages, run.flags)
            first += len(space.runs)
        # The checksum covers what follows it, which begins with the two last header fields.
        tail = struct.pack("<QQ", first, 0) + table + run_table
        head = struct.pack("<8sIIII", MAGIC, VERSION, PAGE_SIZE, len(self.spaces), zlib.crc32(tail))
        return head + tail


def _parse_header(view: memoryview) -> tuple[int, int]:
    """Numbers of spaces and of runs, everything that does not need them checked."""
    if len(view) < _HEADER.size:
        raise PageMapError(f"page map is cut off: {len(view)} bytes")
    magic, version, page_size, n_spaces, crc, n_runs, flags = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise PageMapError(f"page map has no {MAGIC.decode()} at its start")
    if version != VERSION:
        raise PageMapError(f"page map has version {version}, this program reads {VERSION}")
    if page_size != PAGE_SIZE:
        raise PageMapError(f"page map has pages of {page_size} bytes")
    if flags:
        raise PageMapError(f"page map has unknown flags {flags:#x}")
    need = _HEADER.size + n_spaces * _SPACE.size + n_runs * _RUN.size
    if len(view) < need:
        raise PageMapError(f"page map is cut off: {len(view)} of {need} bytes")
    if zlib.crc32(view[_CRC_START:need]) != crc:
        raise PageMapError("page map is damaged: the checksum does not match")
    return n_spaces, n_runs


def _check_runs(pid: int, runs: tuple[Run, ...], pages: int) -> None:
    for run in runs:
        if (
            not 0 < run.npages < 1 << 32
            or run.vaddr % PAGE_SIZE
            or not 0 <= run.vaddr < _USER_END
            or not 0 <= run.pfn < 1 << 64
            or int(run.flags) & ~RunFlag.STRAY.value
        ):
            raise PageMapError(f"page map has a malformed run at {run.vaddr:#x} of process {pid}")
    for before, after in pairwise(runs):
        if after.vaddr < before.end:
            raise PageMapError(f"page map has a malformed run at {after.vaddr:#x} of process {pid}")
    counted = sum(run.npages for run in runs)
    if counted != pages:
        raise PageMapError(f"page map counts {pages} pages of process {pid}, but has {counted}")
