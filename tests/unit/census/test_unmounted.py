"""File systems that may wait for init, and how one tells who uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from rekernel.census import unmounted
from rekernel.host import mounts
from rekernel.host.mounts import MountInfo

ROOT = "21 1 254:0 / / rw shared:1 - tmpfs root rw"
NET = "22 21 0:50 / /net rw - nfs4 server:/x rw"


def table(*lines: str) -> list[MountInfo]:
    return mounts.parse_mountinfo("\n".join([ROOT, *lines]) + "\n")


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found: dict[str, int] = {}

    def in_use(pids: object, devices: Collection[str]) -> dict[str, int]:
        return {device: pid for device, pid in found.items() if device in devices}

    monkeypatch.setattr(unmounted, "in_use", in_use)
    return found


def test_what_nobody_uses_waits(users: dict[str, int]) -> None:
    lines = (
        NET,
        "23 22 0:51 / /net/below rw - tmpfs x rw",
        "24 21 0:50 /a /srv rw - nfs4 server:/x rw",
        "25 21 0:52 / /tmp rw - tmpfs tmp rw",
    )
    found = unmounted.judge(table(*lines), [10])
    assert found.problems == ()
    assert found.names == ("/net", "/srv")
    assert found.unmounted.targets == {"/net", "/net/below", "/srv"}
    assert found.unmounted.devices == {"0:50", "0:51"}
    left = [mount.target for mount in found.unmounted.others(table(*lines))]
    assert left == ["/", "/tmp"]
    # Of anything below, too.
    users["0:51"] = 10
    assert unmounted.judge(table(*lines), [10]).problems == (
        "/net (nfs4 on server:/x), used by process 10",
    )


def test_what_is_elsewhere_must_be_there(users: dict[str, int]) -> None:
    lines = (NET, "23 22 0:51 / /net/below rw - tmpfs x rw", "24 21 0:51 / /y rw - tmpfs x rw")
    found = unmounted.judge(table(*lines), [10])
    assert found.problems == ("/net (nfs4 on server:/x), part of which is at /y",)


def test_nothing_special(users: dict[str, int]) -> None:
    assert unmounted.judge(table(), [10]) == unmounted.Judged()


_PROGRAM = """
import mmap, os, sys
how, path = sys.argv[1:]
if how == "fd":
    kept = open(path)
elif how == "cwd":
    os.chdir(os.path.dirname(path))
elif how == "map":
    fd = os.open(path, os.O_RDWR)
    kept = mmap.mmap(fd, 4096)
    os.close(fd)
elif how == "watch":
    import ctypes
    libc = ctypes.CDLL(None)
    libc.inotify_add_watch(libc.inotify_init(), path.encode(), 2)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    subprocess.run(["mount", "-t", "tmpfs", "x", tmp_path], check=True)
    (tmp_path / "file").write_bytes(bytes(4096))
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("how", ["fd", "cwd", "map", "watch", "none"])
def test_who_uses_it(mounted: Path, how: str) -> None:
    device = next(item.device for item in mounts.observe() if item.target == str(mounted))
    words = [sys.executable, "-c", _PROGRAM, how, str(mounted / "file")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = unmounted.in_use([process.pid, 1 << 22], {device})
        process.communicate()
    assert found == ({device: process.pid} if how != "none" else {})
