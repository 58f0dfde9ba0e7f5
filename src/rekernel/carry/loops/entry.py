"""A loop device, as the agent attaches it again."""

from __future__ import annotations

from rekernel.records import record


@record
class LoopDevice:
    """A file as a block device; offset and sizes in bytes, a limit of 0 is none."""

    number: int
    path: str
    # The mount that the file lies in: its target.
    on: str
    offset: int
    size_limit: int
    block_size: int
    # LO_FLAGS_*
    flags: int
