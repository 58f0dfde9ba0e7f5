"""Where images and contents of tmpfs are until the jump, and that nothing of it stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rekernel.attempt import state as attempt
from rekernel.attempt.undo import UndoList
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.region import Layout, layout
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.entry import Mount
from rekernel.census.usage import Usage
from rekernel.errors import BlockedError
from rekernel.plan import room
from rekernel.plan.room import Disk, Free, Room
from rekernel.records import replace
from rekernel.transition import staging
from rekernel.transition.places import Places

MIB = 1 << 20
WHERE = layout(Range(4 << 30, 6 << 30), 128 * MIB)
DISK = Disk("/disk", 7, 1 << 40)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UndoList:
    monkeypatch.setattr(staging, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(attempt, "IMAGES", tmp_path / "disk")
    return UndoList(tmp_path / "undo.json")


def reckoned(shared: int, free: int = 1 << 40, *, region: bool = True, **tmpfs: int) -> Room:
    used = [Usage("db@1.service", False, 1, shared, 0, shared, 0)]
    there = Free(128 * MIB if region else 0, 1 << 40, replace(DISK, free=free))
    sizes = {f"/{name}": size for name, size in tmpfs.items()}
    return room.reckon(used, sizes, 0, there, region=region)


def prepared(steps: UndoList, where: Layout | None = WHERE) -> Places:
    found = Places("id", where, steps)
    found.prepare()
    return found


def test_what_fits_is_in_memory(steps: UndoList, tmp_path: Path) -> None:
    found = prepared(steps)
    found.settle(reckoned(MIB, run=MIB))
    assert found.store_file is None
    assert found.images("db@1.service", "db") == tmp_path / "scratch/images/db"
    assert found.for_agent("db@1.service", "db") == "images/db"
    assert found.archive("/run", 0) is None
    assert found.disk_bytes() == 0
    assert not (tmp_path / "disk").exists()


def test_what_does_not_fit_is_on_the_disk(steps: UndoList, tmp_path: Path) -> None:
    found = prepared(steps)
    found.settle(reckoned(600 * MIB, run=MIB, tmp=500 * MIB))
    directory = tmp_path / "disk/id"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert found.images("db@1.service", "db") == directory / "db"
    assert found.images("web.service", "web") == tmp_path / "scratch/images/web"
    assert found.for_agent("db@1.service", "db") == str(directory / "db")
    assert found.archive("/run", 0) is None
    assert found.archive("/tmp", 1) == directory / "tmpfs-1.tar"
    (directory / "db").mkdir()
    (directory / "db" / "pages-1.img").write_bytes(b"x" * 9)
    assert found.disk_bytes() == 9
    todo = [Mount(name, "tmpfs", "tmpfs", 0, "", f"tmpfs{name}") for name in ("/run", "/tmp")]
    contents = [item.contents for item in found.with_archives(todo, ["/run", "/tmp"])]
    assert contents == ["tmpfs/run", str(directory / "tmpfs-1.tar")]
    assert steps.run() == ()
    assert not directory.exists()
    assert not (tmp_path / "scratch/images").exists()


def test_images_have_a_tmpfs_of_their_own_on_the_next_kernel(steps: UndoList) -> None:
    (made,) = prepared(steps).to_unpack()
    assert made.target == "/run/rekernel/restore/images"
    assert made.transient
    assert "size=100%" in made.data


def test_no_room_anywhere(steps: UndoList) -> None:
    with pytest.raises(BlockedError, match="has 100 MiB free, the upgrade needs 600 MiB there"):
        prepared(steps).settle(reckoned(600 * MIB, 100 * MIB))


def test_without_a_region(steps: UndoList, tmp_path: Path) -> None:
    found = prepared(steps, None)
    found.settle(reckoned(MIB, region=False, run=MIB))
    assert found.store_file == tmp_path / "disk/id/store"
    assert found.store_file.stat().st_size == 258 * MIB
    assert found.images("db@1.service", "db") == tmp_path / "disk/id/db"
    # It has a store, if a slow one.
    assert found.archive("/run", 0) is None
    assert found.to_unpack() == []
    # The store does not count as what was copied.
    assert found.disk_bytes() == 0
    assert steps.run() == ()
    assert not (tmp_path / "disk/id").exists()


def test_the_limit_of_run_is_raised_and_taken_back(
    steps: UndoList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a limit only: the upgrade was refused though there was memory enough."""
    found = prepared(steps)
    sizes: list[int] = []

    def resize(size: int) -> None:
        # By then it must be empty again.
        sizes.append(size)
        if len(sizes) == 2:
            assert not (tmp_path / "scratch/images").exists()

    monkeypatch.setattr(mounts, "resize_run", resize)
    status = os.statvfs_result((4096, 4096, 100 * 256, 30 * 256, 30 * 256, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    found.settle(reckoned(60 * MIB))
    # 100 MiB with 70 in use; images of 60 and some more.
    assert sizes == [162 * MIB + (48 << 10)]
    assert steps.run() == ()
    assert sizes[1] == 100 * MIB


def test_run_that_is_large_enough_is_left_alone(
    steps: UndoList, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "resize_run", lambda size: pytest.fail("resized"))
    prepared(steps).settle(reckoned(MIB))
