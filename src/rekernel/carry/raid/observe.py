"""Arrays of the md driver (software RAID): which the agent can assemble again.

Kernel interface: Documentation/admin-guide/md.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rekernel.carry.block import observe as sysblock
from rekernel.carry.block import superblocks
from rekernel.carry.block.observe import NoWayBackError, line
from rekernel.carry.raid.entry import RaidArray
from rekernel.errors import RekernelError

# Each disk tells of itself and of the array; nothing is kept anywhere else.
_LEVELS = ("raid0", "raid1", "raid10")
# Its superblock lies before the data: a disk of an array cannot be taken for what is in the array.
_METADATA = ("1.1", "1.2")
_WRITABLE = ("clean", "active", "active-idle", "write-pending", "read-auto")
_NAME = re.compile(r"md\d+")


def is_array(block: Path) -> bool:
    """Tell whether a device, by its directory in /sys, is one of md as a whole."""
    return (block / "md").exists()


def disks(block: Path) -> list[str]:
    """The numbers ("8:1") of the devices that an array stands on. Raises OSError."""
    found = sorted((block / "md").glob("dev-*"))
    return [line(disk / "block" / "dev") for disk in found if not _has_failed(disk)]


def observe(block: Path, below: list[Path]) -> RaidArray:
    """How to assemble an array again from ``below``. Raises NoWayBackError, OSError."""
    at = block / "md"
    if not _NAME.fullmatch(block.name):
        raise NoWayBackError("a RAID with a name instead of a number")
    level, metadata, state = (
        line(at / name) for name in ("level", "metadata_version", "array_state")
    )
    if level not in _LEVELS:
        raise NoWayBackError(f"a RAID of level {level}")
    if metadata not in _METADATA:
        raise NoWayBackError(f"a RAID with metadata {metadata}")
    if state not in _WRITABLE:
        raise NoWayBackError(f"a RAID that is {state}")
    if _text(at / "bitmap" / "metadata", "internal") == "clustered":
        raise NoWayBackError("a RAID of a cluster")
    if _text(at / "bitmap" / "location", "none") == "file":
        raise NoWayBackError("a RAID with its bitmap in a file")
    if _text(at / "reshape_position", "none") != "none":
        raise NoWayBackError("a RAID that is being reshaped")
    found = {}
    for disk in below:
        if is_array(disk) or (disk / "dm").exists():
            raise NoWayBackError(f"a RAID on {disk.name}, no plain disk")
        reader = superblocks.component_on
        found[sysblock.only_here(disk.name, reader, "no disk of a RAID")] = disk.name
    return RaidArray(
        name=block.name,
        level=level,
        metadata=metadata,
        disks=found,
        degraded=int(_text(at / "degraded", "0")),
        udev=sysblock.known_to_udev(line(block / "dev"), "E:LVM_MD_"),
        features=tuple(_features(at)),
    )


def assert_as_before(arrays: Iterable[RaidArray]) -> None:
    """Raises RekernelError if a disk has failed, or come, since they were observed: the next kernel
    would take what is out of date for the array.
    """
    for array in arrays:
        at = sysblock.CLASS / array.name / "md"
        try:
            names = {disk.name for disk in at.glob("dev-*") if not _has_failed(disk)}
        except OSError:
            names = set()
        if names != {f"dev-{name}" for name in array.disks.values()}:
            raise RekernelError(f"{array.name} has not the same disks any more", "try again")


def _features(at: Path) -> Iterator[str]:
    """What is in its superblocks that older kernels refuse."""
    if _text(at / "logical_block_size", "0") != "0":
        yield "logical_block_size"
    if "[llbitmap]" in _text(at / "bitmap_type", ""):
        yield "llbitmap"


def _has_failed(disk: Path) -> bool:
    # One that is about to note a bad block is called so as well, but is in the array.
    state = line(disk / "state").split(",")
    return "faulty" in state and "in_sync" not in state


def _text(path: Path, default: str) -> str:
    return line(path) if path.exists() else default
