"""Where the private anonymous pages of processes lie, without stopping them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.recorder import stat
from rekernel.errors import RekernelError
from rekernel.records import field, record

_PAGE = 4096
_CHUNK = 2 << 20


@record
class Survey:
    """Bytes of private anonymous memory inside and outside of the carry region.

    ``gatherable_bytes``: in ranges of 2 MiB that can be moved into it. ``by_process``: PID -> bytes
    inside and outside.
    """

    in_region_bytes: int
    stray_bytes: int
    gatherable_bytes: int = 0
    by_process: Mapping[int, int] = field(default_factory=dict)

    @property
    def left_bytes(self) -> int:
        """What is outside still when all is moved that can be."""
        return max(0, self.stray_bytes - self.gatherable_bytes)


def parse(raw: Mapping[str, Any]) -> Survey:
    """The recorder's answer."""
    chunks = sum(len(space.get("stray_chunks", ())) for space in raw["spaces"])
    return Survey(
        raw["pages"] * _PAGE,
        raw["stray_pages"] * _PAGE,
        chunks * _CHUNK,
        {space["pid"]: (space["pages"] + space["stray_pages"]) * _PAGE for space in raw["spaces"]},
    )


def look(pids: Sequence[int], regions: Sequence[Range]) -> Survey:
    """Look at these processes as they run. Raises RekernelError if it cannot be told.

    Only an estimate: the processes go on, and one that has ended has nothing.
    """
    if not pids:
        return Survey(0, 0)
    return parse(stat(pids, regions))


def survey(pids: Sequence[int], regions: Sequence[Range]) -> Survey | None:
    """A look at processes; None if it cannot be told (no recorder, not privileged, …)."""
    try:
        return look(pids, regions)
    except (RekernelError, ValueError, LookupError):
        return None
