"""The handover store on the old side: opened, filled, and sealed with the manifest."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rekernel import smallfiles
from rekernel.carry.memory import dax
from rekernel.carry.memory.recorder import PageRecord
from rekernel.carry.memory.region import Layout, store_device
from rekernel.carry.mounts import observe as mounts
from rekernel.errors import RekernelError
from rekernel.handover.manifest import IMAGES_DIRECTORY, MANIFEST_BLOB, Manifest, dump
from rekernel.handover.store import StoreFullError, StoreWriter
from rekernel.transition.staging import SCRATCH

# Bytes of a file from which on it is read right into the store, and not as small ones are.
_LARGE = 1 << 20


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
