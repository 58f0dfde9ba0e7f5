"""Control groups, made before the processes that go into them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rekernel.pid1.console import Tolerated, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rekernel.carry.cgroups.entry import Cgroup

ROOT = Path("/sys/fs/cgroup")

# What whom a group is delegated to may write, beside making groups below it (systemd.exec(5),
# Documentation/admin-guide/cgroup-v2.rst).
_DELEGATED = ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


def make(groups: Sequence[Cgroup]) -> None:
    """Make these control groups, each listed before those below it."""
    for item in groups:
        with Tolerated(f"control group {item.path}"):
            _make(ROOT / item.path.lstrip("/"), item)


def _make(directory: Path, group: Cgroup) -> None:
    directory.mkdir(exist_ok=True)
    _pass_on(directory, group.passed_on.split())
    for name, value in group.settings.items():
        # One line at a time, as of several disks.
        for line in value.splitlines():
            _write(directory / name, line)
    if group.uid or group.gid:
        _give(directory, group.uid, group.gid)


def _pass_on(directory: Path, controllers: Iterable[str]) -> None:
    # One by one: together all would fail with one that this kernel does not have.
    for name in controllers:
        _write(directory / "cgroup.subtree_control", f"+{name}")


def _give(directory: Path, uid: int, gid: int) -> None:
    for name in _DELEGATED:
        try:
            os.chown(directory / name, uid, gid)
        except OSError as error:
            say(f"{directory / name} could not be given to user {uid}: {error.strerror}")


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        say(f"{path}: {value} could not be set: {error.strerror}")
