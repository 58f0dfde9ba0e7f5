"""Loop devices: which the agent can attach to their files again, and which it cannot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rekernel.carry.loops.entry import LoopDevice
from rekernel.carry.mounts.binds import holder
from rekernel.carry.mounts.observe import UNBACKED, MountInfo
from rekernel.records import field, record
from rekernel.run import run

# What mountinfo has for one of them, or for a partition on it.
_NODE = re.compile(r"(/dev/loop\d+)(p\d+)?")
_COLUMNS = (
    "NAME", "BACK-FILE", "BACK-INO", "BACK-MAJ:MIN", "OFFSET", "SIZELIMIT", "AUTOCLEAR", "PARTSCAN",
    "RO", "DIO", "LOG-SEC",
)  # fmt: skip
# include/uapi/linux/loop.h, LO_FLAGS_*
_FLAGS = {"ro": 1, "autoclear": 4, "partscan": 8, "dio": 16}


@record
class Loops:
    """Loop devices that are attached, by the names of their nodes."""

    usable: dict[str, LoopDevice] = field(default_factory=dict)
    # Why the agent cannot attach them, in words.
    obstacles: dict[str, str] = field(default_factory=dict)

    def obstacle(self, source: str) -> str | None:
        """Why what is mounted from this node, one of theirs, cannot be mounted again."""
        name = node(source)
        if name in self.usable:
            return None
        return self.obstacles.get(name, "which is attached to nothing")

    def given_up(self, sources: Iterable[str]) -> list[str]:
        """Devices that will be gone, in words; ``sources``: of mounts, judged elsewhere."""
        mounted = {node(source) for source in sources}
        return [
            f"{name}, {why}, will be gone"
            for name, why in self.obstacles.items()
            if name not in mounted
        ]


def node(source: str) -> str:
    """The loop device that a mount's source lies on, "" if it is none."""
    match = _NODE.fullmatch(source)
    return match[1] if match else ""


def observe(table: Sequence[MountInfo]) -> Loops:
    """Loop devices that are attached; ``table``: what is mounted. Raises CommandFailedError."""
    # It prints nothing at all if there are none.
    text = run(["losetup", "--list", "--json", "--output", ",".join(_COLUMNS)])
    found = Loops()
    mounted = {node(mount.source) for mount in table}
    for entry in json.loads(text)["loopdevices"] if text.strip() else []:
        name = entry["name"]
        why = _obstacle(entry, table)
        if why is None and entry["autoclear"] and name not in mounted:
            # Once attached it would go with the agent.
            why = "which is detached when it is closed"
        if why is None:
            found.usable[name] = _device(entry, table)
        else:
            found.obstacles[name] = why
    return found


def _obstacle(entry: dict[str, Any], table: Sequence[MountInfo]) -> str | None:
    path = entry["back-file"]
    try:
        status = os.stat(path)
    except (OSError, TypeError):
        return f"of {path}, which is gone"
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    if (number, status.st_ino) != (entry["back-maj:min"].strip(), int(entry["back-ino"])):
        return f"of a file that was {path} once"
    there = holder(path, table)
    if there is None or there.fstype in UNBACKED:
        # The agent fills a tmpfs when all is mounted.
        return f"of {path}, which lies on no disk"
    if sum(mount.target == there.target for mount in table) > 1:
        return f"of {path}, which lies on or below another mount"
    return None


def _device(entry: dict[str, Any], table: Sequence[MountInfo]) -> LoopDevice:
    there = holder(entry["back-file"], table)
    return LoopDevice(
        number=int(entry["name"].removeprefix("/dev/loop")),
        path=entry["back-file"],
        on=there.target if there else "/",
        offset=int(entry["offset"]),
        size_limit=int(entry["sizelimit"]),
        block_size=int(entry["log-sec"]),
        flags=sum(flag for name, flag in _FLAGS.items() if entry[name]),
    )
