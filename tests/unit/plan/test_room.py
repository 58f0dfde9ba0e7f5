"""Where everything goes is decided, and what does not fit is known, before anything is frozen."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from rekernel.attempt import state as attempt
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.region import Layout
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.observe import TmpfsPlan
from rekernel.census.usage import Usage
from rekernel.errors import BlockedError
from rekernel.plan import room
from rekernel.plan.room import Disk, Free, Place
from rekernel.records import replace

MIB = 1 << 20
GIB = 1 << 30
# Of each process.
BASE = 48 << 10
STORE_END = 4 * GIB + 128 * MIB
WHERE = Layout(Range(4 * GIB, 6 * GIB), Range(4 * GIB, STORE_END), Range(STORE_END, 6 * GIB))
DISK = Disk("/var/lib/rekernel/images", 7, 10 * GIB)
FREE = Free(store=128 * MIB, memory=2 * GIB, images=DISK)


def usage(
    unit: str = "db.service", *, shared: int = 0, written: int = 0, anonymous: int = 0
) -> Usage:
    return Usage(unit, False, 1, anonymous + shared, anonymous, shared, written)


def container(resident: int) -> Usage:
    return Usage("c.scope", True, 1, resident, resident, 0, 0)


def reckon(*usages: Usage, free: Free = FREE, strays: int = 0, **tmpfs: int) -> room.Room:
    sizes = {f"/{name}": size for name, size in tmpfs.items()}
    return room.reckon(usages, sizes, strays, free, region=free.store > 0)


def places(found: room.Room) -> dict[str, str]:
    return {item.name: str(item.place) for item in found.items}


def test_what_fits_goes_into_the_store() -> None:
    found = reckon(usage(shared=40 * MIB, written=4 * MIB), run=10 * MIB, tmp=3 * MIB)
    assert places(found) == {"db.service": "store", "/run": "store", "/tmp": "store"}
    assert found.lack is None
    assert found.by_way_of_disk is None
    found.assert_enough()
    # Its image is a little more than what is in it.
    assert found.bytes_in(Place.STORE) == (44 + 13) * MIB + BASE
    # The archives of the tmpfs come one after the other.
    assert found.scratch == 54 * MIB + BASE


def test_more_shared_memory_than_the_store_holds() -> None:
    """A PostgreSQL of ordinary size: it was refused, as /run and the store are too small."""
    found = reckon(usage(shared=600 * MIB), usage("web.service", shared=MIB), run=2 * MIB)
    assert places(found) == {"db.service": "disk", "web.service": "store", "/run": "store"}
    assert found.is_on_disk("db.service")
    assert not found.is_on_disk("web.service")
    assert found.lack is None
    slow = found.by_way_of_disk
    assert slow is not None
    assert slow.reason == "by way of the disk: db.service (600 MiB)"
    assert "`rekernel setup --store 704M` and a reboot" in slow.remedy


def test_only_the_largest_are_named() -> None:
    slow = reckon(*(usage(f"{n}.service", shared=n * MIB) for n in range(200, 209))).by_way_of_disk
    assert slow is not None
    assert slow.reason == (
        "by way of the disk: 208.service (208 MiB), 207.service (207 MiB), 206.service (206 MiB), "
        "205.service (205 MiB), 204.service (204 MiB), 4 more (806 MiB)"
    )


@pytest.mark.parametrize("shared", [110, 160, 600, 790])
def test_the_store_that_is_told_is_large_enough(shared: int) -> None:
    used = (usage(shared=shared * MIB, anonymous=GIB), usage("web.service", shared=60 * MIB))
    slow = reckon(*used, strays=9 * MIB).by_way_of_disk
    assert slow is not None
    told = int(slow.remedy.partition("--store ")[2].partition("M")[0]) * MIB
    large = replace(FREE, store=told)
    assert reckon(*used, free=large, strays=9 * MIB).by_way_of_disk is None


def test_the_largest_that_fit_stay_in_memory() -> None:
    big, middle, small = (usage(f"{n}.service", shared=n * MIB) for n in (90, 60, 20))
    assert places(reckon(small, middle, big)) == {
        "20.service": "disk",
        "60.service": "disk",
        "90.service": "store",
    }


def test_a_tmpfs_goes_to_the_disk_as_well() -> None:
    found = reckon(usage(), run=MIB, shm=600 * MIB)
    assert places(found) == {"db.service": "store", "/run": "store", "/shm": "disk"}


def test_little_memory() -> None:
    short = replace(FREE, store=GIB, memory=300 * MIB)
    found = reckon(usage(shared=400 * MIB), free=short)
    assert places(found) == {"db.service": "disk"}
    assert found.by_way_of_disk is not None
    assert found.by_way_of_disk.remedy == "there is no memory for it"


def test_a_full_disk_blocks() -> None:
    full = replace(FREE, images=replace(DISK, free=100 * MIB))
    found = reckon(usage(shared=600 * MIB), free=full)
    with pytest.raises(BlockedError, match="/var/lib/rekernel/images has 100 MiB free") as caught:
        found.assert_enough()
    assert "the upgrade needs 600 MiB there for db.service" in caught.value.message
    assert "the handover store has room for 10" in caught.value.message
    assert caught.value.exit_code == 3
    assert (
        "make room on that file system, or `rekernel setup --store 704M` and" in caught.value.hint
    )
    # What needs no disk does not care.
    assert reckon(usage(shared=MIB), free=full).lack is None


def test_strays_take_of_the_store() -> None:
    assert reckon(usage(shared=90 * MIB)).by_way_of_disk is None
    assert reckon(usage(shared=90 * MIB), strays=20 * MIB).is_on_disk("db.service")
    with pytest.raises(BlockedError, match="65 MiB of the services' memory lie outside") as caught:
        reckon(usage(), strays=65 * MIB).assert_enough()
    assert "64 MiB of that can be copied" in caught.value.message
    assert caught.value.hint.endswith(
        "or use --memory=image, or `rekernel setup --store 192M` and a reboot"
    )
    poor = replace(FREE, memory=150 * MIB)
    with pytest.raises(BlockedError) as caught:
        reckon(usage(), free=poor, strays=65 * MIB).assert_enough()
    assert caught.value.hint.endswith("or use --memory=image")


def test_room_for_strays() -> None:
    for store, expected in ((128 << 20, 0), (512 << 20, 40 << 20), (128 << 20, 120 << 20)):
        start = room.stray_offset(store, expected)
        assert start % mmap.PAGESIZE == 0
        kept = store - start
        assert min(expected, room.stray_capacity(store)) <= kept <= room.stray_capacity(store)
    assert 128 * MIB - room.stray_offset(128 * MIB, 0) == 16 * MIB
    assert 512 * MIB - room.stray_offset(512 * MIB, 40 * MIB) == 80 * MIB


def test_without_a_region_all_goes_to_the_disk() -> None:
    image = Free(store=0, memory=GIB, images=replace(DISK, free=GIB))
    found = reckon(usage(anonymous=700 * MIB, shared=MIB), free=image, run=5 * MIB)
    assert places(found) == {"db.service": "disk", "/run": "disk"}
    assert found.by_way_of_disk is None
    assert found.lack is None
    # On its way to the store, which is a file there.
    assert found.scratch == 5 * MIB
    tight = replace(image, images=replace(DISK, free=800 * MIB))
    lack = reckon(usage(anonymous=700 * MIB), free=tight).lack
    assert lack is not None
    assert "has 800 MiB free, the upgrade needs 956 MiB there" in lack.reason
    assert lack.remedy == "make room on that file system"


def test_containers_are_on_the_disk() -> None:
    elsewhere = replace(FREE, containers=Disk("/srv/containers", 8, 100 * MIB))
    assert reckon(container(99 * MIB), free=elsewhere).lack is None
    lack = reckon(container(200 * MIB), free=elsewhere).lack
    assert lack is not None
    assert "/srv/containers has 100 MiB free" in lack.reason
    assert "200 MiB there for containers" in lack.reason
    # On one file system both must fit.
    both = replace(FREE, images=replace(DISK, free=700 * MIB))
    both = replace(both, containers=replace(both.images, directory="/srv"))
    assert reckon(container(200 * MIB), free=both).lack is None
    assert reckon(container(200 * MIB), usage(shared=600 * MIB), free=both).lack is not None


def test_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "IMAGES", tmp_path / "not" / "there")
    found = room.observe(WHERE, tmp_path)
    assert found.store == 128 * MIB
    assert found.memory > 0
    assert found.images.device == tmp_path.stat().st_dev
    assert found.containers is not None
    assert found.containers.free == found.images.free > 0
    assert room.observe(None).store == 0


def test_sizes_of_tmpfs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"/run": 3 * MIB, "/dev/shm": 10 * MIB}
    monkeypatch.setattr(mounts, "tmpfs_bytes", lambda item: sizes[item.target])
    assert room.tmpfs_sizes([TmpfsPlan("/run", ()), TmpfsPlan("/dev/shm", ())]) == sizes


def test_the_room_of_a_store_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    room.make_store_file(path, room.store_file_bytes({"/run": 5 * MIB}))
    status = path.stat()
    assert status.st_size >= 5 * MIB + 128 * MIB
    assert status.st_blocks * 512 >= status.st_size

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BlockedError, match="No space left"):
        room.make_store_file(path, 256 * MIB)
