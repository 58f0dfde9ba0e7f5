"""The root file system, as the agent mounts it."""

from __future__ import annotations

from rekernel.records import record


@record
class RootConfig:
    """The root file system: found by UUID, mounted like this."""

    uuid: str
    fstype: str
    flags: int
    data: str
