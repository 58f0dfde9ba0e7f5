"""File systems on disks, as /proc/self/mountinfo tells of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel import syscalls
from rekernel.agent import boot
from rekernel.handover.manifest import Mount
from rekernel.host import disks, mounts

TABLE = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
30 21 254:17 / /data rw,noatime shared:2 - xfs /dev/vdb1 rw,attr2,inode64,noquota
31 21 0:40 /@home /home rw,relatime shared:3 - btrfs /dev/vdb2 rw,ssd,subvolid=256,subvol=/@home
32 21 0:40 /@srv /srv rw shared:4 - btrfs /dev/vdb2 rw,ssd,subvolid=257,subvol=/@srv
33 21 254:19 / /boot/efi rw,relatime shared:5 - vfat /dev/vdb3 rw,fmask=0077,codepage=437
37 21 0:41 / /run rw,nosuid shared:6 - tmpfs tmpfs rw,size=1k
"""


@pytest.fixture(autouse=True)
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/sys: every disk is 8:1, and each has a UUID made of its name."""
    for name in ("devices/pci/sda1", "devices/virtual/dm-0", "class"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "8:1").symlink_to(tmp_path / "devices/pci/sda1")
    monkeypatch.setattr(disks, "_DEV_BLOCK", tmp_path / "dev")
    monkeypatch.setattr(disks, "_CLASS_BLOCK", tmp_path / "class")
    monkeypatch.setattr(disks, "_device_number", lambda path: os.makedev(8, 1))
    monkeypatch.setattr(boot, "uuid_on", lambda path: f"uuid-of-{path.removeprefix('/dev/')}")
    return tmp_path


def test_how_they_are_mounted() -> None:
    table = mounts.parse_mountinfo(TABLE)
    assert disks.unsupported(table) == []
    assert disks.plan(table) == [
        Mount("/data", "xfs", "", 1024, data="inode64,noquota", uuid="uuid-of-vdb1"),
        Mount(
            "/home", "btrfs", "", syscalls.MS_RELATIME,
            data="ssd,subvolid=256,subvol=/@home", uuid="uuid-of-vdb2",
        ),
        Mount("/srv", "btrfs", "", 0, data="ssd,subvolid=257,subvol=/@srv", uuid="uuid-of-vdb2"),
        Mount(
            "/boot/efi", "vfat", "", syscalls.MS_RELATIME, data="fmask=0077,codepage=437",
            uuid="uuid-of-vdb3",
        ),
    ]  # fmt: skip
    assert disks.devices(table) == ["/dev/vdb1", "/dev/vdb2", "/dev/vdb3"]


def obstacles(*lines: str) -> list[str]:
    root = "21 1 254:0 / / rw - ext4 /dev/root rw"
    return disks.unsupported(mounts.parse_mountinfo("\n".join([root, *lines]) + "\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0:50 / /net rw - nfs4 host:/x rw", "/net (nfs4 on host:/x)"),
        ("0:50 / /x rw - btrfs none rw,subvol=/", "/x (btrfs on none, no disk)"),
        ("8:1 /a /x rw - ext4 /dev/sda1 rw", "/x (ext4 on /dev/sda1, mounted twice or in part)"),
        ("254:0 / /x rw - ext4 /dev/root rw", "/x (ext4 on /dev/root, mounted twice or in part)"),
        (
            "0:50 /@x/a /x rw - btrfs /dev/sda1 rw,subvol=/@x",
            "/x (btrfs on /dev/sda1, mounted twice or in part)",
        ),
        (
            r"0:50 /@\040x /x rw - btrfs /dev/sda1 rw,subvol=/@\040x",
            "/x (btrfs on /dev/sda1, with a blank in its options)",
        ),
    ],
)
def test_what_cannot_be_mounted_again_is_named(line: str, words: str) -> None:
    assert obstacles(f"22 21 {line}") == [words]


PLAIN = "22 21 8:1 / /data rw - xfs /dev/sda1 rw"


def test_what_lies_on_something_else(blocks: Path) -> None:
    (blocks / "dev" / "8:1").unlink()
    (blocks / "dev" / "8:1").symlink_to(blocks / "devices/virtual/dm-0")
    assert obstacles(PLAIN) == ["/data (xfs on /dev/sda1, no plain disk)"]


def test_a_disk_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(disks, "_device_number", gone)
    assert obstacles(PLAIN) == ["/data (xfs on /dev/sda1, which is gone)"]


def test_a_disk_that_is_not_told_from_others(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sda1", "sdb1"):
        (blocks / "class" / name).touch()
    assert obstacles(PLAIN) == []
    monkeypatch.setattr(boot, "uuid_on", lambda path: "the same")
    assert obstacles(PLAIN) == ["/data (xfs on /dev/sda1, whose UUID another disk has)"]
    monkeypatch.setattr(boot, "uuid_on", lambda path: None)
    assert obstacles(PLAIN) == ["/data (xfs on /dev/sda1, whose UUID cannot be read)"]


@on_each_kernel
def test_parts_of_the_root_are_named(recorded: Recorded) -> None:
    # In the sandbox, parts of the root file system are mounted on themselves.
    found = disks.unsupported(recorded.mounts("redis-server/mountinfo"))
    assert "/etc/redis (ext4 on /dev/vda, mounted twice or in part)" in found
