"""What the kernel is told of arrays; the kernel itself is in tests/vm/test_host.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rekernel.agent import raid, superblocks, udevdata
from rekernel.handover.config import RaidArray
from rekernel.records import asdict

from .conftest import Said

ARRAY = asdict(RaidArray("md7", "raid1", "1.2", ("disk-a", "disk-b"), ("E:LVM_MD_X=1",)))


@pytest.fixture
def md(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """/sys, where the array is as soon as it is asked for; returns what was written, in order."""
    monkeypatch.setattr(raid, "_LIMIT_S", 0.0)
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
    assert len(said.lines) == 1
    assert said.lines[0].endswith("md7 lacks a disk: no block device has disk-b")


def test_one_that_the_kernel_refuses(
    md: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    def refuse(path: str, text: str) -> None:
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(raid, "_write", refuse)
    raid.assemble([ARRAY, ARRAY])
    refused = [line for line in said.lines if "md7 is not assembled: " in line]
    assert len(refused) == 2


def test_udev_is_told(tmp_path: Path) -> None:
    udevdata.record([("/dev/null", ("E:A=1",)), ("/nowhere", ("E:B=1",))], str(tmp_path / "data"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["b1:3"]
    assert (tmp_path / "data" / "b1:3").read_text() == "E:A=1\nV:1\n"
    assert list(raid.known([ARRAY])) == [("/dev/md7", ("E:LVM_MD_X=1",))]
