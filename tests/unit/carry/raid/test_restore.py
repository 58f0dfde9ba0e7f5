"""What the kernel is told of arrays; the kernel itself is in tests/vm/test_host.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from said import Said

from rekernel.carry.block import superblocks, udev_records
from rekernel.carry.raid import restore as raid
from rekernel.carry.raid.entry import RaidArray
from rekernel.pid1 import console
from rekernel.records import asdict

DISKS = {"disk-a": "null", "disk-b": "zero"}
ARRAY = asdict(RaidArray("md7", "raid1", "1.2", DISKS, 0, ("E:LVM_MD_X=1",)))


@pytest.fixture
def md(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """/sys, where the array is as soon as it is asked for; returns what was written, in order."""
    monkeypatch.setattr(raid, "_LIMIT_S", 0.0)
    monkeypatch.setattr(raid, "_SYS_BLOCK", str(tmp_path / "block"))
    (tmp_path / "block/md7/md").mkdir(parents=True)
    (tmp_path / "block/md7/md/degraded").write_text("0\n")
    monkeypatch.setattr(superblocks, "component_on", {"/dev/null": "disk-a"}.get)
    (tmp_path / "null").touch()
    (tmp_path / "zero").touch()
    monkeypatch.setattr(superblocks, "_CLASS_BLOCK", str(tmp_path))
    written: list[tuple[str, str]] = []

    def write(path: str, text: str) -> None:
        written.append((path.rpartition("/")[2], text))

    monkeypatch.setattr(raid, "_write", write)
    return written


def number(path: str) -> str:
    device = os.stat(path).st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def test_in_the_order_of_the_kernel(
    md: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    disks = {"/dev/null": "disk-a", "/dev/zero": "disk-b"}
    monkeypatch.setattr(superblocks, "component_on", disks.get)
    raid.assemble([ARRAY])
    assert md == [
        ("new_array", "md7"),
        ("metadata_version", "1.2"),
        ("new_dev", number("/dev/null")),
        ("new_dev", number("/dev/zero")),
        ("array_state", "active"),
    ]
    assert said.lines == []


def test_a_disk_that_does_not_appear(md: list[tuple[str, str]], said: Said) -> None:
    raid.assemble([ARRAY])
    assert [name for name, _ in md] == ["new_array", "metadata_version", "new_dev", "array_state"]
    assert console.missing == ["md7 lacks zero: no block device has disk-b"]
    assert len(said.lines) == 1


def test_a_disk_that_the_kernel_puts_out(
    md: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = {"/dev/null": "disk-a", "/dev/zero": "disk-b"}
    monkeypatch.setattr(superblocks, "component_on", disks.get)
    (tmp_path / "block/md7/md/degraded").write_text("1\n")
    raid.assemble([{**ARRAY, "degraded": 1}])
    assert console.missing == []
    raid.assemble([ARRAY])
    assert console.missing == ["md7 lacks more disks than before: see /proc/mdstat"]


def test_one_that_the_kernel_refuses(
    md: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    written: list[str] = []

    def refuse(path: str, text: str) -> None:
        written.append(text)
        if text in (number("/dev/null"), "active"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(raid, "_write", refuse)
    raid.assemble([ARRAY, ARRAY])
    assert console.missing[:3] == [
        "md7 lacks zero: no block device has disk-b",
        "md7 does not take /dev/null: Invalid argument",
        "md7 is not assembled: [Errno 22] Invalid argument",
    ]
    assert len(console.missing) == 6
    # Its disks are free for whoever assembles it later.
    assert written[-2:] == ["active", "clear"]


def test_udev_is_told(tmp_path: Path) -> None:
    udev_records.record(
        [("/dev/null", ("E:A=1",)), ("/nowhere", ("E:B=1",))], str(tmp_path / "data")
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["b1:3"]
    assert (tmp_path / "data" / "b1:3").read_text() == "E:A=1\nV:1\n"
    assert list(raid.known([ARRAY])) == [("/dev/md7", ("E:LVM_MD_X=1",))]
