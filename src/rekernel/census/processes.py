"""Every process of the machine, accounted for exactly once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from rekernel import smallfiles
from rekernel.census.strangers import unit_of
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.records import record

_PROC = Path("/proc")
# include/linux/sched.h: PF_KTHREAD, in field 9 of /proc/PID/stat.
_KERNEL_THREAD = 0x00200000


class Fate(StrEnum):
    """What an upgrade means for a process: its unit's verdict, or that it is the kernel's own."""

    CARRIED = Verdict.CARRIED
    RESTARTED = Verdict.RESTARTED
    ENDS = Verdict.ENDS
    PLUMBING = Verdict.PLUMBING
    BLOCKS = Verdict.BLOCKS
    KERNEL = "kernel"


@record
class Process:
    """A line of /proc. ``cgroup``: its path below /sys/fs/cgroup."""

    pid: int
    parent: int
    command: str
    kernel_thread: bool
    cgroup: str


@record
class Account:
    """A process with what becomes of it. ``owner``: its unit, or what else it belongs to."""

    process: Process
    fate: Fate
    owner: str
    reason: str


def parse_stat(text: str, cgroup: str) -> Process:
    """From /proc/PID/stat (proc(5)) and the path in /proc/PID/cgroup."""
    head, _, tail = text.rpartition(")")
    pid, _, command = head.partition(" (")
    fields = tail.split()
    return Process(int(pid), int(fields[1]), command, bool(int(fields[6]) & _KERNEL_THREAD), cgroup)


def observe(proc: Path = _PROC) -> list[Process]:
    """Every process there is, by PID; one that ends meanwhile is left out."""
    found = []
    for pid in _numbers(proc):
        try:
            stat = os.fsdecode(smallfiles.read(f"{proc}/{pid}/stat"))
            cgroup = os.fsdecode(smallfiles.read(f"{proc}/{pid}/cgroup"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        # With cgroup v1 mounted beside it there are more lines; systemd's is the one of v2.
        lines = [line for line in cgroup.splitlines() if line.startswith("0::")]
        found.append(parse_stat(stat, lines[0][3:] if lines else ""))
    return found


def parents(proc: Path = _PROC) -> dict[int, int]:
    """PID -> parent's PID of every process."""
    found = {}
    for pid in _numbers(proc):
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = smallfiles.read(f"{proc}/{pid}/stat")
            # The name before it, in parentheses, may have any bytes in it.
            found[pid] = int(stat[stat.rindex(b")") :].split(maxsplit=3)[2])
    return found


def _numbers(proc: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(proc) if name.isdigit())


def account(processes: Sequence[Process], units: Sequence[UnitVerdict]) -> list[Account]:
    """One entry for each process, in their order."""
    owners = {pid: item for item in units for pid in item.processes}
    # A container starts and ends processes all the time.
    containers = {item.unit.name: item for item in units if item.container}
    return [
        _account(process, owners.get(process.pid) or containers.get(unit_of(process.cgroup)))
        for process in processes
    ]


def _account(process: Process, unit: UnitVerdict | None) -> Account:
    if process.kernel_thread:
        return Account(process, Fate.KERNEL, "kernel", "a thread of this kernel")
    if process.pid == 1:
        return Account(process, Fate.PLUMBING, "init.scope", "init: takes over what was carried")
    if unit is not None:
        return Account(process, Fate(unit.verdict), unit.unit.name, unit.reason)
    name = unit_of(process.cgroup)
    if name.endswith(".service"):
        # Started or stopped between the two looks.
        return Account(process, Fate.RESTARTED, name, "its service changes just now")
    if name:
        return Account(process, Fate.ENDS, name, "it changes just now")
    return Account(process, Fate.ENDS, process.cgroup or "/", "it belongs to no unit")


def totals(accounts: Sequence[Account]) -> dict[Fate, int]:
    """How many processes have each fate; every fate is there."""
    counted = Counter(item.fate for item in accounts)
    return {fate: counted[fate] for fate in Fate}
