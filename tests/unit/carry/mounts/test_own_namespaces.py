"""Mounts of another namespace get the flags that they had."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.carry.mounts import own_namespaces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_SCRIPT = """
mount -t tmpfs -o nosuid sandbox "$1" && mkdir "$1/a b" "$1/c" &&
mount --bind "$1/a b" "$1/a b" && mount --bind "$1/c" "$1/c" && echo ready && exec sleep 60
"""


@pytest.fixture
def pid(tmp_path: Path) -> Iterator[int]:
    words = ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_flags_are_set_again(pid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(own_namespaces, "miss", said.append)
    before = own_namespaces._flags(pid)
    ours = own_namespaces._flags(os.getpid())
    # Its threads may hold locks just now, which nobody would ever release in a child.
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("the agent was forked"))
    assert before[f"{tmp_path}/a b"] & syscalls.MS_NOSUID
    wanted = before | {
        f"{tmp_path}/a b": syscalls.MS_RDONLY | syscalls.MS_NODEV | syscalls.MS_RELATIME,
        f"{tmp_path}/c": syscalls.MS_STRICTATIME,
        "/not/there": syscalls.MS_RDONLY,
    }
    own_namespaces.remount(pid, wanted)
    # Of one that is not there nothing is wrong.
    del wanted["/not/there"]
    assert own_namespaces._flags(pid) == wanted
    assert said == []
    # Nobody else's are touched.
    assert own_namespaces._flags(os.getpid()) == ours


def test_what_cannot_be_set_is_said(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(own_namespaces, "miss", said.append)
    # No mount; and one that another one hides.
    monkeypatch.setattr(own_namespaces, "_flags", lambda pid: {"/usr/bin": 0, "/not/there": 0})
    own_namespaces.remount(pid, {"/usr/bin": syscalls.MS_RDONLY, "/not/there": syscalls.MS_RDONLY})
    words = "/usr/bin (Invalid argument)"
    assert said == [f"process {pid}: mounts with other flags than before: {words}"]
    said.clear()
    monkeypatch.setattr(own_namespaces, "_in_namespace", lambda pid, wanted, failed: 1 / 0)
    own_namespaces.remount(pid, {"/not/there": syscalls.MS_RDONLY})
    words = "perhaps all: division by zero"
    assert said == [f"process {pid}: mounts with other flags than before: {words}"]


def test_a_mount_that_never_returns(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others would wait for it."""
    said: list[str] = []
    done = threading.Event()
    monkeypatch.setattr(own_namespaces, "miss", said.append)
    monkeypatch.setattr(own_namespaces, "_LIMIT_S", 0.1)
    monkeypatch.setattr(own_namespaces, "_flags", lambda pid: {"/a": 0})
    monkeypatch.setattr(own_namespaces, "_in_namespace", lambda pid, wanted, failed: done.wait(60))
    own_namespaces.remount(pid, {"/a": syscalls.MS_RDONLY})
    done.set()
    words = "perhaps all: not done within 0 s"
    assert said == [f"process {pid}: mounts with other flags than before: {words}"]


def test_root_and_directory_of_everybody_else_stay(pid: int, tmp_path: Path) -> None:
    before = [os.readlink(f"/proc/self/{name}") for name in ("root", "cwd", "ns/mnt")]
    flags = own_namespaces._flags(pid)[f"{tmp_path}/c"]
    own_namespaces.remount(pid, {f"{tmp_path}/c": flags | syscalls.MS_RDONLY})
    assert own_namespaces._flags(pid)[f"{tmp_path}/c"] == flags | syscalls.MS_RDONLY
    assert [os.readlink(f"/proc/self/{name}") for name in ("root", "cwd", "ns/mnt")] == before
