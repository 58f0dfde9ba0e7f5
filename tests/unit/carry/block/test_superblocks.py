"""What lies on a disk, read from its first blocks."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from rekernel.carry.block import superblocks

_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def blkid(image: Path) -> str:
    """What it takes for the UUID of a file system in a file."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "UUID", str(image)],
        env={"PATH": _PATH},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "vfat -F 32", "vfat -F 16"])
def test_the_uuid_is_what_blkid_says(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"")
    os.truncate(image, 400 << 20)
    assert superblocks.uuid_on(str(image)) is None
    name, *options = kind.split()
    force = {"ext4": ["-q", "-F"], "xfs": ["-q"], "btrfs": ["-q"]}.get(name, [])
    subprocess.run(
        [f"mkfs.{name}", *force, *options, str(image)],
        env={"PATH": _PATH},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    uuid = blkid(image)
    assert len(uuid) == (9 if name == "vfat" else 36)
    assert superblocks.uuid_on(str(image)) == uuid


def test_what_is_cut_off(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(0x438) + b"\x53\xef" + bytes(0x30))
    assert superblocks.uuid_on(str(image)) is None


def test_what_is_no_disk(tmp_path: Path) -> None:
    assert superblocks.uuid_on(str(tmp_path)) is None
    assert superblocks.uuid_on(str(tmp_path / "gone")) is None


@pytest.mark.parametrize("sector", [0, 1, 3])
def test_a_volume_of_lvm(tmp_path: Path, sector: int) -> None:
    uuid = "8JfJHskQ9tm66uMdC7zOLzdEkXjOYDsq"
    image = tmp_path / "disk"
    label = b"LABELONE" + sector.to_bytes(8, "little") + bytes(4) + (32).to_bytes(4, "little")
    image.write_bytes(bytes(512 * sector) + label + b"LVM2 001" + uuid.encode() + bytes(4096))
    assert superblocks.volume_on(str(image)) == uuid
    assert superblocks.uuid_on(str(image)) is None
    os.truncate(image, 512 * sector + 40)
    assert superblocks.volume_on(str(image)) is None


def test_no_such_file_system() -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    with pytest.raises(superblocks.NotFoundError, match=f"no block device has {uuid}"):
        superblocks.find(uuid, timeout=0)


def test_mapped_devices_go_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superblocks, "_CLASS_BLOCK", str(tmp_path))
    (tmp_path / "dm-0" / "dm").mkdir(parents=True)
    (tmp_path / "dm-0" / "dm" / "name").write_text("vg-a--b\n")
    (tmp_path / "sda1").mkdir()
    uuids = {"/dev/dm-0": "one", "/dev/sda1": "two"}
    assert superblocks.find("one", uuids.get, timeout=0) == "/dev/mapper/vg-a--b"
    assert superblocks.find("two", uuids.get, timeout=0) == "/dev/sda1"


def superblock(sector: int) -> bytes:
    """Of md, version 1, as on a disk of a mirror (include/uapi/linux/raid/md_p.h)."""
    block = bytearray(256)
    block[:8] = struct.pack("<II", 0xA92B4EFC, 1)
    block[144:152] = struct.pack("<Q", sector)
    block[168:184] = bytes(range(16))
    return bytes(block)


@pytest.mark.parametrize("at", [0, 4096])
def test_a_disk_of_a_raid(tmp_path: Path, at: int) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(at) + superblock(at // 512))
    assert superblocks.component_on(str(image)) == bytes(range(16)).hex()
    assert superblocks.uuid_on(str(image)) is None
    # A copy that lies elsewhere, as in an image of a disk on a disk.
    image.write_bytes(bytes(at) + superblock(at // 512 + 8))
    assert superblocks.component_on(str(image)) is None
    image.write_bytes(bytes(at) + superblock(at // 512)[:200])
    assert superblocks.component_on(str(image)) is None
