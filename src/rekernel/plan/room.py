"""Where everything goes that the blackout writes down, and whether there is room for it.

`check`, `plan` and the upgrade itself ask the same function, :func:`reckon`. What does not fit into
the handover store, or into memory on its way there, goes to the disk. The figures are estimates:
processes run on, and what runs full all the same is undone.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from rekernel.attempt import state as attempt
from rekernel.carry.logins import observe as logins
from rekernel.carry.memory.region import Layout
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.observe import MountInfo, TmpfsPlan
from rekernel.census.usage import Usage
from rekernel.errors import BlockedError
from rekernel.records import record, replace
from rekernel.systemd.units import Unit

_MIB = 1 << 20
# For a store file: the manifest, criu's images without pages, and what tmpfs grow until the freeze.
_ALL_ELSE = 256 * _MIB
# In the region's store: the manifest, what waits in connections, policies; and of the page map an
# eighth of a run for each page, as pages mostly follow each other.
_MANIFEST = 4 * _MIB
_MAP_BYTES_PER_PAGE = 3
# What shall be left of the memory when images are in it.
_SPARE_MEMORY = 64 * _MIB
# One of so many parts of the store.
_SPARE_PART = 16
# Larger ones are where disk or store makes a difference; all others are many small files.
_LARGE = 16 * _MIB
_LEAST_STRAYS = 16 * _MIB
# Of what goes to the disk so many are named, the largest.
_NAMED = 5
# What a store of another size is rounded up to.
_ROUND = 64 * _MIB


class Place(StrEnum):
    """Where something lies from the dump to the restore."""

    STORE = "store"
    DISK = "disk"


@record
class Item:
    """The images of a unit, or the contents of the tmpfs with this mount point; in bytes."""

    name: str
    size: int
    is_tmpfs: bool
    place: Place


@record
class Disk:
    """Bytes that are free in the file system of a directory; ``device`` is its number."""

    directory: str
    device: int
    free: int


@record
class Free:
    """What there is. ``store``: bytes of the handover store in the region, 0 without."""

    store: int
    memory: int
    images: Disk
    containers: Disk | None = None


@record
class Lack:
    """Why an upgrade would not fit, and what to do about it."""

    reason: str
    remedy: str


@record
class Room:
    """What is written where. ``capacity``: bytes of the store that are there for the items."""

    items: tuple[Item, ...]
    free: Free
    capacity: int
    strays: int
    lack: Lack | None = None

    def bytes_in(self, place: Place) -> int:
        """How much goes there."""
        return sum(item.size for item in self.items if item.place is place)

    def is_on_disk(self, name: str) -> bool:
        """Whether this unit's images, or the contents of this tmpfs, go to the disk."""
        return any(item.name == name and item.place is Place.DISK for item in self.items)

    @property
    def scratch(self) -> int:
        """Bytes that lie in /run before they are in the store: images, and one tmpfs at a time."""
        images = [
            item.size for item in self.items if item.place is Place.STORE and not item.is_tmpfs
        ]
        # To a store that is a file, too.
        archives = [
            item.size
            for item in self.items
            if item.is_tmpfs and (item.place is Place.STORE or not self.free.store)
        ]
        return sum(images) + self.strays + max(archives, default=0)

    @property
    def by_way_of_disk(self) -> Lack | None:
        """What goes to the disk for want of room in the store, and how to change that."""
        late = [item for item in self.items if item.place is Place.DISK]
        if not self.free.store or not late:
            return None
        largest = sorted(late, key=lambda item: -item.size)
        named, rest = largest[:_NAMED], largest[_NAMED:]
        words = [f"{item.name} ({item.size // _MIB} MiB)" for item in named]
        if rest:
            words.append(f"{len(rest)} more ({sum(item.size for item in rest) // _MIB} MiB)")
        names = ", ".join(words)
        setting = _larger_store(self)
        remedy = f"to keep it in memory: {setting}" if setting else "there is no memory for it"
        return Lack(f"by way of the disk: {names}", remedy)

    def assert_enough(self) -> None:
        """Raises BlockedError."""
        if self.lack is not None:
            raise BlockedError(self.lack.reason, self.lack.remedy)


def stray_capacity(store_bytes: int) -> int:
    """How many bytes of strays a store of this size can take; the rest is for all else."""
    return store_bytes // 2


def stray_offset(store_bytes: int, expected: int) -> int:
    """Where in a store the copied strays begin; images and all else have what is before.

    ``expected`` bytes were counted while the machine ran; twice that is kept, and never more than
    :func:`stray_capacity`.
    """
    wanted = min(max(2 * expected, _LEAST_STRAYS), stray_capacity(store_bytes))
    return (store_bytes - wanted) // mmap.PAGESIZE * mmap.PAGESIZE


def observe(where: Layout | None, containers: Path | None = None) -> Free:
    """What there is now. ``containers``: where the images of podman's go. Raises OSError."""
    return Free(
        store=where.store.size if where else 0,
        memory=available_memory(),
        images=_disk(attempt.IMAGES),
        containers=_disk(containers) if containers else None,
    )


def available_memory(proc: Path = Path("/proc")) -> int:
    """Bytes that can be taken without swapping (proc(5), meminfo)."""
    fields = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _disk(directory: Path) -> Disk:
    there = directory
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    return Disk(str(directory), there.stat().st_dev, status.f_bfree * status.f_frsize)


def contents(table: Sequence[MountInfo], units: Sequence[Unit]) -> tuple[TmpfsPlan, ...]:
    """The tmpfs that travel if these units are carried. Raises OSError."""
    return tuple(mounts.plan(table, logins.own_mounts(units))[1])


def tmpfs_sizes(plans: Sequence[TmpfsPlan]) -> dict[str, int]:
    """Bytes that an archive of each takes, by its mount point."""
    return {item.target: mounts.tmpfs_bytes(item) for item in plans}


def reckon(
    usages: Sequence[Usage], tmpfs: Mapping[str, int], strays: int, free: Free, *, region: bool
) -> Room:
    """Decide what goes where. ``strays``: bytes that are left outside of the region."""
    own = [item for item in usages if not item.container]
    containers = sum(item.all_images for item in usages if item.container)
    if not region:
        items = [Item(item.unit, item.all_images, False, Place.DISK) for item in own]
        items += [Item(target, size, True, Place.DISK) for target, size in tmpfs.items()]
        room = Room(tuple(items), free, 0, 0)
        needed = sum(item.size for item in items if not item.is_tmpfs) + store_file_bytes(tmpfs)
        return replace(room, lack=_disk_lack(needed, containers, room))
    private = sum(item.anonymous for item in own)
    capacity = stray_offset(free.store, strays) - _MANIFEST
    capacity = max(0, capacity - private // mmap.PAGESIZE * _MAP_BYTES_PER_PAGE)
    # The figures may be short by some percent (PostgreSQL: three).
    capacity -= capacity // _SPARE_PART
    items = [Item(item.unit, item.images, False, Place.STORE) for item in own]
    items += [Item(target, size, True, Place.STORE) for target, size in tmpfs.items()]
    placed = _placed(items, capacity, free.memory - _SPARE_MEMORY - strays)
    room = Room(tuple(placed), free, capacity, strays)
    if strays > stray_capacity(free.store):
        return replace(room, lack=_too_many_strays(strays, free))
    return replace(room, lack=_disk_lack(room.bytes_in(Place.DISK), containers, room))


def store_file_bytes(tmpfs: Mapping[str, int]) -> int:
    """How large the store is that is a file, without a region."""
    return (2 * sum(tmpfs.values()) + _ALL_ELSE) // _MIB * _MIB


def _placed(items: Sequence[Item], capacity: int, memory: int) -> list[Item]:
    """The small ones in the store, then the largest that fit: the fewest bytes on the disk."""
    on_disk = set()
    # An archive is there twice, in /run and in the store, but one after the other.
    for item in sorted(items, key=lambda item: (item.size >= _LARGE, -item.size)):
        if item.size > capacity or item.size > memory:
            on_disk.add(item.name)
            continue
        capacity -= item.size
        memory -= 0 if item.is_tmpfs else item.size
    return [replace(item, place=Place.DISK) if item.name in on_disk else item for item in items]


def _larger_store(room: Room) -> str:
    """What to set so that all fits into the store; "" if memory would not do for that."""
    late = room.bytes_in(Place.DISK)
    # The store takes from what is free, and so do the images on their way there.
    if not room.free.store or 2 * late > room.free.memory - _SPARE_MEMORY:
        return ""
    wanted = room.free.store - room.capacity + room.bytes_in(Place.STORE) + late
    return _store_of(wanted + wanted // (_SPARE_PART - 1))


def _store_of(size: int) -> str:
    return f"`rekernel setup --store {-(-size // _ROUND) * _ROUND // _MIB}M` and a reboot"


def _too_many_strays(strays: int, free: Free) -> Lack:
    remedy = "restart the largest of them, for memory in the region, or use --memory=image"
    # What stray_capacity() is the other way round; the store takes from what is free.
    if 2 * strays <= free.memory - _SPARE_MEMORY:
        remedy += f", or {_store_of(2 * strays)}"
    return Lack(
        f"{strays // _MIB} MiB of the services' memory lie outside of the carry region, "
        f"{stray_capacity(free.store) // _MIB} MiB of that can be copied",
        remedy,
    )


def _disk_lack(needed: int, containers: int, room: Room) -> Lack | None:
    free = room.free
    shared = free.containers is not None and free.containers.device == free.images.device
    if shared:
        needed += containers
    elif free.containers is not None and containers > free.containers.free:
        return _full(free.containers, containers, " for containers")
    if needed <= free.images.free:
        return None
    names = [item.name for item in room.items if item.place is Place.DISK and item.size >= _LARGE]
    if not free.store:
        return _full(free.images, needed)
    more = f": the handover store has room for {room.capacity // _MIB} MiB"
    return _full(free.images, needed, f" for {', '.join(names)}{more}", _larger_store(room))


def _full(disk: Disk, needed: int, words: str = "", setting: str = "") -> Lack:
    remedy = "make room on that file system"
    return Lack(
        f"{disk.directory} has {disk.free // _MIB} MiB free, "
        f"the upgrade needs {needed // _MIB} MiB there{words}",
        f"{remedy}, or {setting}" if setting else remedy,
    )


def make_store_file(path: Path, size: int) -> None:
    """The store of an upgrade without a region, with its room taken. Raises BlockedError."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise BlockedError(
            f"no {size // _MIB} MiB could be taken for {path}: {error.strerror}",
            "make room on that file system",
        ) from error
