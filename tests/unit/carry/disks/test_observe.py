"""File systems on disks, as /proc/self/mountinfo tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel import syscalls
from rekernel.carry.block import superblocks
from rekernel.carry.block.observe import NoWayBackError
from rekernel.carry.disks import observe as disks
from rekernel.carry.disks.stack import Stack
from rekernel.carry.loops.observe import Loops
from rekernel.carry.mounts import binds
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.entry import Mount
from rekernel.errors import BlockedError

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
    """/sys: every disk is there, and each has a UUID made of its name."""
    (tmp_path / "class").mkdir()
    (tmp_path / "254:0").mkdir()
    monkeypatch.setattr(disks, "_DEV_BLOCK", tmp_path)
    monkeypatch.setattr(disks, "_CLASS_BLOCK", tmp_path / "class")
    monkeypatch.setattr(Stack, "add", lambda self, path: None)
    monkeypatch.setattr(superblocks, "uuid_on", uuid_on)
    return tmp_path


def uuid_on(path: str) -> str:
    return f"uuid-of-{path.removeprefix('/dev/')}"


def test_how_they_are_mounted() -> None:
    table = mounts.parse_mountinfo(TABLE)
    assert disks.unsupported(table, Loops()) == []
    assert disks.plan(table) == [
        Mount("/data", "xfs", "", 1024, data="inode64,noquota", uuid="uuid-of-vdb1"),
        Mount(
            "/home", "btrfs", "", syscalls.MS_RELATIME,
            data="ssd,subvolid=256,subvol=/@home", uuid="uuid-of-vdb2",
        ),
        Mount(
            "/srv", "btrfs", "", syscalls.MS_STRICTATIME, data="ssd,subvolid=257,subvol=/@srv",
            uuid="uuid-of-vdb2",
        ),
        Mount(
            "/boot/efi", "vfat", "", syscalls.MS_RELATIME, data="fmask=0077,codepage=437",
            uuid="uuid-of-vdb3",
        ),
    ]  # fmt: skip


STORE = """\
21 1 254:0 /@root / rw,relatime shared:1 - btrfs /dev/vda rw,subvol=/@root
30 21 254:17 / /data rw,noatime shared:2 - xfs /dev/vdb1 rw,noquota
31 21 254:17 /state /var/lib rw,noatime shared:2 - xfs /dev/vdb1 rw,noquota
32 21 254:0 /@root/srv /srv rw shared:1 - btrfs /dev/vda rw,subvol=/@root
33 21 0:41 / /run rw,nosuid shared:6 - tmpfs tmpfs rw,size=1k
34 21 7:0 / /i rw - ext4 /dev/loop0 rw
"""


def test_where_a_file_is_found_before_all_is_mounted() -> None:
    table = mounts.parse_mountinfo(STORE)
    at = "/run/rekernel/store"
    disk = Mount(at, "xfs", "", 1024, data="noquota", uuid="uuid-of-vdb1")
    assert disks.before_others("/var/cache/x", table, at) == (None, "/var/cache/x")
    assert disks.before_others("/srv/x/y", table, at) == (None, "/srv/x/y")
    assert disks.before_others("/data/x", table, at) == (disk, f"{at}/x")
    assert disks.before_others("/var/lib/x/y", table, at) == (disk, f"{at}/state/x/y")
    with pytest.raises(BlockedError, match=r"/run/x lies on tmpfs \(tmpfs\), where it is not"):
        disks.before_others("/run/x", table, at)
    with pytest.raises(BlockedError, match="loop0"):
        disks.before_others("/i/x", table, at)


def obstacles(*lines: str) -> list[str]:
    root = "21 1 254:0 / / rw - ext4 /dev/root rw"
    return disks.unsupported(mounts.parse_mountinfo("\n".join([root, *lines]) + "\n"), Loops())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0:50 / /net rw - nfs4 host:/x rw", "/net (nfs4 on host:/x)"),
        (
            "7:0 / /usr ro - squashfs /dev/loop0 ro",
            "/usr (squashfs on /dev/loop0, where the restore's programs lie)",
        ),
        (
            "7:0 / /x ro - squashfs /dev/loop0 ro",
            "/x (squashfs on /dev/loop0, which is attached to nothing)",
        ),
        ("8:1 / /x ro - squashfs /dev/sda1 ro", "/x (squashfs on /dev/sda1)"),
        ("0:50 / /x rw - btrfs none rw,subvol=/", "/x (btrfs on none, no disk)"),
        (
            "8:1 /a /x rw - ext4 /dev/sda1 rw",
            "/x (ext4 on /dev/sda1, a part of what is mounted nowhere as a whole)",
        ),
        (
            "0:50 /@x/a /x rw - btrfs /dev/sda1 rw,subvol=/@x",
            "/x (btrfs on /dev/sda1, a part of what is mounted nowhere as a whole)",
        ),
        (
            "0:50 /a /x rw - tmpfs tmpfs rw",
            "/x (tmpfs on tmpfs, a part of what is mounted nowhere as a whole)",
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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoWayBackError("no plain disk"), "no plain disk"),
        (FileNotFoundError("/dev/sda1"), "which is gone"),
    ],
)
def test_what_lies_on_something_else(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(stack: Stack, path: str) -> None:
        raise error

    monkeypatch.setattr(Stack, "add", add)
    assert obstacles(PLAIN) == [f"/data (xfs on /dev/sda1, {words})"]
    with pytest.raises(BlockedError, match="/dev/sda1 changed just now"):
        disks.stack(mounts.parse_mountinfo(PLAIN), "/dev/sda1")


def test_a_disk_that_is_not_told_from_others(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sda1", "sdb1"):
        (blocks / "class" / name).touch()
    assert obstacles(PLAIN) == []
    monkeypatch.setattr(superblocks, "uuid_on", lambda path: "the same")
    assert obstacles(PLAIN) == ["/data (xfs on /dev/sda1, whose UUID another disk has)"]
    monkeypatch.setattr(superblocks, "uuid_on", lambda path: None)
    assert obstacles(PLAIN) == ["/data (xfs on /dev/sda1, whose UUID cannot be read)"]


@on_each_kernel
def test_parts_of_the_root_are_bind_mounts(recorded: Recorded) -> None:
    # In the sandbox, parts of the root file system are mounted on themselves.
    table = recorded.mounts("redis-server/mountinfo")
    assert not [line for line in disks.unsupported(table, Loops()) if "/dev/vda" in line]
    assert Mount("/etc/redis", "", "/etc/redis", 4096 | 2 | 1 << 21) in binds.plan(table)


@on_each_kernel
def test_the_root_file_system(recorded: Recorded, blocks: Path) -> None:
    (blocks / "254:0").rmdir()
    (blocks / "254:0").symlink_to("vda")
    root, device = disks.root(recorded.mounts())
    assert device == "/dev/vda"
    assert (root.uuid, root.fstype, root.data) == ("uuid-of-vda", "ext4", "errors=remount-ro")
    assert root.flags == syscalls.MS_RELATIME


def test_a_subvolume_as_root() -> None:
    line = "29 1 0:25 /@rootfs / rw,noatime - btrfs /dev/sda2 rw,ssd,subvolid=256,subvol=/@rootfs"
    root, device = disks.root(mounts.parse_mountinfo(line))
    assert (root.uuid, device) == ("uuid-of-sda2", "/dev/sda2")
    assert root.data == "ssd,subvolid=256,subvol=/@rootfs"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0:25 / / rw - f2fs /dev/sda2 rw", "f2fs on /dev/sda2"),
        # A bind mount of a directory: there is no telling what / of it is called elsewhere.
        ("8:2 /inner / rw - ext4 /dev/sda2 rw", "ext4 on /dev/sda2, a part of it"),
        ("0:25 /@/x / rw - btrfs /dev/sda2 rw,subvol=/@", "btrfs on /dev/sda2, a part of it"),
    ],
)
def test_root_file_systems_that_are_not_supported(line: str, words: str) -> None:
    with pytest.raises(BlockedError) as error:
        disks.root(mounts.parse_mountinfo(f"29 1 {line}"))
    assert error.value.message == f"the root file system is {words}"
    assert "LVM" in error.value.hint
