"""Loop devices, attached to their files again as soon as those are to be had."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from rekernel.carry.loops.entry import LoopDevice
from rekernel.pid1.console import miss

# include/uapi/linux/loop.h
_CONFIGURE = 0x4C0A
_CTL_ADD = 0x4C80
_READ_ONLY = 1
# struct loop_config: descriptor, block size, then struct loop_info64: three numbers that the kernel
# tells, offset, size limit, its own number, two of encryption, flags, name, and what is unused.
_CONFIG = struct.Struct("<2I 3Q2Q 3II 64s 176x")


class Loops:
    """The devices, attached one by one. Held open until :meth:`close`.

    One that nobody mounts any more is detached when the last one closes it, if it was made for
    that; until it is mounted that would be the agent.
    """

    def __init__(self, devices: Sequence[LoopDevice]) -> None:
        self._left = list(devices)
        self._held: list[int] = []

    def attach(self, target: str) -> None:
        """Attach devices whose files lie in this mount. One that cannot be is missing."""
        for device in [item for item in self._left if item.on == target]:
            self._left.remove(device)
            try:
                self._held.append(_attach(device))
            except OSError as error:
                miss(f"/dev/loop{device.number} is not attached to {device.path}: {error.strerror}")

    def close(self) -> None:
        """When all is mounted."""
        for fd in self._held:
            os.close(fd)
        self._held.clear()


def config(device: LoopDevice, fd: int) -> bytes:
    """What the kernel takes for it."""
    return _CONFIG.pack(
        fd, device.block_size, 0, 0, 0, device.offset, device.size_limit, 0, 0, 0, device.flags,
        # Only told, and cut where it does not fit, as losetup(8) does.
        os.fsencode(device.path)[:63],
    )  # fmt: skip


def _attach(device: LoopDevice) -> int:
    path = f"/dev/loop{device.number}"
    if not os.path.exists(path):
        _add(device.number)
    mode = os.O_RDONLY if device.flags & _READ_ONLY else os.O_RDWR
    file = os.open(device.path, mode | os.O_CLOEXEC)
    try:
        fd = os.open(path, mode | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _CONFIGURE, config(device, file))
        except OSError:
            os.close(fd)
            raise
    finally:
        os.close(file)
    return fd


def _add(number: int) -> None:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _CTL_ADD, number)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    finally:
        os.close(control)
