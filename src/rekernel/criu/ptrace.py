"""ptrace(2) of another process's threads, without a debugger's name for each of its numbers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h
CONT, SINGLESTEP, GETREGS, SETREGS, DETACH = 7, 9, 12, 13, 17
SEIZE, INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
EVENT_STOP = 128
# For waitpid(2): threads, too (include/uapi/linux/wait.h).
WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_call = _libc.ptrace
_call.restype = ctypes.c_long
_call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> None:
    """One request. Raises OSError; ProcessLookupError also if the thread is not stopped."""
    if _call(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"process {thread}")


@contextmanager
def seized(thread: int) -> Iterator[None]:
    """Trace it, and let it go in the end. Raises OSError if that cannot be."""
    ptrace(SEIZE, thread)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            ptrace(DETACH, thread)


@contextmanager
def blocking(thread: int, signals: int) -> Iterator[None]:
    """Have a stopped thread get none of these signals (a bit each), whatever it lets through."""
    mask, wanted = ctypes.c_uint64(), ctypes.c_uint64(signals)
    size = ctypes.sizeof(mask)
    ptrace(_GETSIGMASK, thread, size, ctypes.addressof(mask))
    ptrace(_SETSIGMASK, thread, size, ctypes.addressof(wanted))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            ptrace(_SETSIGMASK, thread, size, ctypes.addressof(mask))
