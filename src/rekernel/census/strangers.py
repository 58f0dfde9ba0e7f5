"""Processes that no service, login or container has: they end, and that is told beforehand.

Those of other scopes (a virtual machine, say), those that have moved to a control group of their
own, and what a service has left behind when it ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from rekernel import smallfiles
from rekernel.criu.options import trees_of
from rekernel.records import record
from rekernel.systemd.units import ACTIVE, Unit, may_travel, show

_PROC = Path("/proc")
# kthreadd, the parent of the kernel's threads.
_KERNEL = 2
_UNIT = re.compile(r"/([^/]+\.(?:service|scope))(?:/|$)")
# What of the initrd runs on, our pager too, and what systemd is about to place elsewhere.
_INIT = "init.scope"
_REMEDY = "only services, logins and podman's containers are carried: end it in good order before"


@record
class Stranger:
    """Processes of one owner: a scope, a unit that has ended, or a control group of no unit.

    ``processes``: PID -> control group.
    """

    unit: Unit
    reason: str
    remedy: str
    processes: dict[int, str]
    roots: tuple[int, ...]


def find(
    known: Collection[str],
    owned: Collection[int],
    parents: Mapping[int, int],
    proc: Path = _PROC,
) -> list[Stranger]:
    """Processes that no unit has, by name. Raises NoSystemdError.

    ``known``: units that were looked at. ``owned``: their processes. ``parents``: of every process.
    """
    groups: dict[str, dict[int, str]] = {}
    for pid in sorted(parents.keys() - set(owned)):
        if _is_the_systems(pid, parents):
            continue
        path = _group_of(pid, proc)
        name = unit_of(path)
        # What belongs to a unit that was looked at has just begun, or has another owner.
        if path and name != _INIT and name not in known:
            groups.setdefault(name or f"/{path.split('/')[1]}", {})[pid] = path
    shown = {unit.name: unit for unit in show([name for name in groups if name[0] != "/"])}
    found = []
    for name, processes in sorted(groups.items()):
        unit = shown.get(name)
        if unit is None:
            unit, reason = _of_no_unit(name), "it belongs to no unit"
        elif unit.active not in ACTIVE:
            reason = "it has ended, and has left this behind"
        elif may_travel(name):
            # Begun between the two looks.
            continue
        else:
            reason = "a scope, which is neither a login nor a container"
        roots = tuple(trees_of(processes, parents))
        found.append(Stranger(unit, reason, _REMEDY, processes, roots))
    return found


def unit_of(group: str) -> str:
    """The service or scope that a control group is of or lies in, "" if there is none."""
    match = _UNIT.search(group)
    return match[1] if match else ""


def _is_the_systems(pid: int, parents: Mapping[int, int]) -> bool:
    """Whether it is init, a thread of the kernel, or a program that one of these has started."""
    above = parents[pid]
    return pid in (1, _KERNEL) or above == _KERNEL or parents.get(above) == _KERNEL


def _group_of(pid: int, proc: Path) -> str:
    """Its control group of version 2; "" of one that has ended, waited for or not."""
    try:
        text = os.fsdecode(smallfiles.read(f"{proc}/{pid}/cgroup"))
        stat = smallfiles.read(f"{proc}/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if stat[stat.rindex(b")") + 2 :].startswith((b"Z", b"X")):
        return ""
    lines = [line for line in text.splitlines() if line.startswith("0::")]
    return lines[0][3:] if lines else ""


def _of_no_unit(group: str) -> Unit:
    return Unit(group, "active", "running", "", 0, group, "", {})
