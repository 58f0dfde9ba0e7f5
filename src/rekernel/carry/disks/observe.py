"""File systems on disks that must stand before a restore, the root's first; and what cannot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rekernel import syscalls
from rekernel.carry.block import superblocks
from rekernel.carry.block.observe import NoWayBackError
from rekernel.carry.disks.entry import RootConfig
from rekernel.carry.disks.stack import Stack
from rekernel.carry.loops.observe import Loops, node
from rekernel.carry.mounts import binds
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.mounts.observe import (
    MOVED_BY_AGENT,
    UNBACKED,
    MountInfo,
    contains,
    is_bind,
    is_of_others,
    unescape,
)
from rekernel.carry.mounts.restore import EARLY
from rekernel.errors import BlockedError
from rekernel.records import replace

# Those that the agent finds by their UUID.
_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
# What the kernel shows and another one may not take: they were the default before they went.
_NOT_TAKEN = ("rw", "ro", "seclabel", "attr2", "ikeep")
# These also from a loop device, which is known by its number.
_LOOP_TYPES = (*_TYPES, "erofs", "iso9660", "squashfs", "udf")
_ROOT_TYPES = ("ext4", "xfs", "btrfs")
_CLASS_BLOCK = Path("/sys/class/block")
_DEV_BLOCK = Path("/sys/dev/block")


def root(mounts: Sequence[MountInfo]) -> tuple[RootConfig, str]:
    """How to mount the root file system, and its device now. Raises BlockedError."""
    mount = [item for item in mounts if item.target == "/"][-1]
    why = _obstacle_of_root(mount)
    if why is not None:
        raise BlockedError(
            f"the root file system is {mount.fstype} on {mount.source}{why}",
            f"it must be {', '.join(_ROOT_TYPES)}, on a plain disk, a partition, LVM or RAID",
        )
    device = _root_device(mount)
    flags = _flags(mount, mounts)
    return RootConfig(superblocks.uuid_on(device) or "", mount.fstype, flags, _data(mount)), device


def _obstacle_of_root(mount: MountInfo) -> str | None:
    if mount.fstype not in _ROOT_TYPES:
        return ""
    if not _is_whole(mount):
        return ", a part of it"
    return _obstacle_of_device(_root_device(mount))


def _root_device(mount: MountInfo) -> str:
    """Without an initrd the kernel calls it /dev/root, which is no node; btrfs has no number."""
    block = _DEV_BLOCK / mount.device
    return superblocks.node(block.resolve().name) if block.exists() else mount.source


def unsupported(mounts: Sequence[MountInfo], loops: Loops) -> list[str]:
    """Mounts that the agent cannot make again before the restore, and why."""
    found = []
    for mount in mounts:
        if mount.target in MOVED_BY_AGENT or is_of_others(mount):
            continue
        why = _obstacle(mount, mounts, loops)
        if why is not None:
            found.append(f"{mount.target} ({mount.fstype} on {mount.source}{why})")
    return found


def plan(mounts: Sequence[MountInfo]) -> list[Mount]:
    """How the agent mounts what lies on disks, in the kernel's order: all that is supported."""
    found = []
    for mount in _on_disks(mounts):
        loop = node(mount.source)
        source = mount.source if loop else ""
        uuid = "" if loop else superblocks.uuid_on(mount.source) or ""
        flags = _flags(mount, mounts)
        found.append(Mount(mount.target, mount.fstype, source, flags, data=_data(mount), uuid=uuid))
    return found


def stack(mounts: Sequence[MountInfo], root_device: str) -> Stack:
    """What all of these stand on. Raises BlockedError if a device went meanwhile."""
    found = Stack()
    sources = [mount.source for mount in _on_disks(mounts) if not node(mount.source)]
    for device in (root_device, *sources):
        try:
            found.add(device)
        except (NoWayBackError, OSError) as error:
            raise BlockedError(f"{device} changed just now: {error}", "try again") from None
    return found


def before_others(path: str, mounts: Sequence[MountInfo], at: str) -> tuple[Mount | None, str]:
    """How the agent gets at a file before anything but the root is mounted.

    What is to be mounted for that, at ``at``, or None; and what the file is called then. Raises
    BlockedError if it lies on something else than a disk.
    """
    path = os.path.realpath(path)
    there = binds.holder(path, mounts)
    if there is None:
        raise BlockedError(f"nobody knows where {path} lies", "try again")
    inner = os.path.normpath(os.path.join(there.root, os.path.relpath(path, there.target)))
    planned = {item.target: item for item in plan(mounts) if item.uuid}
    for mount in mounts:
        if mount.device != there.device or not contains(mount.root, inner):
            continue
        relative = os.path.relpath(inner, mount.root)
        if mount.target == "/":
            return None, f"/{relative}"
        if mount.target in planned:
            return replace(planned[mount.target], target=at), f"{at}/{relative}"
    raise BlockedError(
        f"{path} lies on {there.fstype} ({there.source}), where it is not found at the next boot",
        "set up a carry region (rekernel setup), which needs no such file",
    )


def _flags(mount: MountInfo, mounts: Sequence[MountInfo]) -> int:
    """The file system itself is read-only only if nobody may write to it elsewhere."""
    flags = syscalls.mount_flags(mount.options)
    if any(other.device == mount.device and "rw" in other.options for other in mounts):
        flags &= ~syscalls.MS_RDONLY
    return flags


def _data(mount: MountInfo) -> str:
    return ",".join(item for item in mount.super_options if item not in _NOT_TAKEN)


def _is_whole(mount: MountInfo) -> bool:
    """Whether it shows all of its file system, or a subvolume that its options name."""
    if mount.fstype != "btrfs":
        return mount.root == "/"
    return f"subvol={mount.root}" in map(unescape, mount.super_options)


def _on_disks(mounts: Sequence[MountInfo]) -> list[MountInfo]:
    return [
        mount
        for mount in mounts
        if mount.target != "/"
        and mount.fstype in _types(mount)
        and not is_bind(mount, mounts)
        and not is_of_others(mount)
    ]


def _types(mount: MountInfo) -> tuple[str, ...]:
    return _LOOP_TYPES if node(mount.source) else _TYPES


def _obstacle(mount: MountInfo, mounts: Sequence[MountInfo], loops: Loops) -> str | None:
    """Why a mount cannot be made again, as ", …" or "" if its type says so; None if it can."""
    if mount.fstype not in (*_types(mount), *UNBACKED):
        return ""
    if is_bind(mount, mounts):
        why = binds.obstacle(mount, mounts)
        return why and f", {why}"
    if not _is_whole(mount):
        return ", a part of what is mounted nowhere as a whole"
    if mount.fstype in UNBACKED:
        return None
    if not mount.source.startswith("/dev/"):
        return ", no disk"
    if [*map(unescape, mount.super_options)] != [*mount.super_options]:
        return ", with a blank in its options"
    if node(mount.source):
        if mount.target == EARLY:
            return ", where the restore's programs lie"
        why = loops.obstacle(mount.source)
        return why and f", {why}"
    return _obstacle_of_device(mount.source)


def _obstacle_of_device(path: str) -> str | None:
    try:
        Stack().add(path)
    except NoWayBackError as error:
        return f", {error}"
    except OSError:
        return ", which is gone"
    uuid = superblocks.uuid_on(path)
    if uuid is None:
        return ", whose UUID cannot be read"
    # Also a btrfs with several.
    others = (superblocks.uuid_on(f"/dev/{entry.name}") for entry in _CLASS_BLOCK.iterdir())
    if sum(other == uuid for other in others) > 1:
        return ", whose UUID another disk has"
    return None
