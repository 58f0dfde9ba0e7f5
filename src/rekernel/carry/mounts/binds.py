"""Mounts that show what is mounted elsewhere, too: bind mounts, of a directory or a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rekernel import syscalls
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.mounts.observe import (
    MOVED_BY_AGENT,
    MountInfo,
    contains,
    is_bind,
    is_of_others,
    shows,
)


def plan(mounts: Sequence[MountInfo]) -> list[Mount]:
    """How the agent makes them again, in the kernel's order: all that it can."""
    found = []
    for mount in mounts:
        if mount.target in MOVED_BY_AGENT or is_of_others(mount) or not is_bind(mount, mounts):
            continue
        path = source(mount, mounts)
        if path is not None:
            flags = syscalls.MS_BIND | syscalls.mount_flags(mount.options)
            found.append(Mount(mount.target, "", path, flags))
    return found


def source(mount: MountInfo, mounts: Sequence[MountInfo]) -> str | None:
    """Where else that lies which a mount shows, in what was mounted before it; None if nowhere.

    ``mounts``: all, in the kernel's order.
    """
    earlier = mounts[: mounts.index(mount)]
    for other in earlier:
        if shows(other, mount):
            path = _join(other.target, os.path.relpath(mount.root, other.root))
            if holder(path, earlier) is other:
                return path
    return None


def obstacle(mount: MountInfo, mounts: Sequence[MountInfo]) -> str | None:
    """Why a bind mount cannot be made again, in words; None if it can."""
    path = source(mount, mounts)
    if path is None:
        return "of what another mount hides"
    if sum(other.target == mount.target for other in mounts) > 1:
        return "on or below another mount"
    if _hides_its_peer(mount, mounts):
        return "on itself"
    # The agent fills a tmpfs when all is mounted.
    if mount.fstype == "tmpfs" and not os.path.isdir(mount.target):
        return "of a file in a tmpfs"
    return None


def _hides_its_peer(mount: MountInfo, mounts: Sequence[MountInfo]) -> bool:
    """Whether there is a wider one that gets the same mounts, and no name for this part in it."""
    wider = any(
        other.peers == mount.peers and other.root != mount.root and shows(other, mount)
        for other in mounts
    )
    return bool(mount.peers) and wider and canonical(mount.target, mounts) == mount.target


def canonical(path: str, mounts: Sequence[MountInfo]) -> str:
    """The name of a file or directory without bind mounts that show a part of their peers."""
    there = holder(path, mounts)
    if there is None or not there.peers:
        return path
    inner = os.path.join(there.root, os.path.relpath(path, there.target))
    for other in sorted(mounts, key=lambda mount: len(mount.root)):
        if other.peers == there.peers and other.root != there.root and shows(other, there):
            name = _join(other.target, os.path.relpath(inner, other.root))
            if holder(name, mounts) is other:
                return name
    return path


def holder(path: str, mounts: Sequence[MountInfo]) -> MountInfo | None:
    """The mount that a path leads into: of the innermost the last."""
    found = [mount for mount in mounts if contains(mount.target, path)]
    return max(reversed(found), key=lambda mount: len(mount.target.rstrip("/")), default=None)


def _join(directory: str, relative: str) -> str:
    return os.path.normpath(os.path.join(directory, relative))
