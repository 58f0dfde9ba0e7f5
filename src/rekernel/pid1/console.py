"""What the agent says: to the kernel log (so to the console, and later to the journal).

Imported early: see agent/main.py.
"""

from __future__ import annotations

import os
import time

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
    """Say one line. Never raises: a lost message must not lose a process."""
    global _sinks
    if _sinks is None:
        _sinks = _open_sinks()
    for fd, prefix in _sinks:
        try:
            os.write(fd, f"{prefix}rekernel: {text}\n".encode(errors="replace"))
        except OSError:
            continue


# What is not as it was before, in words: for the report.
missing: list[str] = []


def miss(text: str) -> None:
    """Say what is not as it was before, and keep it for the report."""
    say(text)
    missing.append(text)


class Tolerated:
    """The context of a step that nobody must be lost for: an error is what is missing.

    Whoever needs it to come back fails for himself, and is reported.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        # The watchdog's means that everything takes too long.
        if not isinstance(error, Exception) or getattr(error, "of_watchdog", False):
            return False
        miss(f"{self._what}: {error}")
        return True


class Timeline:
    """Phases of the new side: name, start and end in nanoseconds since the kernel started."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []

    def phase(self, name: str) -> _Timed:
        """Time a phase, finished or failed."""
        return _Timed(self.phases, name)


class _Timed:
    """The context of a phase."""

    def __init__(self, phases: list[tuple[str, int, int]], name: str) -> None:
        self._phases = phases
        self._name = name

    def __enter__(self) -> None:
        self._start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def __exit__(self, *_: object) -> None:
        end = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._phases.append((self._name, self._start, end))
