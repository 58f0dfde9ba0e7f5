"""The places where processes wait that should have ended, for whoever has to find out why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def where_they_wait(pids: Iterable[int]) -> str:
    """Each thread's state, system call and kernel stack, as far as it may be read.

    Source: proc_pid_status(5), proc_pid_syscall(5), proc_pid_stack(5).
    """
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in sorted((_PROC / str(pid) / "task").iterdir(), key=lambda p: int(p.name)):
                lines += _describe(thread)
    return "\n".join(lines) + "\n"


def _describe(thread: Path) -> list[str]:
    status = dict(
        line.split(":\t", 1)
        for line in (thread / "status").read_text(errors="replace").splitlines()
        if ":\t" in line
    )
    lines = [f"{thread.name} {status['Name']}: {status['State']}, traced by {status['TracerPid']}"]
    for name in ("syscall", "stack"):
        with contextlib.suppress(OSError):
            lines.append((thread / name).read_text().rstrip())
    return lines
