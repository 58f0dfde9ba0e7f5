"""The control groups of carried units and those above, with what their owners have set below."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from rekernel import smallfiles
from rekernel.carry.cgroups.entry import Cgroup

_ROOT = Path("/sys/fs/cgroup")

# What can be set and what it is by itself (Documentation/admin-guide/cgroup-v2.rst). In a unit's
# own group and those above systemd sets these again, from its configuration.
_USUAL = {
    "cgroup.max.depth": "max",
    "cgroup.max.descendants": "max",
    "cpu.idle": "0",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.uclamp.max": "max",
    "cpu.uclamp.min": "0.00",
    "cpu.weight": "100",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "io.bfq.weight": "default 100",
    "io.max": "",
    "io.weight": "default 100",
    "memory.high": "max",
    "memory.low": "0",
    "memory.max": "max",
    "memory.min": "0",
    "memory.oom.group": "0",
    "memory.swap.high": "max",
    "memory.swap.max": "max",
    "pids.max": "max",
}
# What must not wait for that: without their shares of the processors systemd would be one of many
# that want them, and begin minutes later. Limits must: a restore may need more than what it makes.
_SHARES = frozenset({"cpu.idle", "cpu.weight"})


def above(groups: Iterable[str], root: Path = _ROOT) -> list[Cgroup]:
    """The control groups that these lie in, the root too, each before those below it."""
    paths = {str(parent) for path in groups for parent in PurePath(path).parents}
    return [_group(f"{root}{path}".rstrip("/"), root, _SHARES) for path in sorted(paths)]


def observe(unit_group: str, root: Path = _ROOT) -> list[Cgroup]:
    """A unit's control group and all below it, each before those below it."""
    top = f"{root}{unit_group}"
    found = []
    for directory, inner, names in os.walk(top):
        inner.sort()
        # One that is removed meanwhile has no processes either.
        with suppress(FileNotFoundError):
            # Which of them there are depends on what the group above passes on.
            found.append(_group(directory, root, _SHARES if directory == top else names))
    return found


def _group(directory: str, root: Path, names: Collection[str]) -> Cgroup:
    status = os.stat(directory)
    return Cgroup(
        path=directory.removeprefix(str(root)) or "/",
        uid=status.st_uid,
        gid=status.st_gid,
        passed_on=_read(f"{directory}/cgroup.subtree_control"),
        settings=_settings(directory, names),
    )


def _settings(directory: str, names: Collection[str]) -> dict[str, str]:
    found = {}
    for name in sorted(_USUAL.keys() & names):
        with suppress(FileNotFoundError):
            value = _read(f"{directory}/{name}")
            if value != _USUAL[name]:
                found[name] = value
    if found.get("cpu.idle") == "1":
        # It has none then.
        found.pop("cpu.weight", None)
    return found


def _read(path: str) -> str:
    return smallfiles.read(path).decode().strip()
