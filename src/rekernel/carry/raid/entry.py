"""An array of the md driver, as the agent assembles it again."""

from __future__ import annotations

from rekernel.records import record


@record
class RaidArray:
    """An array of the md driver, which finds the rest in the superblocks of its disks."""

    name: str
    level: str
    metadata: str
    # UUID of each disk -> its name in /dev, which may be another then; without those that failed.
    disks: dict[str, str]
    # How many it lacks.
    degraded: int
    # Of its record in udev's database.
    udev: tuple[str, ...]
    # What md must know by name to read its superblocks.
    features: tuple[str, ...] = ()
