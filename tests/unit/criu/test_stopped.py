"""Real processes that are stopped, and stay so, whatever waits for them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel.criu.stopped import make_ready

_STOP, _TSTP = 1 << signal.SIGSTOP - 1, 1 << signal.SIGTSTP - 1
_NR_TGKILL = 234

# Three threads; the process leads a group of its own, so that job control may stop it.
PROGRAM = """
import os, signal, sys, threading
os.setpgid(0, 0)
signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
# Whichever thread gets it, only the first one can tell, and that waits for input.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
for _ in range(2):
    threading.Thread(target=signal.sigwait, args=({signal.SIGUSR2},), daemon=True).start()
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
print("ready", flush=True)
for line in sys.stdin:
    print("read", line, end="", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert said(process) == "ready\n"
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":\t")[1] for line in lines if line.startswith(f"{name}:"))


def waiting(pid: int) -> int:
    return int(status(pid, "SigPnd"), 16) | int(status(pid, "ShdPnd"), 16)


def threads(pid: int) -> list[int]:
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


def stop(pid: int, number: int = signal.SIGSTOP) -> None:
    os.kill(pid, number)
    while not all(status(thread, "State").startswith("T") for thread in threads(pid)):
        time.sleep(0.001)


def to_thread(pid: int, thread: int, number: int) -> None:
    ctypes.CDLL(None).syscall(_NR_TGKILL, pid, thread, number)


def is_stopped(pid: int) -> bool:
    # Let go of, each stops by itself.
    time.sleep(0.05)
    return all(status(thread, "State").startswith("T") for thread in threads(pid))


def goes_on(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGCONT)
    assert process.stdin is not None
    process.stdin.write("words\n")
    process.stdin.flush()
    assert said(process) == "read words\n"


def test_one_that_runs_is_left_alone(child: subprocess.Popen[str]) -> None:
    assert make_ready([child.pid]) == []
    assert status(child.pid, "TracerPid") == "0"


def test_a_stop_signal_that_waits(child: subprocess.Popen[str]) -> None:
    stop(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    for thread in threads(child.pid):
        to_thread(child.pid, thread, signal.SIGSTOP)
        to_thread(child.pid, thread, signal.SIGTSTP)
    assert waiting(child.pid) & (_STOP | _TSTP) == _STOP | _TSTP
    assert make_ready([child.pid]) == [child.pid]
    assert [waiting(thread) & (_STOP | _TSTP) for thread in threads(child.pid)] == [0, 0, 0]
    assert is_stopped(child.pid)
    goes_on(child)


def test_other_signals_wait_on(child: subprocess.Popen[str]) -> None:
    stop(child.pid)
    os.kill(child.pid, signal.SIGUSR1)
    os.kill(child.pid, signal.SIGSTOP)
    make_ready([child.pid])
    assert waiting(child.pid) == 1 << signal.SIGUSR1 - 1
    assert is_stopped(child.pid)
    os.kill(child.pid, signal.SIGCONT)
    assert said(child) == "signal\n"


@pytest.mark.parametrize("number", [signal.SIGTTIN, signal.SIGTTOU])
def test_a_signal_that_criu_does_not_know(child: subprocess.Popen[str], number: int) -> None:
    stop(child.pid, number)
    make_ready([child.pid])
    assert is_stopped(child.pid)
    # As criu asks for it, thread by thread.
    assert [stop_signal(thread) for thread in threads(child.pid)] == [signal.SIGSTOP] * 3
    assert is_stopped(child.pid)
    # Its parent has not been told of it, and still is told the truth.
    _, told = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WSTOPSIG(told) == number
    assert os.waitpid(child.pid, os.WUNTRACED | os.WNOHANG) == (0, 0)
    goes_on(child)


def stop_signal(thread: int) -> int:
    program = """
import ctypes, os, sys
libc, thread = ctypes.CDLL(None), int(sys.argv[1])
assert libc.ptrace(0x4206, thread, None, None) == 0
print(os.WSTOPSIG(os.waitpid(thread, 0x40000000)[1]))
"""
    argv = [sys.executable, "-c", program, str(thread)]
    return int(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)


def test_one_that_is_gone() -> None:
    assert make_ready([2**22 + 1]) == []
