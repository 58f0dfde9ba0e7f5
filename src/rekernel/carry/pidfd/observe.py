"""Handles (pidfds) of the init system, which criu refuses to dump as they lead out of the tree.

sd-bus has one for each of its connections to a socket that init has opened, that of the system bus
for one. For the dump a handle of a process that has ended takes its place, as criu makes such a one
again (criu/pidfd.c); in the image that becomes one of process 1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from rekernel.criu.descriptors import Descriptor, descriptors
from rekernel.criu.images import ImageError, fields, set_varint
from rekernel.criu.remote_syscall import inside
from rekernel.records import record
from rekernel.run import start

LINK = "anon_inode:[pidfd]"
INIT = 1

# arch/x86/entry/syscalls/syscall_64.tbl
_NR_CLOSE, _NR_DUP3, _NR_PIDFD_OPEN = 3, 292, 434

# Fields of pidfd_entry (criu's images/pidfd.proto).
_INODE, _NSPID = 2, 4


@record
class Handle:
    """Descriptor ``number`` of process ``pid``. ``inode``: of the stand-in that takes its place."""

    pid: int
    number: int
    inode: int

    def __str__(self) -> str:
        """As :func:`put_back` takes it."""
        return f"{self.pid} {self.number} {self.inode}"


def target(item: Descriptor) -> int | None:
    """PID of the process that a handle is of, -1 if that has ended; None if it is no handle."""
    if item.link != LINK:
        return None
    info = Path(f"/proc/{item.pid}/fdinfo/{item.number}").read_text()
    found = re.search(r"^Pid:\s*(-?\d+)", info, re.MULTILINE)
    return int(found[1]) if found else None


def can_be_replaced(item: Descriptor) -> bool:
    """Whether the process may be made to replace it: a filter of its system calls might end it."""
    status = Path(f"/proc/{item.pid}/status").read_bytes()
    return b"\nSeccomp:\t0\n" in status and _inodes_tell_apart()


def _inodes_tell_apart() -> bool:
    """Whether each process has an inode of its own for its handles: since Linux 6.9."""
    own, of_init = os.pidfd_open(os.getpid()), os.pidfd_open(INIT)
    try:
        return os.fstat(own).st_ino != os.fstat(of_init).st_ino
    finally:
        os.close(own)
        os.close(of_init)


class StandIn:
    """A process whose handles take the place of those of init."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Finds the handles of init in these processes; changes nothing yet. Raises OSError."""
        self._items = [item for pid in pids for item in _of_init(pid)]
        self._process: Popen[bytes] | None = None
        self.handles: list[Handle] = []
        if self._items:
            # Whatever becomes of us, nothing of it stays.
            argv = ["setpriv", "--pdeathsig", "KILL", "sleep", "infinity"]
            self._process = start(argv, output="/dev/null")
            pidfd = os.pidfd_open(self._process.pid)
            inode = os.fstat(pidfd).st_ino
            os.close(pidfd)
            self.handles = [Handle(item.pid, item.number, inode) for item in self._items]

    def take_place(self) -> None:
        """Put a stand-in in place of each handle, while all runs. Raises OSError."""
        assert self._process is not None or not self._items
        for item in self._items:
            assert self._process is not None
            # Who has ended, or has closed it, needs nothing; who is traced fails the dump.
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if target(item) == INIT:
                    _replace(item, self._process.pid)

    def end(self) -> None:
        """When all is frozen: criu wants a process of the tree, or one that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _of_init(pid: int) -> Iterator[Descriptor]:
    with suppress(FileNotFoundError, ProcessLookupError):
        for item in descriptors(pid):
            if target(item) == INIT:
                yield item


def put_back(handle: str) -> None:
    """Give a running process its handle of init again, if it still has the stand-in."""
    pid, number, inode = map(int, handle.split())
    with suppress(FileNotFoundError, ProcessLookupError):
        for item in descriptors(pid):
            if item.number == number and item.link == LINK and item.inode == inode:
                _replace(item, INIT)


def _replace(item: Descriptor, pid: int) -> None:
    with inside(item.pid) as process:
        new = process.call(_NR_PIDFD_OPEN, pid, item.flags & os.O_NONBLOCK)
        process.call(_NR_DUP3, new, item.number, item.flags & os.O_CLOEXEC)
        process.call(_NR_CLOSE, new)


def name_init(data: bytearray, start: int, end: int, stand_ins: Iterable[int]) -> bool:
    """Make a pidfd_entry in place one of init if it is of a stand-in; whether it was. ImageError.

    ``stand_ins``: inodes, of which criu writes the lower half.
    """
    found = {number: (value, at, after) for number, value, at, after in fields(data, start, end)}
    if _INODE not in found or _NSPID not in found:
        raise ImageError("a handle has no inode or no process")
    if found[_INODE][0] not in {inode & 0xFFFFFFFF for inode in stand_ins}:
        return False
    _, at, after = found[_NSPID]
    set_varint(data, at, after, INIT)
    return True
