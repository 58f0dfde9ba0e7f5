"""What does not fit is known before anything is frozen."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rekernel.errors import BlockedError
from rekernel.host import mounts
from rekernel.host.mounts import TmpfsPlan
from rekernel.kernel.installed import Kernel
from rekernel.memory.dax import Range
from rekernel.memory.region import Layout
from rekernel.plan import Plan
from rekernel.transition import room
from rekernel.transition.room import Needs

MIB = 1 << 20
STORE_END = (4 << 30) + 128 * MIB
WHERE = Layout(Range(4 << 30, 6 << 30), Range(4 << 30, STORE_END), Range(STORE_END, 6 << 30))


def plan(where: Layout | None, *, anonymous: int = 0, shared: int = 0) -> Plan:
    return Plan(
        kernel=Kernel("7.3.4", Path("/boot/vmlinuz-7.3.4"), Path("/x")),
        running="6.12.1",
        backend="region" if where else "image",
        where=where,
        units=(),
        resident_bytes=anonymous + shared,
        warnings=(),
        anonymous_bytes=anonymous,
        shared_bytes=shared,
    )


@pytest.fixture
def tmpfs(monkeypatch: pytest.MonkeyPatch) -> list[TmpfsPlan]:
    sizes = {"/run": 3 * MIB, "/dev/shm": 10 * MIB}
    monkeypatch.setattr(mounts, "tmpfs_bytes", lambda item: sizes[item.target])
    return [TmpfsPlan("/run", ()), TmpfsPlan("/dev/shm", ())]


def test_pages_stay_in_the_region(tmpfs: list[TmpfsPlan]) -> None:
    found = room.needs(plan(WHERE, anonymous=900 * MIB, shared=50 * MIB), tmpfs)
    # 13 of the 50 MiB may be mapped files of the tmpfs.
    assert found == Needs(images=37 * MIB, tmpfs=13 * MIB, largest_tmpfs=10 * MIB)
    assert found.store == 50 * MIB


def test_all_pages_go_into_images(tmpfs: list[TmpfsPlan]) -> None:
    assert room.needs(plan(None, anonymous=900 * MIB, shared=MIB), tmpfs).images == 900 * MIB
    assert room.needs(plan(None), []) == Needs(0, 0, 0)


def test_the_store(tmpfs: list[TmpfsPlan]) -> None:
    needed = room.needs(plan(WHERE, shared=80 * MIB), tmpfs)
    room.assert_in_store(needed, 80 * MIB)
    with pytest.raises(BlockedError, match="67 MiB of shared memory, 13 MiB in tmpfs") as caught:
        room.assert_in_store(needed, 79 * MIB)
    assert caught.value.exit_code == 3
    assert "setup" in caught.value.hint


def test_the_disk(tmp_path: Path) -> None:
    room.assert_on_disk(tmp_path, 0)
    with pytest.raises(BlockedError, match=f"{tmp_path} has .* MiB free, the upgrade needs"):
        room.assert_on_disk(tmp_path, 1 << 60)


def test_the_room_of_a_store_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    room.make_store_file(path, Needs(0, 5 * MIB, 5 * MIB))
    status = path.stat()
    assert status.st_size >= 5 * MIB + 128 * MIB
    assert status.st_blocks * 512 >= status.st_size

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BlockedError, match="No space left"):
        room.make_store_file(path, Needs(0, 0, 0))
