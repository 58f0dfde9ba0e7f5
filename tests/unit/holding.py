"""Processes that have something open, for tests that look at other processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class HasNumber(Protocol):
    """A file or a socket."""

    def fileno(self) -> int: ...


Hold = Callable[..., int]


@contextmanager
def holding() -> Iterator[Hold]:
    """Processes that do nothing but have these files, sockets or numbers open; gives the PID."""
    started = []

    def start(*opened: HasNumber | int) -> int:
        numbers = [item if isinstance(item, int) else item.fileno() for item in opened]
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=numbers)
        started.append(process)
        return process.pid

    try:
        yield start
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
