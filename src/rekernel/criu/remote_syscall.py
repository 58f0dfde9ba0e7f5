"""System calls that another process makes for us, as a debugger would have it do.

It is stopped between two instructions, steps over one `syscall` instruction of its vdso with
registers of ours, and goes on with its own as if nothing had been (ptrace(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rekernel.criu.ptrace import (
    CONT,
    EVENT_STOP,
    GETREGS,
    INTERRUPT,
    SETREGS,
    SINGLESTEP,
    WALL,
    blocking,
    ptrace,
    seized,
)

# arch/x86/include/uapi/asm/ptrace.h, struct user_regs_struct
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_LAYOUT = struct.Struct(f"{len(_REGISTERS)}Q")
_NO_CALL = (1 << 64) - 1
# Code segment of 64-bit programs.
_USER_CS = 0x33
_SYSCALL = b"\x0f\x05"
_HIGHEST_ERROR = 4095
# But for that of the step: forced though blocked, it would cost the process its handler.
_ALL_BUT_TRAP = (1 << 64) - 1 & ~(1 << signal.SIGTRAP - 1)


class Inside:
    """A stopped process, for as long as the ``with`` block of :func:`inside` lasts."""

    def __init__(self, pid: int) -> None:
        """``pid``: of the process, and of the thread that makes the calls."""
        self._pid = pid
        self._instruction = _find_instruction(pid)

    def call(self, number: int, *arguments: int) -> int:
        """Make a system call that returns at once. Raises OSError with its error."""
        before = self._registers()
        if before["cs"] != _USER_CS:
            raise OSError(f"process {self._pid} is no 64-bit program")
        wanted = before | {"rax": number, "orig_rax": _NO_CALL, "rip": self._instruction}
        wanted |= dict(zip(_ARGUMENTS, arguments, strict=False))
        self._set_registers(wanted)
        try:
            ptrace(SINGLESTEP, self._pid)
            _wait(self._pid, SINGLESTEP)
            result = self._registers()["rax"]
        finally:
            # With the number of its own call, which the kernel may have to start again.
            with suppress(ProcessLookupError):
                self._set_registers(before)
        error = (1 << 64) - result
        if error <= _HIGHEST_ERROR:
            raise OSError(error, os.strerror(error), f"call {number} of process {self._pid}")
        return result

    def _registers(self) -> dict[str, int]:
        buffer = ctypes.create_string_buffer(_LAYOUT.size)
        ptrace(GETREGS, self._pid, 0, ctypes.addressof(buffer))
        return dict(zip(_REGISTERS, _LAYOUT.unpack(buffer.raw), strict=True))

    def _set_registers(self, values: dict[str, int]) -> None:
        packed = _LAYOUT.pack(*(values[name] for name in _REGISTERS))
        buffer = ctypes.create_string_buffer(packed, _LAYOUT.size)
        ptrace(SETREGS, self._pid, 0, ctypes.addressof(buffer))


@contextmanager
def inside(pid: int) -> Iterator[Inside]:
    """Stop a process that runs. Raises OSError if that cannot be, ProcessLookupError if it ends."""
    with seized(pid):
        ptrace(INTERRUPT, pid)
        _wait(pid, CONT, event=EVENT_STOP)
        # A signal would come before the call.
        with blocking(pid, _ALL_BUT_TRAP):
            yield Inside(pid)


def _wait(pid: int, resume: int, event: int = 0) -> None:
    """Until it stops for this event, or for having made its step without one.

    ``resume``: how it goes on from any other stop; signals are delivered.
    """
    while True:
        _, status = os.waitpid(pid, WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"process {pid} ended")
        number, why = os.WSTOPSIG(status), status >> 16
        # With an event the signal is the one of job control, if it stood still before.
        if why == event and (event or number == signal.SIGTRAP):
            return
        ptrace(resume, pid, 0, 0 if why else number)


def _find_instruction(pid: int) -> int:
    """Address of a `syscall` instruction. Raises OSError if it has none where one always is."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            if line.rstrip().endswith("[vdso]"):
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                at = memory.read(end - start).find(_SYSCALL)
                if at >= 0:
                    return start + at
    raise OSError(f"process {pid} has no vdso")
