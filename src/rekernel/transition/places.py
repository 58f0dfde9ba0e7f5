"""Where an attempt has its files until the jump: in /run on their way to the store, or on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rekernel.attempt import state as attempt
from rekernel.attempt.undo import UndoList
from rekernel.carry.memory.region import Layout
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.entry import Mount
from rekernel.handover.manifest import IMAGES_DIRECTORY, RESTORE_WORK
from rekernel.plan.room import Room, make_store_file, store_file_bytes
from rekernel.records import replace
from rekernel.syscalls import MS_NODEV, MS_NOSUID
from rekernel.transition import staging

# The limit of /run is raised by so much more than is needed, in bytes.
_SLACK = 32 << 20


class Places:
    """Places of one attempt. :meth:`settle` decides, before anything is frozen."""

    def __init__(self, name: str, where: Layout | None, undo: UndoList) -> None:
        """``name``: ID of the attempt."""
        self._undo = undo
        self._region = where is not None
        self._disk = attempt.IMAGES / name
        self._memory = staging.SCRATCH / "images"
        self._room: Room | None = None
        self.store_file = None if self._region else self._disk / "store"

    def prepare(self) -> None:
        """Make the directories. Raises OSError."""
        staging.make_scratch()
        self._undo.push("remove", str(self._memory))
        shutil.rmtree(self._memory, ignore_errors=True)
        self._memory.mkdir()
        if not self._region:
            self._make_disk()

    def _make_disk(self) -> None:
        self._undo.push("remove", str(self._disk))
        # What processes have in memory is in there, and keys.
        self._disk.mkdir(mode=0o700, parents=True, exist_ok=True)

    def settle(self, room: Room) -> None:
        """Take the room that there is. Raises BlockedError, CommandFailedError, OSError."""
        room.assert_enough()
        self._room = room
        if self.store_file is not None:
            sizes = {item.name: item.size for item in room.items if item.is_tmpfs}
            make_store_file(self.store_file, store_file_bytes(sizes))
        elif any(room.is_on_disk(item.name) for item in room.items):
            self._make_disk()
        self._widen_run(room.scratch)

    def _widen_run(self, needed: int) -> None:
        """Its size is only a limit, and there is memory enough."""
        status = os.statvfs(staging.SCRATCH)
        free, size = status.f_bfree * status.f_frsize, status.f_blocks * status.f_frsize
        if free >= needed + _SLACK:
            return
        self._undo.push("size-of-run", str(size))
        # The images must be gone before it is as small as it was.
        self._undo.push("remove", str(self._memory))
        mounts.resize_run(size - free + needed + _SLACK)

    def _is_on_disk(self, name: str) -> bool:
        return not self._region or (self._room is not None and self._room.is_on_disk(name))

    def images(self, unit: str, tree: str) -> Path:
        """The directory for the images of one of a unit's trees."""
        return (self._disk if self._is_on_disk(unit) else self._memory) / tree

    def for_agent(self, unit: str, tree: str) -> str:
        """Where the agent has a tree's images: below its own directory, or a path on the disk."""
        if self._is_on_disk(unit):
            return str(self._disk / tree)
        return f"{IMAGES_DIRECTORY}/{tree}"

    def archive(self, target: str, number: int) -> Path | None:
        """The file for the contents of a tmpfs that go to the disk; None: it is the store."""
        if self._region and self._is_on_disk(target):
            return self._disk / f"tmpfs-{number}.tar"
        return None

    def with_archives(self, todo: Sequence[Mount], targets: Sequence[str]) -> list[Mount]:
        """Mounts with the place where their contents are."""
        archives = {target: self.archive(target, i) for i, target in enumerate(targets)}
        return [
            replace(item, contents=str(archives[item.target]))
            if archives.get(item.target)
            else item
            for item in todo
        ]

    def to_unpack(self) -> list[Mount]:
        """A tmpfs for the images that were in the store: the size of /run is no limit for them,
        and they are gone after the commit.
        """
        if not self._region:
            return []
        target = f"{RESTORE_WORK}/{IMAGES_DIRECTORY}"
        flags = MS_NOSUID | MS_NODEV
        return [Mount(target, "tmpfs", "tmpfs", flags, "size=100%,mode=0700", transient=True)]

    def disk_bytes(self) -> int:
        """What lies on the disk by now, the store's file left out."""
        total = 0
        for directory, _, names in os.walk(self._disk):
            paths = (os.path.join(directory, name) for name in names)
            total += sum(os.lstat(path).st_size for path in paths if path != str(self.store_file))
        return total

    @property
    def in_memory(self) -> Path:
        """The directory of the images that go to the store."""
        return self._memory
