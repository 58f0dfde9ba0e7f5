"""The consistent cut: freeze every tree, lock the network, dump and record, hand over."""

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

from rekernel import smallfiles, syscalls
from rekernel.attempt.undo import CGROUPS, UndoList
from rekernel.attempt.undo import freeze as begin_to_freeze
from rekernel.carry.memory import dax, migrations
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.memory.recorder import RECORDER, region_option
from rekernel.carry.memory.region import Layout, ram_ranges, store_device
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.network import observe as network
from rekernel.errors import RekernelError
from rekernel.handover.manifest import IMAGES_DIRECTORY, MANIFEST_BLOB, Manifest, dump
from rekernel.handover.store import StoreFullError, StoreWriter
from rekernel.records import record
from rekernel.run import end, finish, start
from rekernel.transition.staging import SCRATCH

# Seconds in which the recorder has walked the page tables, and bytes that it has done in each of
# more: an emulated machine does 10 GiB.
_RECORDER_S = 30
_RECORDED_PER_S = 1 << 30
# What the agent may take at least, in seconds, and bytes it restores in one if it is very slow.
_PATIENCE_S = 120
_SLOWEST = 16 << 20
# Bytes of a file from which on it is read right into the store, and not as small ones are.
_LARGE = 1 << 20


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


def lock_network(undo: UndoList) -> None:
    """Drop every packet from now on."""
    undo.push("unlock-network")
    network.lock()


@record
class PageRecord:
    """What the recorder found."""

    map_file: Path
    stray_file: Path
    occupied: tuple[Extent, ...]
    pages: int
    stray_pages: int
    # What migrations.count() said before it.
    moves: int

    def is_true(self) -> bool:
        """Whether every page is still where it was."""
        return migrations.count() == self.moves


class Recorder:
    """The native page-map recorder at work."""

    def __init__(self, where: Layout, pids: Sequence[int], stray_base: int, stray_max: int) -> None:
        self._output = SCRATCH / "pagemap"
        self._strays = SCRATCH / "strays"
        self._summary = SCRATCH / "recorder.json"
        self._summary.unlink(missing_ok=True)
        self._block = dax.block_size()
        self._moves = migrations.count()
        self._process: Popen[bytes] = start(
            [
                RECORDER, "record",
                "--out", str(self._output),
                "--region", region_option(ram_ranges(where)),
                "--block", str(self._block),
                "--stray-out", str(self._strays),
                "--stray-base", f"{stray_base:#x}",
                "--stray-max", str(stray_max),
                *map(str, pids),
            ],
            output=str(self._summary),
        )  # fmt: skip

    def stop(self) -> None:
        """End it, finished or not."""
        end(self._process)

    def finish(self, resident_bytes: int) -> PageRecord:
        """Wait for it. Raises RekernelError with the recorder's own words, or if it takes far
        longer than it can for so much memory.
        """
        limit = _RECORDER_S + resident_bytes // _RECORDED_PER_S
        code = finish(self._process, "the recorder of the page map", limit=limit)
        text = self._summary.read_text()
        if code != 0:
            words = [line for line in text.splitlines() if not line.startswith("{")]
            cause = words[-1] if words else f"the recorder ended with {code}"
            raise RekernelError(f"the page map could not be recorded: {cause}")
        summary = json.loads(text.splitlines()[-1])
        blocks = [
            dax.Range(item["start"], item["start"] + self._block)
            for item in summary["blocks"]
            if item["used_pages"]
        ]
        return PageRecord(
            map_file=self._output,
            stray_file=self._strays,
            occupied=tuple(Extent(item.start, item.end) for item in dax.merge(blocks)),
            pages=summary["pages"],
            stray_pages=summary["stray_pages"],
            moves=self._moves,
        )


@contextmanager
def open_store(where: Layout | None, store_file: Path | None) -> Iterator[mmap.mmap]:
    """The handover store as writable memory."""
    if where is None:
        assert store_file is not None
        with store_file.open("r+b") as file:
            area = mmap.mmap(file.fileno(), 0)
    else:
        device = store_device(where)
        if device is None:
            raise RekernelError(
                "the handover store is not set up", "systemctl restart rekernel-region.service"
            )
        area = dax.map_device(device.name, where.store.size, writable=True)
    try:
        yield area
    finally:
        area.flush() if where is None else None
        area.close()


def add_images(writer: StoreWriter, images: Path) -> int:
    """Put criu's images into the store; returns their bytes. Raises RekernelError if full."""
    total = 0
    for tree in sorted(os.listdir(images)):
        directory = os.open(images / tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in sorted(os.listdir(directory)):
                blob = f"{IMAGES_DIRECTORY}/{tree}/{name}"
                size = os.stat(name, dir_fd=directory).st_size
                if size >= _LARGE:
                    _add_file(writer, blob, name, size, directory)
                else:
                    _add(writer, blob, smallfiles.read(name, directory))
                total += size
        finally:
            os.close(directory)
    return total


def add_tmpfs(
    writer: StoreWriter,
    plans: Sequence[mounts.TmpfsPlan],
    elsewhere: Callable[[str, int], Path | None],
) -> int:
    """Put the contents of the tmpfs mounts that have any into the store; returns their bytes.

    ``elsewhere``: the file on the disk, by mount point and number, of those that go there instead.
    """
    total = 0
    for index, plan in enumerate(plans):
        # Of each login one, and mostly nothing in it. Others may have got another owner.
        if plan.target.startswith("/run/user/") and mounts.is_bare(plan):
            continue
        on_disk = elsewhere(plan.target, index)
        if on_disk is not None:
            mounts.archive_tmpfs(plan, on_disk)
            continue
        path = SCRATCH / f"tmpfs-{index}.tar"
        mounts.archive_tmpfs(plan, path)
        size = path.stat().st_size
        total += size
        _add_file(writer, f"tmpfs{plan.target}", str(path), size)
        path.unlink()
    return total


def add_blobs(writer: StoreWriter, blobs: Mapping[str, bytes]) -> None:
    """Put these into the store, but those that are empty."""
    for name, data in blobs.items():
        if data:
            _add(writer, name, data)


def add_record(writer: StoreWriter, area: mmap.mmap, record: PageRecord, strays_at: int) -> None:
    """Put the page map into the store, and copied strays at their offset."""
    _add(writer, "pagemap", record.map_file.read_bytes())
    if record.stray_pages:
        data = record.stray_file.read_bytes()
        area[strays_at : strays_at + len(data)] = data


def _add(writer: StoreWriter, name: str, data: bytes) -> None:
    with _fitting():
        writer.add(name, data)


def _add_file(
    writer: StoreWriter, blob: str, name: str, size: int, directory: int | None = None
) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with _fitting():
            writer.add_file(blob, fd, size)
    finally:
        os.close(fd)


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except StoreFullError as error:
        raise RekernelError(
            str(error), "a larger region has a larger store: rekernel setup"
        ) from None


def seal(writer: StoreWriter, manifest: Manifest) -> None:
    """The manifest, and with it the store becomes valid."""
    _add(writer, MANIFEST_BLOB, dump(manifest))
    try:
        writer.commit()
    except StoreFullError as error:
        raise RekernelError(str(error)) from None


def memory_facts(where: Layout | None, record: PageRecord | None, stray_offset: int) -> Memory:
    """Where the carried pages lie, for the manifest."""
    if where is None or record is None:
        return Memory("image", None, (), (), None)
    occupied = [dax.Range(item.start, item.end) for item in record.occupied]
    free = dax.subtract(where.ram, occupied)
    return Memory(
        backend="region",
        region=Extent(where.whole.start, where.whole.end),
        occupied=record.occupied,
        free=tuple(Extent(item.start, item.end) for item in free),
        store=Extent(where.store.start, where.store.end),
        stray_offset=stray_offset,
        stray_bytes=record.stray_pages * mmap.PAGESIZE,
    )


def patience(report: Mapping[str, Any]) -> int:
    """Seconds after which a restore is stuck, by what the manifest's report says of its size."""
    if report["backend"] == "region":
        written = report["image_bytes"] + report["disk_bytes"] + report["tmpfs_bytes"]
        size = written + report["stray_pages"] * 4096
    else:
        size = report["resident_bytes"]
    return _PATIENCE_S + int(size) // _SLOWEST


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


def jump() -> None:
    """Into the new kernel. Returns only by raising OSError."""
    syscalls.reboot_kexec()
