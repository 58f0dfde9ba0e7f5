"""Everything stands still: the control groups of what is carried, and file systems on disks."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rekernel import syscalls
from rekernel.attempt.undo import CGROUPS, UndoList
from rekernel.attempt.undo import freeze as begin_to_freeze
from rekernel.carry.mounts import observe as mounts
from rekernel.errors import RekernelError


def freeze(cgroups: Sequence[str], check: Callable[[], object], timeout: float = 20.0) -> None:
    """Freeze these control groups, all told at once. Raises RekernelError naming a laggard, or one
    that is gone; and what ``check`` raises if nobody shall wait any more.

    The undo list must know of it already.
    """
    for cgroup in cgroups:
        with _being_there(cgroup):
            begin_to_freeze(cgroup)
    deadline = time.monotonic() + timeout
    for cgroup in cgroups:
        while not _is_frozen(cgroup):
            check()
            if time.monotonic() > deadline:
                raise RekernelError(
                    f"{cgroup} does not freeze", "a process there is in uninterruptible sleep"
                )
            time.sleep(0.001)


def _is_frozen(cgroup: str) -> bool:
    with _being_there(cgroup):
        return "frozen 1" in (CGROUPS / cgroup.lstrip("/") / "cgroup.events").read_text()


@contextmanager
def _being_there(cgroup: str) -> Iterator[None]:
    """Systemd removes a control group when its last process has ended."""
    try:
        yield
    except OSError as error:
        # Its files are gone; or, of one that is open, what is behind it (kernfs).
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        raise RekernelError(
            f"{cgroup} ended while the upgrade was prepared", "try again in a moment"
        ) from None


def freeze_filesystems(table: Sequence[mounts.MountInfo], undo: UndoList) -> None:
    """Sync and hold the disk file systems, so that no journal needs a replay.

    The last one mounted goes first, the root last: one on a loop device writes into another. From
    then on nobody may sync: what is not held here would wait for what is.
    """
    os.sync()
    targets = [
        item.target
        for item in table
        if item.source.startswith("/dev/") and not mounts.is_bind(item, table)
    ]
    for target in reversed(dict.fromkeys(targets)):
        undo.push("thaw-filesystem", target)
        try:
            syscalls.freeze_filesystem(target)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                # A kind that cannot be held.
                syscalls.sync_filesystem(target)
            # Another subvolume of one that is frozen.
            elif error.errno != errno.EBUSY:
                raise
