"""Loop devices, as losetup(8) tells of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rekernel.carry.loops import observe as loops
from rekernel.carry.loops.entry import LoopDevice
from rekernel.carry.loops.observe import Loops
from rekernel.carry.mounts import observe as mounts

TABLE = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 254:17 / {top} rw shared:2 - xfs /dev/vdb1 rw
31 21 259:0 / /i rw shared:3 - ext4 /dev/loop42p1 rw
32 21 7:1 / /tree ro shared:4 - squashfs /dev/loop1 ro
33 30 0:40 / {top}/ram rw shared:5 - tmpfs tmpfs rw
34 21 254:18 / {top}/twice rw shared:6 - ext4 /dev/vdb2 rw
35 34 254:19 / {top}/twice rw shared:7 - ext4 /dev/vdb3 rw
"""


@pytest.fixture
def table(tmp_path: Path) -> list[mounts.MountInfo]:
    """A disk on the test's directory, with a tmpfs and two more disks inside."""
    for name in ("disk", "tree", "ram/disk", "twice/disk"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return mounts.parse_mountinfo(TABLE.format(top=tmp_path))


def entry(name: str, path: Path | str, **others: Any) -> dict[str, Any]:
    """As losetup writes it (util-linux 2.41)."""
    status = os.stat(path) if os.path.exists(path) else os.stat("/")
    number = f"{os.major(status.st_dev):>3}:{os.minor(status.st_dev)}"
    return {
        "name": name, "back-file": str(path), "back-ino": status.st_ino, "back-maj:min": number,
        "offset": 0, "sizelimit": 0, "autoclear": False, "partscan": False, "ro": False,
        "dio": False, "log-sec": 512,
    } | {key.replace("_", "-"): value for key, value in others.items()}  # fmt: skip


def observe(
    monkeypatch: pytest.MonkeyPatch, table: list[mounts.MountInfo], *entries: dict[str, Any]
) -> Loops:
    text = json.dumps({"loopdevices": entries}) if entries else ""
    monkeypatch.setattr(loops, "run", lambda argv: text)
    return loops.observe(table)


def test_what_is_attached(
    table: list[mounts.MountInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = observe(
        monkeypatch,
        table,
        entry("/dev/loop42", tmp_path / "disk", partscan=True, dio=True),
        entry("/dev/loop1", tmp_path / "tree", autoclear=True, ro=True),
        entry("/dev/loop7", "/etc/passwd", offset=1 << 20, sizelimit=4096, log_sec=4096),
    )
    assert found.obstacles == {}
    assert found.usable == {
        "/dev/loop42": LoopDevice(42, f"{tmp_path}/disk", str(tmp_path), 0, 0, 512, 8 | 16),
        "/dev/loop1": LoopDevice(1, f"{tmp_path}/tree", str(tmp_path), 0, 0, 512, 4 | 1),
        "/dev/loop7": LoopDevice(7, "/etc/passwd", "/", 1 << 20, 4096, 4096, 0),
    }
    assert found.obstacle("/dev/loop42p1") is None
    assert found.obstacle("/dev/loop8") == "which is attached to nothing"
    assert observe(monkeypatch, table) == Loops()


def test_what_cannot_be(
    table: list[mounts.MountInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = observe(
        monkeypatch,
        table,
        entry("/dev/loop1", "/no-such (deleted)"),
        entry("/dev/loop2", tmp_path / "disk", back_ino=1),
        entry("/dev/loop3", tmp_path / "ram/disk"),
        entry("/dev/loop4", tmp_path / "twice/disk"),
        entry("/dev/loop5", tmp_path / "disk", autoclear=True),
    )
    assert found.usable == {}
    assert found.obstacles == {
        "/dev/loop1": "of /no-such (deleted), which is gone",
        "/dev/loop2": f"of a file that was {tmp_path}/disk once",
        "/dev/loop3": f"of {tmp_path}/ram/disk, which lies on no disk",
        "/dev/loop4": f"of {tmp_path}/twice/disk, which lies on or below another mount",
        "/dev/loop5": "which is detached when it is closed",
    }
    # The first one is mounted: that is another obstacle.
    assert len(found.given_up(mount.source for mount in table)) == 4
    assert found.obstacle("/dev/loop1") == "of /no-such (deleted), which is gone"


def test_names() -> None:
    assert loops.node("/dev/loop12p3") == "/dev/loop12"
    assert [loops.node(name) for name in ("/dev/loop-control", "loop1", "/dev/sda1")] == [""] * 3
