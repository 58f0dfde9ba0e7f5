"""What criu does not keep goes from one thread to another: real ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from said import Said

from rekernel import syscalls
from rekernel.carry.task_attributes import observe as task_attributes
from rekernel.carry.task_attributes import restore as agent
from rekernel.carry.task_attributes.entry import TaskAttributes

LOWEST = 2 << 13 | 7


@pytest.fixture
def two() -> Iterator[tuple[int, int]]:
    """One that is not as usual, and one to become like it."""
    with subprocess.Popen(["sleep", "60"]) as odd, subprocess.Popen(["sleep", "60"]) as plain:
        os.sched_setaffinity(odd.pid, {0})
        syscalls.ioprio_set(odd.pid, LOWEST)
        Path(f"/proc/{odd.pid}/coredump_filter").write_text("0x3f")
        Path(f"/proc/{odd.pid}/timerslack_ns").write_text("70000")
        yield odd.pid, plain.pid
        odd.kill()
        plain.kill()


def test_from_one_to_another(two: tuple[int, int]) -> None:
    odd, plain = two
    found = task_attributes.observe(two)
    assert found == TaskAttributes(
        {str(odd): (0,)},
        {str(odd): LOWEST},
        {f"{odd}/coredump_filter": "0000003f", f"{odd}/timerslack_ns": "70000"},
    )
    files = {f"{plain}/{name.partition('/')[2]}": value for name, value in found.files.items()}
    agent.set_again(TaskAttributes({str(plain): (0,)}, {str(plain): LOWEST}, files))
    now = task_attributes.observe([plain])
    assert now == TaskAttributes({str(plain): (0,)}, {str(plain): LOWEST}, files)


def test_one_that_is_gone(said: Said) -> None:
    gone = str(2**22 + 1)
    assert task_attributes.observe([int(gone)]) == TaskAttributes()
    agent.set_again(TaskAttributes({gone: (0,)}, {gone: LOWEST}, {f"{gone}/timerslack_ns": "7"}))
    for words in ("not bound to its CPUs", "without its I/O priority", "timerslack_ns is not 7"):
        assert any(words in line for line in said.lines)
