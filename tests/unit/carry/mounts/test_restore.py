"""Mounts, made again before the restore."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from said import Said

from rekernel import syscalls
from rekernel.carry.block import superblocks
from rekernel.carry.mounts import restore as mounts
from rekernel.carry.mounts.entry import Mount

SOURCE = Path(__file__).parents[4] / "src"


def test_a_disk_that_does_not_come_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(mounts, "_DISK_LIMIT_S", 0)
    stands: list[str] = []
    target = str(tmp_path / "a")
    mounts.mount_all([Mount(target, "xfs", "", 0, uuid="no-such")], stands.append)
    assert stands == ["/", target]
    assert f"{tmp_path}/a is not mounted: no block device has no-such" in said.lines[0]


def test_options_that_this_kernel_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    done: list[tuple[Any, ...]] = []

    def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
        done.append((source, fstype, flags, data))
        if "attr" in data:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(syscalls, "mount", mount)
    monkeypatch.setattr(superblocks, "find", lambda uuid, timeout: f"/dev/{uuid}")
    target = str(tmp_path / "a")
    mounts.mount_all([Mount(target, "btrfs", "", 1, data="attr9,subvol=/x", uuid="u")], print)
    assert done == [
        ("/dev/u", "btrfs", 1, "attr9,subvol=/x"),
        ("/dev/u", "btrfs", 1, "subvol=/x"),
    ]
    assert "is mounted without its options" in said.lines[0]


# Below a directory, in a mount namespace of its own.
_MOUNTS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rekernel.carry.mounts import restore
from rekernel.pid1 import console
from rekernel.carry.block import superblocks
from rekernel.carry.mounts.entry import Mount
top = sys.argv[2]
mounts = [
    Mount(f"{top}/run", "tmpfs", "tmpfs", 6, "size=5120k,mode=755"),
    Mount(f"{top}/run/a b", "tmpfs", "odd", 14, "", "", True),
    Mount(f"{top}/run/a b/latin\\udcfc", "tmpfs", "tmpfs", 0, "", "", True),
]
restore.mount_all(mounts, str)
restore.mount_all(mounts, str)
def table():
    with open("/proc/self/mountinfo", "rb") as file:
        return [line.split() for line in file if os.fsencode(top) in line]
lines = table()
assert len(lines) == 3, lines
assert lines[0][5].startswith(b"rw,nosuid,nodev"), lines
assert b"size=5120k" in lines[0][-1] and b"mode=755" in lines[0][-1], lines
assert lines[1][5].startswith(b"rw,nosuid,nodev,noexec"), lines
assert lines[2][4].endswith(b"/a\\\\040b/latin\\xfc"), lines
restore.unmount_transient(mounts)
assert [line[4] for line in table()] == [os.fsencode(top) + b"/run"]
restore.mount_all([Mount(f"{top}/x", "no-such-fs", "x", 0)], str)
(text,) = console.missing
assert text == f"{top}/x is not mounted: [Errno 19] No such device: {top + '/x'!r}", text
restore.mount_all([Mount(f"{top}/y", "tmpfs", "t", 0, "size=4k,no-such-option")], str)
assert b"size=4k" in table()[-1][-1], table()
"""


def _can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    script = "mount -t tmpfs tmpfs /mnt"
    return (
        subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not _can_mount(), reason="needs root and mount namespaces")
def test_mounts(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _MOUNTS, str(SOURCE), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
