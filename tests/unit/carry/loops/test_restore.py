"""Loop devices on the next kernel."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from said import Said

from rekernel.carry.loops import restore as loops
from rekernel.carry.loops.entry import LoopDevice


def test_the_kernels_structure() -> None:
    path = "/srv/" + "x" * 80
    packed = loops.config(LoopDevice(42, path, "/", 1 << 20, 1 << 33, 4096, 1 | 8), 5)
    # sizeof(struct loop_config), and where include/uapi/linux/loop.h has its members.
    assert len(packed) == 304
    assert int.from_bytes(packed[0:4], "little") == 5
    assert int.from_bytes(packed[4:8], "little") == 4096
    assert int.from_bytes(packed[32:40], "little") == 1 << 20
    assert int.from_bytes(packed[40:48], "little") == 1 << 33
    assert int.from_bytes(packed[60:64], "little") == 9
    assert packed[64:128] == path.encode()[:63] + b"\0"


def test_in_the_order_of_the_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    (tmp_path / "disk").touch()
    done = []

    def ioctl(fd: int, command: int, value: bytes) -> None:
        name = os.readlink(f"/proc/self/fd/{int.from_bytes(value[:4], 'little')}")
        done.append((command, name))

    real = os.open

    def open_(path: str, flags: int) -> int:
        return real("/dev/null" if path.startswith("/dev/") else path, flags)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    inner = LoopDevice(2, f"{tmp_path}/disk", "/srv", 0, 0, 512, 4)
    gone = LoopDevice(3, f"{tmp_path}/gone", "/", 0, 0, 512, 0)
    attached = loops.Loops([inner, gone])
    attached.attach("/")
    (line,) = said.lines
    assert f"/dev/loop3 is not attached to {tmp_path}/gone: No such file or directory" in line
    attached.attach("/data")
    assert done == []
    before = len(os.listdir("/proc/self/fd"))
    attached.attach("/srv")
    attached.attach("/srv")
    assert done == [(0x4C0A, f"{tmp_path}/disk")]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    attached.close()
    assert len(os.listdir("/proc/self/fd")) == before
