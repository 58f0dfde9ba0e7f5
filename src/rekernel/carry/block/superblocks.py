"""What lies on a block device: which file system, physical volume of LVM, or disk of a RAID.

Imported early: see agent/main.py. Before the kexec the same functions say what the agent will find.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CLASS_BLOCK = "/sys/class/block"

# Where the magic number is, what it is, where the UUID begins and how long it is: ext2 to ext4
# (fs/ext4/ext4.h), xfs (fs/xfs/libxfs/xfs_format.h), btrfs (include/uapi/linux/btrfs_tree.h), FAT
# (include/uapi/linux/msdos_fs.h).
_FILE_SYSTEMS = (
    (0x438, b"\x53\xef", 0x468, 16),
    (0, b"XFSB", 0x20, 16),
    (0x10040, b"_BHRfS_M", 0x10020, 16),
    (0x52, b"FAT32", 0x43, 4),
    (0x36, b"FAT1", 0x27, 4),
)
# LVM's label lies in one of the first four sectors, and says how many bytes after its own start
# the UUID is (lvm2: lib/label/label.h, lib/format_text/layout.h).
_LABEL = b"LABELONE"
_LABEL_SECTORS = (512, 0, 1024, 1536)
_OFFSET_AT = 20
_VOLUME_UUID_SIZE = 32
# The superblock of md, version 1 (include/uapi/linux/raid/md_p.h), at the start (1.1) or 4 KiB
# after it (1.2); in which sector that is, it knows itself.
_RAID = b"\xfc\x4e\x2b\xa9\1\0\0\0"
_RAID_PLACES = (4096, 0)
_RAID_SECTOR_AT, _RAID_DISK_AT = 144, 168


class NotFoundError(Exception):
    """A file system or a volume did not appear."""


def uuid_on(device: str) -> str | None:
    """The UUID of the file system on a device, as blkid(8) has it; None of others and of none."""
    return _read(device, _file_system)


def volume_on(device: str) -> str | None:
    """The UUID of the LVM physical volume on a device, without dashes; None if there is none."""
    return _read(device, _volume)


def component_on(device: str) -> str | None:
    """The UUID of a disk in an array of md with metadata 1.1 or 1.2; None if there is none."""
    return _read(device, _component)


def find(
    uuid: str,
    what: Callable[[str], str | None] = uuid_on,
    *,
    timeout: float = 30.0,
    first: str = "",
) -> str:
    """The device on which ``what`` finds this UUID, by the name to mount it by.

    ``first``: where to look before all others, of which one may be broken and slow. Raises
    NotFoundError after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        if first and what(f"/dev/{first}") == uuid:
            return node(first)
        for entry in sorted(os.listdir(_CLASS_BLOCK)):
            if what(f"/dev/{entry}") == uuid:
                return node(entry)
        if time.monotonic() > deadline:
            raise NotFoundError(f"no block device has {uuid}")
        time.sleep(0.01)


def mapped_node(name: str) -> str:
    """Where a device of the device mapper is found. The kernel's name has no odd characters."""
    return f"/dev/mapper/{name}"


def node(entry: str) -> str:
    """The node as mount(8) and all others write it: a mapped device goes by its name."""
    try:
        with open(f"{_CLASS_BLOCK}/{entry}/dm/name") as file:
            return mapped_node(file.read().removesuffix("\n"))
    except OSError:
        return f"/dev/{entry}"


def _read(device: str, what: Callable[[int], str | None]) -> str | None:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return what(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _file_system(fd: int) -> str | None:
    for magic_at, magic, at, size in _FILE_SYSTEMS:
        if os.pread(fd, len(magic), magic_at) == magic:
            raw = os.pread(fd, size, at)
            return _written_out(raw) if len(raw) == size else None
    return None


def _written_out(raw: bytes) -> str:
    if len(raw) == 4:
        text = raw[::-1].hex().upper()
        return f"{text[:4]}-{text[4:]}"
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _component(fd: int) -> str | None:
    for at in _RAID_PLACES:
        block = os.pread(fd, 256, at)
        if len(block) == 256 and block.startswith(_RAID):
            sector = int.from_bytes(block[_RAID_SECTOR_AT : _RAID_SECTOR_AT + 8], "little")
            if sector * 512 == at:
                return block[_RAID_DISK_AT : _RAID_DISK_AT + 16].hex()
    return None


def _volume(fd: int) -> str | None:
    for at in _LABEL_SECTORS:
        header = os.pread(fd, 32, at)
        if header.startswith(_LABEL):
            offset = int.from_bytes(header[_OFFSET_AT : _OFFSET_AT + 4], "little")
            raw = os.pread(fd, _VOLUME_UUID_SIZE, at + offset)
            return raw.decode("ascii", "replace") if len(raw) == _VOLUME_UUID_SIZE else None
    return None
