"""Sets what criu does not keep, while a tree is held."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rekernel import syscalls
from rekernel.pid1.console import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rekernel.carry.task_attributes.entry import TaskAttributes


def set_again(task_attributes: TaskAttributes) -> None:
    """What cannot be set is said: the process runs on without it."""
    for thread, cpus in task_attributes.affinities.items():
        with _saying(f"thread {thread} is not bound to its CPUs"):
            os.sched_setaffinity(int(thread), cpus)
    for thread, priority in task_attributes.io_priorities.items():
        with _saying(f"thread {thread} is without its I/O priority"):
            syscalls.ioprio_set(int(thread), priority)
    for name, value in task_attributes.files.items():
        with _saying(f"/proc/{name} is not {value}"), open(f"/proc/{name}", "w") as file:
            # As it was read: hexadecimal numbers have no prefix there.
            file.write(f"0x{value}" if name.endswith("coredump_filter") else value)


@contextmanager
def _saying(words: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        say(f"{words}: {error.strerror}")
