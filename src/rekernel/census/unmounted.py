"""File systems that cannot be mounted for the restore and that nobody carried uses: init does it.

Network file systems, loop devices, layers of containers. Whether anybody uses one is asked without
touching it: a server may not answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rekernel.host import disks, mounts
from rekernel.host.mounts import MountInfo, contains

_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)", re.MULTILINE)
# A watch (inotify) names the device of what it watches (fs/notify/fdinfo.c).
_WATCHED = re.compile(r" sdev:([0-9a-f]+)")
_MINOR_BITS = 20


@dataclass(frozen=True, slots=True)
class Unmounted:
    """``targets``: where they are mounted on the host. ``devices``: theirs, as MAJOR:MINOR."""

    targets: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()

    def others(self, table: Iterable[MountInfo]) -> list[MountInfo]:
        """All mounts of the host but these."""
        return [mount for mount in table if mount.target not in self.targets]


@dataclass(frozen=True, slots=True)
class Judged:
    """``problems``: what must be mounted again and cannot be, in words. ``names``: what waits."""

    unmounted: Unmounted = field(default_factory=Unmounted)
    names: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def judge(table: Sequence[MountInfo], pids: Collection[int]) -> Judged:
    """Which of the host's mounts only init makes again. ``pids``: all carried processes."""
    unsupported = disks.unsupported(table)
    if not unsupported:
        return Judged()
    groups = {mount: _with_all_on_it(mount, table) for mount in unsupported}
    devices = {mount.device for group in groups.values() for mount in group}
    users = in_use(pids, devices)
    left: set[MountInfo] = set()
    names = []
    problems = []
    for mount, words in unsupported.items():
        group = groups[mount]
        its_own = {other.device for other in group}
        elsewhere = [other for other in table if other.device in its_own and other not in group]
        user = next((users[device] for device in its_own if device in users), None)
        if user is not None:
            problems.append(f"{words}, used by process {user}")
        elif elsewhere:
            problems.append(f"{words}, part of which is at {elsewhere[0].target}")
        else:
            left.update(group)
            names.append(mount.target)
    found = Unmounted(
        frozenset(mount.target for mount in left), frozenset(mount.device for mount in left)
    )
    return Judged(found, tuple(names), tuple(problems))


def _with_all_on_it(mount: MountInfo, table: Sequence[MountInfo]) -> list[MountInfo]:
    """With what is mounted below it, and what shows a part of it."""
    return [
        other
        for other in table
        if other.device == mount.device or contains(mount.target, other.target)
    ]


def in_use(pids: Iterable[int], devices: Collection[str]) -> dict[str, int]:
    """Of these devices (MAJOR:MINOR) those with something that a process has open or maps: which
    process. One that has ended uses nothing.
    """
    tables: dict[str, dict[str, str]] = {}
    found: dict[str, int] = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in tables:
                seen = mounts.observe(str(pid))
                tables[namespace] = {str(mount.mount_id): mount.device for mount in seen}
            for device in _devices_of(pid, tables[namespace]):
                if device in devices:
                    found.setdefault(device, pid)
    return found


def _devices_of(pid: int, table: dict[str, str]) -> Iterator[str]:
    process = Path("/proc", str(pid))
    texts = []
    for path in (process / "fdinfo").iterdir():
        with suppress(FileNotFoundError):
            texts.append(path.read_text())
    for name in ("cwd", "root", "exe"):
        with suppress(FileNotFoundError):
            fd = os.open(process / name, os.O_PATH | os.O_CLOEXEC)
            try:
                texts.append(Path(f"/proc/self/fdinfo/{fd}").read_text())
            finally:
                os.close(fd)
    for text in texts:
        match = _MOUNT_ID.search(text)
        if match and match[1] in table:
            yield table[match[1]]
        for number in _WATCHED.findall(text):
            device = int(number, 16)
            yield f"{device >> _MINOR_BITS}:{device & (1 << _MINOR_BITS) - 1}"
    for line in os.fsdecode((process / "maps").read_bytes()).split("\n"):
        fields = line.split(None, 5)
        if len(fields) > 3:
            major, _, minor = fields[3].partition(":")
            yield f"{int(major, 16)}:{int(minor, 16)}"
