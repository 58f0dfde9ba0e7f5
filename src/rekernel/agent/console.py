"""What the agent says: to the kernel log (so to the console, and later to the journal)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rekernel.handover.manifest import Phase

_NOTICE = 5
_sinks: list[tuple[int, str]] | None = None


def _open_sinks() -> list[tuple[int, str]]:
    """The kernel log, and the console itself if "quiet" keeps notices from it."""
    found = []
    try:
        found.append((os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC), f"<{_NOTICE}>"))
        with open("/proc/sys/kernel/printk") as file:
            quiet = int(file.read().split()[0]) <= _NOTICE
        if quiet:
            found.append((os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), ""))
    except OSError:
        pass
    return found


def say(text: str) -> None:
    """One line. Never raises: a lost message must not lose a process."""
    global _sinks
    if _sinks is None:
        _sinks = _open_sinks()
    for fd, prefix in _sinks:
        with suppress(OSError):
            os.write(fd, f"{prefix}rekernel: {text}\n".encode())


class Timeline:
    """Phases of the new side, in nanoseconds since the kernel started."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, finished or failed."""
        start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            yield
        finally:
            end = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self.phases.append(Phase(name, start, end, "new"))
