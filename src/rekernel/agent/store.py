"""The handover store on the new kernel: in the carry region, or a file on a disk."""

from __future__ import annotations

import mmap
import os

from rekernel import syscalls
from rekernel.carry.memory import dax
from rekernel.carry.memory.restore import map_extents
from rekernel.carry.mounts import restore as mounts
from rekernel.handover.config import AgentConfig
from rekernel.records import asdict, record


@record
class Store:
    """The handover store as writable memory; ``path`` is what it is a mapping of."""

    area: mmap.mmap
    path: str


def map_store(config: AgentConfig, region: dax.DaxRegion | None) -> Store:
    """Raises RegionError or OSError."""
    if region is None or config.store is None:
        if config.store_mount is None:
            return _map_file(config.store_file)
        mounts.mount_disk(**asdict(config.store_mount))
        try:
            return _map_file(config.store_file)
        finally:
            # Where it belongs it is mounted with all others.
            syscalls.umount(config.store_mount.target, syscalls.MNT_DETACH)
    name, size = map_extents(region, [config.store])
    return Store(dax.map_device(name, size, writable=True), f"/dev/{name}")


def _map_file(path: str) -> Store:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Store(mmap.mmap(fd, 0), path)
    finally:
        os.close(fd)
