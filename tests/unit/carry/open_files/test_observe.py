"""What reaches out of a process tree: of real services, and of this process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel.carry.open_files import observe as open_files
from rekernel.criu.descriptors import External, descriptors
from rekernel.criu.entry import Inherited


def replay(recorded: Recorded, unit: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(open_files, "descriptors", lambda pid: recorded.descriptors(unit))
    monkeypatch.setattr(open_files, "observe", lambda pid: recorded.mounts(f"{unit}/mountinfo"))
    return int(recorded.text(f"{unit}/pid"))


@on_each_kernel
def test_a_sandboxed_service(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = replay(recorded, "redis-server", monkeypatch)
    items = recorded.descriptors("redis-server")
    null = items[0]
    assert (null.link, null.flags) == ("/dev/null", 0o100000)
    key = f"file[{null.mount_id:x}:{null.inode:x}]"
    # Opened by systemd: /dev/null of the whole machine, not of the sandbox.
    assert open_files.files([pid]) == [
        External(key, Inherited("file", f"fd[{{fd}}]:{key}", "/dev/null", os.O_RDONLY)),
    ]


@on_each_kernel
def test_a_service_without_a_sandbox(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = replay(recorded, "nginx", monkeypatch)
    assert open_files.files([pid]) == []


@on_each_kernel
def test_processes_that_share_descriptors_name_them_once(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = replay(recorded, "redis-server", monkeypatch)
    once = open_files.files([pid])
    assert open_files.files([pid, pid]) == once


def test_this_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    memory = os.memfd_create("rekernel-test")
    with path.open("ab") as appending, path.open("rb") as reading, socket.socketpair()[0]:
        found = {item.number: item for item in descriptors(os.getpid())}
        file = found[appending.fileno()]
        assert (file.link, file.inode) == (str(path), path.stat().st_ino)
        assert file.flags & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND
        assert found[reading.fileno()].flags & os.O_ACCMODE == os.O_RDONLY
        found_files = open_files.files([os.getpid()])
        named = {item.inherited.path for item in found_files if item.inherited is not None}
        # Opened in this namespace; and a memfd is nobody's path, though its link looks like one.
        assert str(path) not in named
        assert found[memory].link == "/memfd:rekernel-test (deleted)"
        assert not [name for name in named if "memfd" in name]
    os.close(memory)
