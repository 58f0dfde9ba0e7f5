"""The open descriptors of other processes, and how criu is told of those that it shall not make."""

from __future__ import annotations

import os
import re
import socket

from rekernel import smallfiles, syscalls
from rekernel.criu.entry import Inherited
from rekernel.records import record

# /proc/PID/fdinfo/NUMBER: fs/proc/fd.c, and drivers/tty/pty.c.
_OPENED = re.compile(rb"^flags:\t(\d+)\nmnt_id:\t(\d+)$", re.M)
_TERMINAL = re.compile(rb"^tty-index:\t(\d+)$", re.M)


@record
class External:
    """``dump``: value for criu dump --external; ``inherited``: what restore gives back for it, if
    anything.
    """

    dump: str
    inherited: Inherited | None


@record
class Descriptor:
    """An open descriptor: what its link says and the mount it was opened through."""

    pid: int
    number: int
    link: str
    mount_id: int
    flags: int
    inode: int
    # As stat(2) has them: st_mode, st_dev, and st_rdev of a device.
    mode: int = 0
    device: int = 0
    device_number: int = 0
    # Of the master of a pseudo terminal: its number, that of /dev/pts/NUMBER.
    master_of: str = ""


def descriptors(pid: int) -> list[Descriptor]:
    """Every descriptor of a process; one that vanishes meanwhile is left out."""
    found = []
    for entry in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{entry}")
            info = smallfiles.read(f"/proc/{pid}/fdinfo/{entry}")
            status = os.stat(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:
            continue
        opened = _OPENED.search(info)
        terminal = _TERMINAL.search(info)
        found.append(
            Descriptor(
                pid=pid,
                number=int(entry),
                link=link,
                mount_id=int(opened[2]) if opened else -1,
                flags=int(opened[1], 8) if opened else 0,
                inode=status.st_ino,
                mode=status.st_mode,
                device=status.st_dev,
                device_number=status.st_rdev,
                master_of=terminal[1].decode() if terminal else "",
            )
        )
    return found


def socket_of(pid: int, number: int) -> socket.socket:
    """A socket of another process, as a descriptor of our own. Raises OSError."""
    return socket.socket(fileno=syscalls.take_descriptor(pid, number))
