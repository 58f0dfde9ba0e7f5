"""Watches of files (inotify, fanotify) that criu does not make again, or not everywhere.

Of a deleted file it does if it makes the file again, too: a process of the same tree has it open
(criu/fsnotify.c, get_mark_path). By a path it knows all others, if the kernel has their names in
memory, but for symbolic links: :mod:`rekernel.carry.inotify.observe` helps it with both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from rekernel.carry.inotify import observe as inotify
from rekernel.carry.mounts.observe import stays_behind
from rekernel.census.obstacle import Obstacle
from rekernel.criu.descriptors import Descriptor, descriptors

# Of /proc/PID/fdinfo; what criu reads of it (criu/proc_parse.c) are marks of inodes and of mounts.
_FLAGS = re.compile(r"^fanotify flags:(\w+)", re.MULTILINE)
_UNREAD = re.compile(r"^fanotify (?!flags:|ino:|mnt_id:)", re.MULTILINE)
# include/uapi/linux/fanotify.h: FAN_CLASS_CONTENT and FAN_CLASS_PRE_CONTENT.
_ASKED_BEFORE = 0x4 | 0x8
# Where criu wants a path: what a handle names there is another file after the next mount.
_WITHOUT_HANDLES = ("tmpfs", "devtmpfs")


def of_watches(item: Descriptor, own: Collection[int]) -> Obstacle | None:
    """What stands in the way of a descriptor's watches. ``own``: processes of the same unit."""
    if item.link not in (inotify.LINK, inotify.FANOTIFY):
        return None
    kind = "a watch (inotify)"
    if item.link == inotify.FANOTIFY:
        kind = "a mark (fanotify)"
        found = _of_group(Path(f"/proc/{item.pid}/fdinfo/{item.number}").read_text())
        if found is not None:
            return found
    return next(_of_files(item, kind, own), None)


def _of_group(info: str) -> Obstacle | None:
    flags = _FLAGS.search(info)
    if flags and int(flags[1], 16) & _ASKED_BEFORE:
        return Obstacle(
            "a fanotify group that is asked before a file is opened",
            "nobody could open one while it stands still",
        )
    if _UNREAD.search(info):
        return Obstacle("a mark (fanotify) of a whole file system")
    return None


def _of_files(item: Descriptor, kind: str, own: Collection[int]) -> Iterator[Obstacle]:
    for watched in _recalled(item):
        if not watched.path and not watched.is_deleted:
            yield Obstacle(
                f"{kind} of a file whose name the kernel has forgotten "
                f"(inode {watched.inode} below {watched.mounted_at})",
                "restart it, or look for that file: find -xdev -inum, then ls -l",
            )
        elif not watched.path:
            if watched.fstype in _WITHOUT_HANDLES:
                yield Obstacle(f"{kind} of a deleted file in a tmpfs")
            elif not _is_open(watched, own):
                yield Obstacle(f"{kind} of a deleted file that only others have open")
        elif stays_behind(watched.path) and not os.path.isdir(watched.path):
            yield Obstacle(f"{kind} of {watched.path}, which stays with this kernel,")
        elif item.link == inotify.FANOTIFY and os.path.islink(
            f"/proc/{item.pid}/root{watched.path}"
        ):
            yield Obstacle(f"{kind} of the symbolic link {watched.path}")


def _recalled(item: Descriptor) -> list[inotify.Watched]:
    found = list(inotify.observe_all(item.pid, item.number))
    forgotten = [one for one in found if not one.path and not one.is_deleted]
    for one in forgotten:
        inotify.recall(item.pid, one)
    return list(inotify.observe_all(item.pid, item.number)) if forgotten else found


def _is_open(watched: inotify.Watched, own: Collection[int]) -> bool:
    for pid in own:
        with suppress(FileNotFoundError, ProcessLookupError):
            for item in descriptors(pid):
                if (item.device, item.inode) == (watched.device, watched.inode):
                    return True
    return False
