"""What the agent says: to the kernel log (so to the console, and later to the journal)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rekernel.handover.manifest import Phase

_kmsg: int | None = None


def say(text: str) -> None:
    """One line. Never raises: a lost message must not lose a process."""
    global _kmsg
    try:
        if _kmsg is None:
            _kmsg = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        os.write(_kmsg, f"<5>rekernel: {text}\n".encode())
    except OSError:
        pass


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
