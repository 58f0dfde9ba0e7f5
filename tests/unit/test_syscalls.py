"""What Python does not offer; errors name what they are about."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rekernel import syscalls

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@as_root
def test_mount_errors_name_the_target(tmp_path: Path) -> None:
    target = f"{tmp_path}/latin\udcfc"
    with pytest.raises(FileNotFoundError) as error:
        syscalls.mount("tmpfs", target, "tmpfs")
    assert error.value.filename == target
    with pytest.raises(OSError, match="Invalid argument") as other:
        syscalls.umount(str(tmp_path))
    assert other.value.filename == str(tmp_path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    calls: list[Callable[[], None]] = [
        lambda: syscalls.finit_module(gone),
        lambda: syscalls.kexec_file_load(gone, gone, "root=x"),
        lambda: syscalls.kexec_file_load("/dev/null", gone, "root=x"),
        lambda: syscalls.freeze_filesystem(gone),
        lambda: syscalls.thaw_filesystem(gone),
    ]
    for call in calls:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(FileNotFoundError) as error:
            call()
        assert error.value.filename == gone
        assert os.listdir("/proc/self/fd") == before


def test_a_file_that_is_no_module(tmp_path: Path) -> None:
    path = tmp_path / "a.ko"
    path.write_bytes(b"no module")
    with pytest.raises(OSError) as error:
        syscalls.finit_module(str(path))
    assert error.value.filename == str(path)
    assert error.value.errno in (errno.ENOEXEC, errno.EPERM, errno.ENOSYS)


def test_the_counter_runs() -> None:
    readings = [syscalls.rdtsc() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[-1] > readings[0] > 0


_LOOPBACK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rekernel import syscalls
syscalls.unshare(syscalls.CLONE_NEWNET)
syscalls.set_link_up("lo")
syscalls.set_link_up("lo")
os.execvp("ip", ["ip", "-brief", "link", "show"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_loopback_of_a_network_namespace() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOPBACK, str(Path(__file__).parents[2] / "src")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Nothing but this: the namespace is a new one.
    (line,) = done.stdout.splitlines()
    assert "LOOPBACK,UP" in line


def test_no_such_interface() -> None:
    with pytest.raises(OSError, match="No such device"):
        syscalls.set_link_up("no-such-link")
