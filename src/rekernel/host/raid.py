"""Arrays of the md driver (software RAID): which the agent can assemble again.

Kernel interface: Documentation/admin-guide/md.rst.
"""

from __future__ import annotations

import re
from pathlib import Path

from rekernel.agent import superblocks
from rekernel.handover.config import RaidArray
from rekernel.host import sysblock
from rekernel.host.sysblock import NoWayBackError, line

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
    if "[llbitmap]" in _text(at / "bitmap_type", ""):
        raise NoWayBackError("a RAID with a bitmap that not every kernel knows")
    if _text(at / "reshape_position", "none") != "none":
        raise NoWayBackError("a RAID that is being reshaped")
    components = []
    for disk in below:
        if is_array(disk) or (disk / "dm").exists():
            raise NoWayBackError(f"a RAID on {disk.name}, no plain disk")
        reader = superblocks.component_on
        components.append(sysblock.only_here(disk.name, reader, "no disk of a RAID"))
    return RaidArray(
        name=block.name,
        level=level,
        metadata=metadata,
        components=tuple(components),
        udev=sysblock.known_to_udev(line(block / "dev"), "E:LVM_MD_"),
    )


def _has_failed(disk: Path) -> bool:
    return "faulty" in line(disk / "state").split(",")


def _text(path: Path, default: str) -> str:
    return line(path) if path.exists() else default
