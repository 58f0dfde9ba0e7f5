"""What criu does not keep of a tree, observed while it is frozen; the agent sets it again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles, syscalls
from rekernel.carry.task_attributes.entry import TaskAttributes

# Of a process and of a thread, to be read and written (proc(5)).
_OF_PROCESS = ("coredump_filter",)
_OF_THREAD = ("timerslack_ns",)


def observe(pids: Iterable[int], proc: Path = Path("/proc")) -> TaskAttributes:
    """Attributes that are not what a new thread would have; a thread that is gone is left out."""
    usual_cpus = set(range(os.cpu_count() or 1))
    usual = {name: _text(f"{proc}/1/{name}") for name in (*_OF_PROCESS, *_OF_THREAD)}
    found = TaskAttributes()
    for pid in pids:
        _note(found, proc, str(pid), _OF_PROCESS, usual)
        for thread in _threads(proc, pid):
            with suppress(ProcessLookupError):
                cpus = os.sched_getaffinity(int(thread))
                if cpus != usual_cpus:
                    found.affinities[thread] = tuple(sorted(cpus))
                priority = syscalls.ioprio_get(int(thread))
                if priority:
                    found.io_priorities[thread] = priority
            _note(found, proc, thread, _OF_THREAD, usual)
    return found


def _threads(proc: Path, pid: int) -> list[str]:
    try:
        return os.listdir(f"{proc}/{pid}/task")
    except FileNotFoundError:
        return []


def _note(
    found: TaskAttributes, proc: Path, thread: str, names: Iterable[str], usual: dict[str, str]
) -> None:
    for name in names:
        value = _text(f"{proc}/{thread}/{name}")
        if value not in ("", usual[name]):
            found.files[f"{thread}/{name}"] = value


def _text(path: str) -> str:
    # Not every kernel is built with each of them.
    with suppress(OSError):
        return smallfiles.read(path).decode().strip()
    return ""
