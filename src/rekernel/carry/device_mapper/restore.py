"""Devices of the device mapper, as of LVM, set up by their tables as on the kernel before.

Imported early: see agent/main.py. Kernel interface: include/uapi/linux/dm-ioctl.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from rekernel.carry.block import superblocks
from rekernel.pid1.console import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_CONTROL = "/dev/mapper/control"
# struct dm_ioctl: version, sizes, counts, flags, event, device, name, UUID, filler.
_HEADER = struct.Struct("<3I II I i I I I Q 128s 129s 7s")
# struct dm_target_spec: first sector, sectors, status, bytes to the next one, kind.
_TARGET = struct.Struct("<QQiI16s")
_VERSION = (4, 0, 0)
# Seconds for all of them: the root's come first.
_LIMIT_S = 30.0
_READ_ONLY = 1
_CREATE, _REMOVE, _RESUME, _LOAD = 3, 4, 6, 9


def activate(devices: Sequence[Mapping[str, Any]]) -> None:
    """Set up all of ``devices`` (handover/config.py, MappedDevice), each below those it stands on.

    One that cannot be is said, and left to init.
    """
    deadline = time.monotonic() + _LIMIT_S
    for device in devices:
        try:
            _set_up(device, deadline)
        except (OSError, superblocks.NotFoundError) as error:
            say(f"{device['name']} is not set up: {error}")


def known(devices: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Node and what udev knew of each: without that it takes them for unfinished."""
    for device in devices:
        yield superblocks.mapped_node(device["name"]), device["udev"]


def table(device: Mapping[str, Any], numbers: Sequence[tuple[int, int]]) -> bytes:
    """A device's table, as the kernel takes it; ``numbers``: of the devices that it stands on."""
    names = [f"{major}:{minor}" for major, minor in numbers]
    packed = b""
    for target in device["targets"]:
        text = os.fsencode(target["parameters"].format(*names)) + b"\0"
        # The next one begins at a multiple of 8.
        size = (_TARGET.size + len(text) + 7) // 8 * 8
        spec = _TARGET.pack(target["start"], target["sectors"], 0, size, target["kind"].encode())
        packed += (spec + text).ljust(size, b"\0")
    return packed


def _set_up(device: Mapping[str, Any], deadline: float) -> None:
    numbers = [_number(_below(name, deadline)) for name in device["below"]]
    name, uuid = os.fsencode(device["name"]), os.fsencode(device["uuid"])
    targets = table(device, numbers)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        number = _control(control, _CREATE, name, uuid)
        try:
            flags = _READ_ONLY * device["read_only"]
            _control(control, _LOAD, name, flags=flags, count=len(device["targets"]), data=targets)
            _control(control, _RESUME, name)
        except OSError:
            _control(control, _REMOVE, name)
            raise
    finally:
        os.close(control)
    block = os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    os.symlink(f"../{os.path.basename(block)}", superblocks.mapped_node(device["name"]))


def _below(name: str, deadline: float) -> str:
    kind, _, value = name.partition("=")
    if kind == "volume":
        left = max(0.0, deadline - time.monotonic())
        return superblocks.find(value, superblocks.volume_on, timeout=left)
    return superblocks.mapped_node(value)


def _number(node: str) -> tuple[int, int]:
    number = os.stat(node).st_rdev
    return os.major(number), os.minor(number)


def _control(
    fd: int,
    command: int,
    name: bytes,
    uuid: bytes = b"",
    *,
    flags: int = 0,
    count: int = 0,
    data: bytes = b"",
) -> int:
    """One command of the device mapper; the device's number. Raises OSError."""
    if len(name) > 127 or len(uuid) > 128:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    size = _HEADER.size + len(data)
    header = _HEADER.pack(*_VERSION, size, _HEADER.size, count, 0, flags, 0, 0, 0, name, uuid, b"")
    # The kernel wants room for its own header, and writes the answer there.
    buffer = bytearray(header + data)
    # _IOWR(0xfd, command, struct dm_ioctl)
    fcntl.ioctl(fd, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command, buffer, True)
    # The kernel's encoding (huge_encode_dev) is that of the C library, too.
    number: int = _HEADER.unpack_from(buffer)[10]
    return number
