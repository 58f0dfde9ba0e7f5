"""Real processes make system calls for us, and go on as if nothing had been."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel.criu.remote_syscall import inside

_NR_CLOSE, _NR_GETPID, _NR_DUP3 = 3, 39, 292

# Waits in a system call of its own, and has a handler.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
print("ready", flush=True)
for line in sys.stdin:
    print("read", line, end="", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert line(process) == "ready\n"
        yield process
        process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def goes_on(process: subprocess.Popen[str]) -> bool:
    assert process.stdin is not None
    process.stdin.write("words\n")
    process.stdin.flush()
    return line(process) == "read words\n"


def test_calls(child: subprocess.Popen[str]) -> None:
    with inside(child.pid) as process:
        assert process.call(_NR_GETPID) == child.pid
        assert process.call(_NR_DUP3, 1, 99, 0) == 99
        assert os.readlink(f"/proc/{child.pid}/fd/99") == os.readlink(f"/proc/{child.pid}/fd/1")
        process.call(_NR_CLOSE, 99)
        with pytest.raises(OSError, match=f"process {child.pid}") as caught:
            process.call(_NR_CLOSE, 99)
        assert caught.value.errno == errno.EBADF
    assert goes_on(child)


def test_a_signal_has_to_wait(child: subprocess.Popen[str]) -> None:
    with inside(child.pid) as process:
        child.send_signal(signal.SIGUSR1)
        assert process.call(_NR_GETPID) == child.pid
    assert line(child) == "signal\n"
    assert goes_on(child)


def test_one_that_stands_still(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    with inside(child.pid) as process:
        assert process.call(_NR_GETPID) == child.pid
    deadline = time.monotonic() + 10
    while "State:\tT (stopped)" not in Path(f"/proc/{child.pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGCONT)
    assert goes_on(child)


def test_one_that_is_killed_meanwhile(child: subprocess.Popen[str]) -> None:
    with pytest.raises(ProcessLookupError), inside(child.pid) as process:
        child.kill()
        process.call(_NR_GETPID)


def test_one_that_is_gone() -> None:
    with pytest.raises(ProcessLookupError), inside(2**22 + 1):
        pass
