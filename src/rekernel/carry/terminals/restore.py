"""Numbers of terminals: criu finds the one that it wants only if those below are taken.

A new terminal gets the lowest free number. criu opens new ones until one has the number of old, but
no more than REACH of them.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable

from rekernel.pid1.console import say

# criu/tty.c, __pty_open_ptmx_index()
REACH = 32

# linux/tty.h, asm-generic/ioctls.h
_TIOCGPTN = 0x80045430


class Numbers:
    """Keeps all numbers up to the highest wanted one from being free, but for those released."""

    def __init__(self, wanted: Iterable[int]) -> None:
        self._highest = max(wanted, default=-1)
        self._taken: dict[int, int] = {}

    def take(self) -> None:
        """Take what is free."""
        number = -1
        try:
            while number < self._highest:
                fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                number = number_of(fd)
                if number > self._highest:
                    os.close(fd)
                else:
                    self._taken[number] = fd
        except OSError as error:
            # Most are found all the same.
            say(f"numbers of terminals cannot be kept: {error}")

    def release(self, numbers: Iterable[int]) -> None:
        """Let go of these numbers: criu wants them now."""
        for number in numbers:
            if number in self._taken:
                os.close(self._taken.pop(number))

    def close(self) -> None:
        """Release all."""
        self.release([*self._taken])


def number_of(fd: int) -> int:
    """The number of a terminal, by its master."""
    (number,) = struct.unpack("i", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))
    return int(number)
