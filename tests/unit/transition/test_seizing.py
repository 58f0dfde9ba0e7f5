"""A real process, moved by a real tracer."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel.transition.seizing import Seizing

_SEIZE, _INTERRUPT, _GETREGS, _SETREGS = 0x4206, 0x4207, 12, 13
_WALL = 0x40000000
# sys/user.h: 27 registers of 8 bytes, the program counter is number 16.
_Registers = ctypes.c_uint64 * 27
_RIP = 16


def ptrace(request: int, pid: int, data: ctypes.Array[ctypes.c_uint64] | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")


def where(pid: int) -> str:
    return Path(f"/proc/{pid}/syscall").read_text()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    program = "import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        while "running" in where(started.pid):
            time.sleep(0.001)
        yield started
        started.kill()


def stop(pid: int) -> None:
    ptrace(_SEIZE, pid)
    ptrace(_INTERRUPT, pid)
    os.waitpid(pid, _WALL)


def move(pid: int, by: int) -> None:
    registers = _Registers()
    ptrace(_GETREGS, pid, registers)
    registers[_RIP] += by
    ptrace(_SETREGS, pid, registers)


def test_not_before_its_registers_are_set(process: subprocess.Popen[str]) -> None:
    seizing = Seizing([process.pid])
    assert not seizing.is_done(process.pid)
    stop(process.pid)
    # That alone does not tell of the other threads.
    assert not seizing.is_done(process.pid)
    move(process.pid, 2)
    assert seizing.is_done(process.pid)
    # Where it was before, as when criu has let it go.
    move(process.pid, -2)
    assert seizing.is_done(process.pid)


def test_each_by_itself(process: subprocess.Popen[str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        while "running" in where(other.pid):
            time.sleep(0.001)
        seizing = Seizing([other.pid, process.pid])
        stop(process.pid)
        move(process.pid, 2)
        assert seizing.is_done(process.pid)
        assert not seizing.is_done(other.pid)
        other.kill()


def test_what_is_gone_counts() -> None:
    assert Seizing([2**22 + 1]).is_done(2**22 + 1)
    with subprocess.Popen(["sleep", "60"]) as ending:
        while "running" in where(ending.pid):
            time.sleep(0.001)
        seizing = Seizing([ending.pid])
        assert not seizing.is_done(ending.pid)
        ending.kill()
        ending.wait()
        assert seizing.is_done(ending.pid)


def test_who_runs_for_an_instant_is_not_seized(tmp_path: Path) -> None:
    """From the freezer to the tracer: one thread of many, and the others would be let go."""
    at = tmp_path / "7" / "syscall"
    at.parent.mkdir()
    at.write_text("0 0x0 0x1\n")
    seizing = Seizing([7], tmp_path)
    at.write_text("running\n")
    assert not seizing.is_done(7)
    at.write_text("0 0x0 0x1\n")
    assert not seizing.is_done(7)
    at.write_text("-1 0x0 0x2\n")
    assert seizing.is_done(7)
