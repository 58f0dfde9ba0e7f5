"""What the agent must know of the memory that stays in place."""

from __future__ import annotations

from rekernel.records import record


@record
class Extent:
    """Physical bytes [start, end)."""

    start: int
    end: int


@record
class Memory:
    """Where the carried pages lie. ``store`` holds copied strays too."""

    backend: str
    region: Extent | None
    # Parts of the region with carried pages: mapped, drained, then given back.
    occupied: tuple[Extent, ...]
    # Parts that are free: made RAM again beside the restore.
    free: tuple[Extent, ...]
    store: Extent | None
    # Offset of the copied strays in the store, bytes.
    stray_offset: int = 0
    stray_bytes: int = 0
