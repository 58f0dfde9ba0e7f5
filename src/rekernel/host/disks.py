"""File systems on disks, beside the root, that must stand before a restore; and what cannot."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rekernel.agent import boot
from rekernel.handover.manifest import Mount
from rekernel.host.mounts import API_TYPES, BY_INIT, MountInfo, mount_flags, unescape

# Those that the agent finds by their UUID.
_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
# What the kernel shows and another one may not take: they were the default before they went.
_NOT_TAKEN = ("rw", "ro", "seclabel", "attr2", "ikeep")
_DEV_BLOCK = Path("/sys/dev/block")
_CLASS_BLOCK = Path("/sys/class/block")
# Drivers that stand on other devices, and disks of another machine.
_VIRTUAL = re.compile(r"/devices/virtual/|/session\d+/")


def unsupported(mounts: Sequence[MountInfo]) -> list[str]:
    """Mounts that the agent cannot make again before the restore, and why."""
    found = []
    for mount in mounts:
        if mount.target == "/" or mount.fstype in (*API_TYPES, *BY_INIT, "tmpfs"):
            continue
        why = _obstacle(mount, mounts)
        if why is not None:
            found.append(f"{mount.target} ({mount.fstype} on {mount.source}{why})")
    return found


def plan(mounts: Sequence[MountInfo]) -> list[Mount]:
    """How the agent mounts what lies on disks, in the kernel's order: all that is supported."""
    found = []
    for mount in _on_disks(mounts):
        data = ",".join(item for item in mount.super_options if item not in _NOT_TAKEN)
        uuid = boot.uuid_on(mount.source) or ""
        flags = mount_flags(mount.options)
        found.append(Mount(mount.target, mount.fstype, "", flags, data=data, uuid=uuid))
    return found


def devices(mounts: Sequence[MountInfo]) -> list[str]:
    """What these lie on, each once; without the root's."""
    return list(dict.fromkeys(mount.source for mount in _on_disks(mounts)))


def _on_disks(mounts: Sequence[MountInfo]) -> list[MountInfo]:
    return [mount for mount in mounts if mount.target != "/" and mount.fstype in _TYPES]


def _obstacle(mount: MountInfo, mounts: Sequence[MountInfo]) -> str | None:
    """Why a mount cannot be made again, as ", …" or "" if its type says so; None if it can."""
    if mount.fstype not in _TYPES:
        return ""
    if not mount.source.startswith("/dev/"):
        return ", no disk"
    btrfs = mount.fstype == "btrfs"
    options = [unescape(option) for option in mount.super_options]
    whole = f"subvol={mount.root}" in options if btrfs else mount.root == "/"
    same = [item for item in mounts if (item.device, item.root) == (mount.device, mount.root)]
    # criu takes the sharing of mounts from any one of their group, and fails with a part.
    if not whole or len(same) > 1:
        return ", mounted twice or in part"
    if options != list(mount.super_options):
        return ", with a blank in its options"
    return _obstacle_of_device(mount.source)


def _obstacle_of_device(path: str) -> str | None:
    try:
        number = _device_number(path)
    except OSError:
        return ", which is gone"
    if _VIRTUAL.search(str((_DEV_BLOCK / f"{os.major(number)}:{os.minor(number)}").resolve())):
        return ", no plain disk"
    uuid = boot.uuid_on(path)
    if uuid is None:
        return ", whose UUID cannot be read"
    # Also a btrfs with several.
    if sum(boot.uuid_on(f"/dev/{entry.name}") == uuid for entry in _CLASS_BLOCK.iterdir()) > 1:
        return ", whose UUID another disk has"
    return None


def _device_number(path: str) -> int:
    return os.stat(path).st_rdev
