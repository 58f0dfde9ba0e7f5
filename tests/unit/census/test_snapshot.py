"""Processes compared with themselves."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rekernel import syscalls
from rekernel.census import snapshot

_PROGRAM = """
import os, sys
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """Does what it is told."""
    started = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    # Not before it is what it will be.
    do(started, "pass")
    yield started
    assert started.stdin is not None
    started.stdin.close()
    started.wait()


def do(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("os.nice(3)", "nice value was 0 and is 3"),
        ("os.sched_setaffinity(0, {0})", "CPU affinity was"),
        ("open('/proc/self/oom_score_adj', 'w').write('500')", "out-of-memory score was"),
        ("open('/proc/self/coredump_filter', 'w').write('0x3f')", "core dump filter was"),
        ("open('/proc/self/timerslack_ns', 'w').write('70000')", "and is 70000"),
    ],
)
def test_what_it_is_given(process: subprocess.Popen[str], line: str, words: str) -> None:
    before = snapshot.take([process.pid])
    assert snapshot.differences(before, snapshot.take([process.pid])) == []
    do(process, line)
    now = snapshot.take([process.pid])
    (found,) = snapshot.differences(before, now)
    assert f"process {process.pid} (" in found
    assert words in found
    assert snapshot.changes(before, now) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("os.umask(0o027)", "file mode mask was 0022 and is 0027"),
        ("os.chdir('/')", "and is /"),
        ("os.setpgid(0, 0)", "process group was"),
        ("import signal; signal.signal(signal.SIGUSR2, signal.SIG_IGN)", "ignored signals was"),
        ("os.close(2)", "descriptor 2 was"),
    ],
)
def test_what_it_changes_by_itself(process: subprocess.Popen[str], line: str, words: str) -> None:
    do(process, "os.umask(0o022)")
    before = snapshot.take([process.pid])
    assert snapshot.changes(before, snapshot.take([process.pid])) == []
    do(process, line)
    now = snapshot.take([process.pid])
    (found,) = snapshot.changes(before, now)
    assert f"process {process.pid} (" in found
    assert words in found
    # Nobody has to look for what counts among these.
    assert snapshot.differences(before, now) == []


def test_all_that_is_taken_is_compared(process: subprocess.Popen[str]) -> None:
    before = snapshot.take([process.pid])
    (values,) = before.values()
    other: dict[str, Any] = {"descriptors": {}} | {
        name: "other" for name in values if name != "descriptors"
    }
    now: snapshot.Snapshot = {str(process.pid): other}
    told = snapshot.differences(before, now) + snapshot.changes(before, now)
    for name in values.keys() - {"descriptors"}:
        assert sum(f"): {name} was " in line for line in told) == 1, name
    # Of its standard error, a file here.
    assert any("descriptor 2 was " in line for line in told)


def test_limits(process: subprocess.Popen[str]) -> None:
    before = snapshot.take([process.pid])
    resource.prlimit(process.pid, resource.RLIMIT_CORE, (4096, 8192))
    (found,) = snapshot.differences(before, snapshot.take([process.pid]))
    assert found.endswith("and is 4096 / 8192")
    assert "limit: max core file size was" in found


def test_io_priority(process: subprocess.Popen[str]) -> None:
    before = snapshot.take([process.pid])
    syscalls.ioprio_set(process.pid, 3 << 13)
    (found,) = snapshot.differences(before, snapshot.take([process.pid]))
    assert found.endswith("I/O priority was 0 and is 24576")


def test_connections_come_and_go(process: subprocess.Popen[str]) -> None:
    do(process, "import socket; pair = socket.socketpair()")
    before = snapshot.take([process.pid])
    assert "a socket" in before[str(process.pid)]["descriptors"].values()
    do(process, "pair[0].close(); pair[1].close()")
    assert snapshot.changes(before, snapshot.take([process.pid])) == []


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    assert snapshot.take([2**22 + 1]) == {}
    assert snapshot.differences({"7": {"name": "x"}}, {}) == []
    assert snapshot.changes({"7": {"name": "x"}}, {}) == []
