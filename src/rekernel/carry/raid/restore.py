"""Arrays of the md driver (software RAID), assembled from the disks that they had before.

Imported early: see agent/main.py. Kernel interface: Documentation/admin-guide/md.rst.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from rekernel.carry.block import superblocks
from rekernel.pid1.console import miss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_NEW_ARRAY = "/sys/module/md_mod/parameters/new_array"
_SYS_BLOCK = "/sys/block"
# Seconds for the disks of all of them, as udev's rules have it: then an array starts without.
_LIMIT_S = 30.0


def assemble(arrays: Sequence[Mapping[str, Any]]) -> None:
    """Assemble all of ``arrays`` (handover/config.py, RaidArray).

    One that cannot be is reported, and left to init, as is what it lacks that it had before.
    """
    deadline = time.monotonic() + _LIMIT_S
    for array in arrays:
        try:
            _assemble(array, deadline)
        except OSError as error:
            miss(f"{array['name']} is not assembled: {error}")


def known(arrays: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Node and what udev knew of each: without that it takes what is on them for unfinished."""
    for array in arrays:
        yield f"/dev/{array['name']}", array["udev"]


def _assemble(array: Mapping[str, Any], deadline: float) -> None:
    disks = list(_find(array, deadline))
    _write(_NEW_ARRAY, array["name"])
    md = f"{_SYS_BLOCK}/{array['name']}/md"
    try:
        _write(f"{md}/metadata_version", array["metadata"])
        for disk in disks:
            number = os.stat(disk).st_rdev
            try:
                _write(f"{md}/new_dev", f"{os.major(number)}:{os.minor(number)}")
            except OSError as error:
                miss(f"{array['name']} does not take {disk}: {error.strerror}")
        # The kernel reads the rest in the superblocks, and takes no disk that is out of date.
        _write(f"{md}/array_state", "active")
    except OSError:
        # Else nobody could assemble it afterwards: its disks would be taken.
        with suppress(OSError):
            _write(f"{md}/array_state", "clear")
        raise
    if _degraded(md) > array["degraded"]:
        miss(f"{array['name']} lacks more disks than before: see /proc/mdstat")


def _find(array: Mapping[str, Any], deadline: float) -> Iterator[str]:
    for uuid, name in array["disks"].items():
        left = max(0.0, deadline - time.monotonic())
        try:
            yield superblocks.find(uuid, superblocks.component_on, timeout=left, first=name)
        except superblocks.NotFoundError as error:
            miss(f"{array['name']} lacks {name}: {error}")


def _degraded(md: str) -> int:
    """How many disks an array lacks; those without redundancy have no number."""
    try:
        with open(f"{md}/degraded") as file:
            return int(file.read())
    except OSError:
        return 0


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
