"""The control groups of carried units, with what their owners have set in those below."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rekernel.handover.manifest import Cgroup

_ROOT = Path("/sys/fs/cgroup")

# What can be set and what it is by itself (Documentation/admin-guide/cgroup-v2.rst). In a unit's
# own group systemd sets these again, from its configuration.
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


def observe(unit_group: str, root: Path = _ROOT) -> list[Cgroup]:
    """A unit's control group and all below it, each before those below it."""
    top = root / unit_group.lstrip("/")
    found = []
    for directory in [top, *sorted(path for path in top.glob("**/") if path != top)]:
        # One that is removed meanwhile has no processes either.
        with suppress(FileNotFoundError):
            status = directory.stat()
            found.append(
                Cgroup(
                    path="/" + str(directory.relative_to(root)),
                    uid=status.st_uid,
                    gid=status.st_gid,
                    passed_on=(directory / "cgroup.subtree_control").read_text().strip(),
                    settings={} if directory == top else _settings(directory),
                )
            )
    return found


def _settings(directory: Path) -> dict[str, str]:
    found = {}
    for name, usual in _USUAL.items():
        # Which of them there are depends on the controllers that the group above passes on.
        with suppress(FileNotFoundError):
            value = (directory / name).read_text().strip()
            if value != usual:
                found[name] = value
    return found
