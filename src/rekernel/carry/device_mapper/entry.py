"""A device of the device mapper, as the agent sets it up again."""

from __future__ import annotations

from rekernel.records import record


@record
class MappedTarget:
    """A line of a table of the device mapper, in sectors of 512 bytes."""

    start: int
    sectors: int
    kind: str
    # With {0}, {1} … for the devices below.
    parameters: str


@record
class MappedDevice:
    """A block device of the device mapper, and how to set it up again."""

    name: str
    uuid: str
    read_only: bool
    targets: tuple[MappedTarget, ...]
    # "volume=UUID" of a physical volume of LVM, "mapped=NAME" of one that was set up before.
    below: tuple[str, ...]
    # Of its record in udev's database.
    udev: tuple[str, ...]
