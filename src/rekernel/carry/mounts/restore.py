"""Mounts, made before the restore in the order that they had; some of them only for that.

Imported early: see agent/main.py.
"""

from __future__ import annotations

import os

from rekernel import syscalls
from rekernel.carry.block import superblocks
from rekernel.pid1.console import Tolerated, miss, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rekernel.carry.mounts.entry import Mount

# Mounted right after the root: programs of the agent lie there.
EARLY = "/usr"
# For disks other than that of the root file system, which was there long ago.
_DISK_LIMIT_S = 10.0
# Options of a tmpfs that each kernel knows.
_EVERY_KERNELS = ("size=", "mode=", "uid=", "gid=", "nr_inodes=")


def mount_all(mounts: Sequence[Mount], stands: Callable[[str], None]) -> None:
    """The mounts that must stand before a restore, in order. One that cannot be is missing.

    ``stands`` is called with the target of each, the root's first.
    """
    stands("/")
    for item in mounts:
        if item.flags & syscalls.MS_BIND:
            _bind(item)
        elif item.uuid or item.source.startswith("/dev/"):
            if item.target != EARLY:
                mount_disk(item.target, item.fstype, item.source, item.flags, item.data, item.uuid)
        else:
            with Tolerated(f"{item.target} is not mounted"):
                _mount_unbacked(item)
        stands(item.target)


def _mount_unbacked(item: Mount) -> None:
    if os.path.ismount(item.target):
        if item.target == "/run":
            flags = item.flags | syscalls.MS_REMOUNT
            syscalls.mount(item.source, item.target, item.fstype, flags, item.data)
        return
    os.makedirs(item.target, exist_ok=True)
    # One that is read-only, too, is filled first.
    flags = item.flags & ~syscalls.MS_RDONLY if item.contents else item.flags
    try:
        syscalls.mount(item.source, item.target, item.fstype, flags, item.data)
    except OSError as error:
        say(f"{item.target} is mounted without all of its options: {error.strerror}")
        data = ",".join(part for part in item.data.split(",") if part.startswith(_EVERY_KERNELS))
        syscalls.mount(item.source, item.target, item.fstype, flags, data)


def protect(mounts: Sequence[Mount]) -> None:
    """Make those read-only that were to be filled first."""
    for item in mounts:
        if item.contents and item.flags & syscalls.MS_RDONLY:
            flags = item.flags | syscalls.MS_REMOUNT | syscalls.MS_BIND
            with Tolerated(f"{item.target} is not read-only"):
                syscalls.mount("", item.target, "", flags)


def mount_disk(
    target: str, fstype: str, source: str, flags: int, data: str, uuid: str, **_: object
) -> None:
    """Mount a file system on a disk or a loop device. Who has files open there needs it."""
    try:
        os.makedirs(target, exist_ok=True)
        device = source or superblocks.find(uuid, timeout=_DISK_LIMIT_S)
        try:
            syscalls.mount(device, target, fstype, flags, data)
        except OSError as error:
            say(f"{target} is mounted without its options: {error.strerror}")
            only = [part for part in data.split(",") if part.startswith("subvol=")]
            syscalls.mount(device, target, fstype, flags, ",".join(only))
    except (OSError, superblocks.NotFoundError) as error:
        miss(f"{target} is not mounted: {error}")


def _bind(item: Mount) -> None:
    """Something in a second place; its own flags the kernel takes afterwards only."""
    try:
        if os.path.lexists(item.source) and not os.path.isdir(item.source):
            os.makedirs(os.path.dirname(item.target), exist_ok=True)
            # Not even opened where nothing can be written.
            if not os.path.lexists(item.target):
                open(item.target, "a").close()
        else:
            # In a tmpfs, which is filled later.
            os.makedirs(item.source, exist_ok=True)
            os.makedirs(item.target, exist_ok=True)
        syscalls.mount(item.source, item.target, "", syscalls.MS_BIND)
        if item.flags != syscalls.MS_BIND:
            syscalls.mount("", item.target, "", item.flags | syscalls.MS_REMOUNT)
    except OSError as error:
        miss(f"{item.target} is not mounted: {error}")


def unmount_transient(mounts: Sequence[Mount]) -> None:
    """Take away again what only the restore needed, innermost first."""
    for item in reversed(mounts):
        if item.transient and os.path.ismount(item.target):
            syscalls.umount(item.target, syscalls.MNT_DETACH)
