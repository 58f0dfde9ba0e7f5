"""Processes that a signal has stopped (SIGSTOP, job control), made ready for criu while all runs.

criu carries them, but not out of a frozen control group if a stop signal waits beside the one that
has stopped them: it lets the process run up to that (criu's compel/src/lib/infect.c, skip_sigstop),
which the freezer keeps it from. And it knows no stop signals but SIGSTOP and SIGTSTP; a shell's
background job that wanted to read from the terminal has got SIGTTIN.

A stop signal that waits for a stopped process means nothing: SIGCONT would throw it away. So it is
taken away here, and who has stopped for another one gets SIGSTOP in its place. None of the
process's own instructions run meanwhile. Should its parent have yet to wait for it, that is told
the old one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rekernel.criu.ptrace import CONT, INTERRUPT, WALL, blocking, ptrace, seized

# Those that criu knows, and lets pass one after the other.
_KNOWN = (signal.SIGSTOP, signal.SIGTSTP)
_EVERYTHING = (1 << 64) - 1
# arch/x86/entry/syscalls/syscall_64.tbl
_NR_TGKILL = 234
# Seconds for what takes microseconds.
_PATIENCE_S = 2.0

_libc = ctypes.CDLL(None)


def make_ready(pids: Iterable[int], proc: Path = Path("/proc")) -> list[int]:
    """Make stopped processes ready for criu. One that is gone is left out, one that is traced
    is left as it is.
    """
    found = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError, ChildProcessError, PermissionError):
            if _status(pid, proc)["State"].startswith("T"):
                found.append(pid)
                for thread in os.listdir(proc / str(pid) / "task"):
                    _make_thread_ready(pid, int(thread), proc)
    return found


def _make_thread_ready(pid: int, thread: int, proc: Path) -> None:
    with seized(thread):
        ptrace(INTERRUPT, thread)
        stopped_by = _wait(thread)
        if stopped_by == signal.SIGTRAP:
            # Somebody has let it go on meanwhile.
            return
        # The first stop was that of the signal; this one is ours.
        ptrace(CONT, thread)
        _wait(thread)
        own_mask = _signals(thread, "SigBlk", proc)
        passing = [number for number in _KNOWN if not own_mask & _bit(number)]
        replace = stopped_by not in _KNOWN
        if replace:
            _libc.syscall(_NR_TGKILL, pid, thread, signal.SIGSTOP)
        with blocking(thread, _EVERYTHING & ~sum(map(_bit, passing))):
            while _waiting(thread, proc) & sum(map(_bit, passing)):
                ptrace(CONT, thread)
                number = _wait(thread)
                if replace and number == signal.SIGSTOP:
                    replace = False
                    ptrace(CONT, thread, 0, number)
                else:
                    # Without it: the next thing it does is to stop for us.
                    ptrace(INTERRUPT, thread)
                    ptrace(CONT, thread)
                _wait(thread)


def _wait(thread: int) -> int:
    """The signal that it stops with. Raises ProcessLookupError if it ends, or does not stop."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(thread, WALL | os.WNOHANG)
        if not pid:
            time.sleep(0.0002)
        elif os.WIFSTOPPED(status):
            return os.WSTOPSIG(status)
        else:
            break
    raise ProcessLookupError(f"thread {thread} does not stop")


def _status(thread: int, proc: Path) -> dict[str, str]:
    text = os.fsdecode((proc / str(thread) / "status").read_bytes())
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _signals(thread: int, name: str, proc: Path) -> int:
    return int(_status(thread, proc)[name], 16)


def _waiting(thread: int, proc: Path) -> int:
    """The signals that wait for a thread, or for any of its process."""
    return _signals(thread, "SigPnd", proc) | _signals(thread, "ShdPnd", proc)


def _bit(number: int) -> int:
    return 1 << number - 1
