"""The native page-map recorder: how it is started, and what it answers."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

from rekernel.carry.memory import dax, migrations
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.memory.region import Layout, ram_ranges
from rekernel.errors import RekernelError
from rekernel.records import record
from rekernel.run import end, finish, run, start

RECORDER = "/usr/lib/rekernel/rekernel-pagemap"
# Seconds in which the recorder has walked the page tables, and bytes that it has done in each of
# more: an emulated machine does 10 GiB.
_RECORDER_S = 30
_RECORDED_PER_S = 1 << 30


def _region_option(parts: Sequence[Range]) -> str:
    return ",".join(f"{item.start:#x}:{item.end:#x}" for item in parts) or "none"


def stat(pids: Sequence[int], region: Sequence[Range]) -> dict[str, Any]:
    """Where the private anonymous pages of these running processes lie, as it tells that: pages in
    all and in each of ``spaces``, in and out of the region. Raises CommandFailedError.

    ``stray_chunks``: addresses of 2 MiB that are nearly full and lie outside.
    """
    words = [RECORDER, "stat", "--stray-chunks", "--region", _region_option(region)]
    answer: dict[str, Any] = json.loads(run([*words, *map(str, pids)]).splitlines()[-1])
    return answer


@record
class PageRecord:
    """What the recorder found."""

    map_file: Path
    stray_file: Path
    occupied: tuple[Extent, ...]
    pages: int
    stray_pages: int
    # What migrations.count() said before it.
    moves: int

    def is_true(self) -> bool:
        """Whether every page is still where it was."""
        return migrations.count() == self.moves


class Recorder:
    """The native recorder while it walks the page tables of frozen processes."""

    def __init__(
        self,
        directory: Path,
        where: Layout,
        pids: Sequence[int],
        stray_base: int,
        stray_max: int,
    ) -> None:
        """Start it. ``directory``: for its files. ``stray_base``: physical address from where on
        copies of strays will lie, ``stray_max`` bytes at most.
        """
        self._output = directory / "pagemap"
        self._strays = directory / "strays"
        self._summary = directory / "recorder.json"
        self._summary.unlink(missing_ok=True)
        self._block = dax.block_size()
        self._moves = migrations.count()
        self._process: Popen[bytes] = start(
            [
                RECORDER, "record",
                "--out", str(self._output),
                "--region", _region_option(ram_ranges(where)),
                "--block", str(self._block),
                "--stray-out", str(self._strays),
                "--stray-base", f"{stray_base:#x}",
                "--stray-max", str(stray_max),
                *map(str, pids),
            ],
            output=str(self._summary),
        )  # fmt: skip

    def stop(self) -> None:
        """End it, finished or not."""
        end(self._process)

    def finish(self, resident_bytes: int) -> PageRecord:
        """Wait for it. Raises RekernelError with the recorder's own words, or if it takes far
        longer than it can for so much memory.
        """
        limit = _RECORDER_S + resident_bytes // _RECORDED_PER_S
        code = finish(self._process, "the recorder of the page map", limit=limit)
        text = self._summary.read_text()
        if code != 0:
            words = [line for line in text.splitlines() if not line.startswith("{")]
            cause = words[-1] if words else f"the recorder ended with {code}"
            raise RekernelError(f"the page map could not be recorded: {cause}")
        summary = json.loads(text.splitlines()[-1])
        blocks = [
            dax.Range(item["start"], item["start"] + self._block)
            for item in summary["blocks"]
            if item["used_pages"]
        ]
        return PageRecord(
            map_file=self._output,
            stray_file=self._strays,
            occupied=tuple(Extent(item.start, item.end) for item in dax.merge(blocks)),
            pages=summary["pages"],
            stray_pages=summary["stray_pages"],
            moves=self._moves,
        )


def memory_entry(where: Layout | None, record: PageRecord | None, stray_offset: int) -> Memory:
    """Where the carried pages lie, for the manifest."""
    if where is None or record is None:
        return Memory("image", None, (), (), None)
    occupied = [dax.Range(item.start, item.end) for item in record.occupied]
    free = dax.subtract(where.ram, occupied)
    return Memory(
        backend="region",
        region=Extent(where.whole.start, where.whole.end),
        occupied=record.occupied,
        free=tuple(Extent(item.start, item.end) for item in free),
        store=Extent(where.store.start, where.store.end),
        stray_offset=stray_offset,
        stray_bytes=record.stray_pages * mmap.PAGESIZE,
    )
