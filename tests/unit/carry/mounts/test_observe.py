"""Mount tables of real kernels, and what the agent must mount before a restore."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Recorded, on_each_kernel

from rekernel import syscalls
from rekernel.carry.disks import observe as disks
from rekernel.carry.loops.observe import Loops
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.observe import TmpfsPlan

ODD_NAMES = [
    b"/mnt/odd/a b", b"/mnt/odd/tab\there", b"/mnt/odd/line\nfeed", b"/mnt/odd/back\\slash",
    b"/mnt/odd/#hash", "/mnt/odd/ü".encode(), b"/mnt/odd/latin\xfc", b"/mnt/odd/cr\rcr",
    b"/mnt/odd/vt\x0bvt", "/mnt/odd/ls\u2028ls".encode(), b"/mnt/odd/oct\\040al", b"/mnt/empty",
]  # fmt: skip


@on_each_kernel
def test_every_name_that_a_mount_can_have(recorded: Recorded) -> None:
    found = recorded.mounts("mountinfo-odd")
    assert [os.fsencode(mount.target) for mount in found] == ODD_NAMES
    assert {mount.fstype for mount in found} == {"tmpfs"}
    assert [mount.source for mount in found] == ["odd"] * 11 + [""]
    assert disks.unsupported(found, Loops()) == []


# seq_path() and mangle(): fs/proc_namespace.c.
def _escape(name: str) -> str:
    return re.sub(r"[ \t\n\\#]", lambda match: f"\\{ord(match[0]):03o}", name)


names = st.binary(min_size=1, max_size=30).map(
    lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape")
)


@given(st.lists(st.tuples(names, names, names), max_size=4))
def test_escaping(rows: list[tuple[str, str, str]]) -> None:
    text = "".join(
        f"{number} 1 0:{number} {_escape('/' + root)} {_escape('/' + target)} rw,noatime "
        f"shared:1 master:2 - ext4 {_escape(source)} ro,errors=panic\n"
        for number, (root, target, source) in enumerate(rows)
    )
    found = mounts.parse_mountinfo(text)
    assert [(item.root[1:], item.target[1:], item.source) for item in found] == rows
    assert all(item.options == ("rw", "noatime") for item in found)
    assert all(item.super_options == ("ro", "errors=panic") for item in found)


def test_this_machine() -> None:
    assert "/proc" in {mount.target for mount in mounts.observe()}


def test_one_that_has_ended() -> None:
    with subprocess.Popen(["true"]) as process:
        # Ended, and not reaped.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            mounts.observe(str(process.pid))
    with pytest.raises(FileNotFoundError):
        mounts.observe(str(1 << 30))


@on_each_kernel
def test_a_real_table(recorded: Recorded) -> None:
    table = recorded.mounts()
    assert disks.unsupported(table, Loops()) == []
    root = next(mount for mount in table if mount.target == "/")
    assert (root.fstype, root.source, root.device) == ("ext4", "/dev/vda", "254:0")
    assert root.super_options == ("rw", "errors=remount-ro")


@on_each_kernel
def test_the_plan_for_a_real_table(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = recorded.text("run-systemd").split()
    monkeypatch.setattr(os, "listdir", lambda path: listing)
    todo, contents = mounts.plan(recorded.mounts())
    monkeypatch.undo()
    by_target = {item.target: item for item in todo}
    assert set(by_target) == {
        "/dev/pts", "/run", "/sys/kernel/security", "/dev/shm", "/sys/fs/cgroup", "/sys/fs/pstore",
        "/sys/fs/bpf", "/run/lock", "/tmp", "/dev/mqueue", "/dev/hugepages", "/sys/kernel/tracing",
        "/sys/kernel/debug", "/sys/fs/fuse/connections", "/sys/kernel/config",
        "/proc/sys/fs/binfmt_misc",
    }  # fmt: skip
    # Parents first: a mount on top of it would hide what was mounted before.
    targets = [item.target for item in todo]
    assert targets.index("/run") < targets.index("/run/lock")

    restricted = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    run = by_target["/run"]
    assert run.flags == restricted | syscalls.MS_RELATIME
    assert re.fullmatch(r"size=\d+k,mode=755,inode64", run.data)
    assert run.contents == "tmpfs/run"
    assert by_target["/sys/fs/cgroup"].data == "nsdelegate,memory_recursiveprot"
    assert by_target["/sys/fs/cgroup"].contents == ""
    # Neither relatime nor noatime is shown.
    strict = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_STRICTATIME
    assert by_target["/dev/shm"].flags == strict
    assert by_target["/dev/hugepages"].data == "pagesize=2M"
    # Under an automount, which shall find its place empty when the machine runs.
    assert [item.target for item in todo if item.transient] == ["/proc/sys/fs/binfmt_misc"]

    assert [item.target for item in contents] == ["/run", "/dev/shm", "/run/lock", "/tmp"] or {
        item.target for item in contents
    } == {"/run", "/dev/shm", "/run/lock", "/tmp"}
    (of_run,) = (item for item in contents if item.target == "/run")
    assert {"lock", "udev", "rekernel", "systemd/journal", "systemd/notify"} <= {*of_run.exclude}
    assert not {"systemd", "systemd/propagate", "systemd/inaccessible", "redis"} & {*of_run.exclude}
    assert next(item for item in contents if item.target == "/tmp").exclude == ()


def test_runtime_directories_of_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "{} 1 0:{} / {} rw,nosuid,nodev - tmpfs tmpfs rw,size=9k,mode=700,uid={}"
    table = mounts.parse_mountinfo(
        "".join(f"{line.format(uid, uid, f'/run/user/{uid}', uid)}\n" for uid in (1000, 1001))
    )
    todo, contents = mounts.plan(table, {"/run/user/1001": ("systemd",)})
    assert [(item.target, item.data) for item in todo] == [
        ("/run/user/1001", "size=9k,mode=700,uid=1001")
    ]
    assert contents == [mounts.TmpfsPlan("/run/user/1001", ("systemd",))]


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("/run/utmp", True),
        ("/run/rekernel/events.jsonl", True),
        ("/run/systemd/inhibit/1.ref", True),
        ("/run/systemd/sessions/3.ref", False),
        ("/run/systemd/propagate/x", False),
        ("/run/user/1000/x", False),
        ("/run/rekernels", False),
        ("/run/screen/S-ann/1.x", False),
        ("/var/run", False),
    ],
)
def test_what_stays_with_this_kernel(path: str, stays: bool) -> None:
    assert mounts.stays_behind(path) is stays


@on_each_kernel
def test_mount_points_of_a_sandbox(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    assert mounts.mount_points(recorded.mounts("redis-server/mountinfo")) == [
        "/run/credentials",
        "/run/lock",
        "/run/redis",
        "/run/systemd/incoming",
        "/run/user",
    ]


def test_tmpfs_contents_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "run"
    for name in ("lock/x", "keep/lock/x", "a*/x", "abc/x", "systemd/notify/x", "[b]/x", "b"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("1")
    monkeypatch.chdir(top)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("keep/socket")
        os.mkfifo("keep/fifo")
        archive = tmp_path / "run.tar"
        plan = TmpfsPlan(str(top), ("lock", "a*", "systemd/notify", "[b]", "not-there"))
        mounts.archive_tmpfs(plan, archive)
    with tarfile.open(archive) as tar:
        files = {name for name in tar.getnames() if not tar.getmember(name).isdir()}
        names = set(tar.getnames())
    # Only what was named, only at the top, and a mount point's name is no pattern.
    assert files == {"./keep/lock/x", "./keep/fifo", "./abc/x", "./b"}
    assert "./systemd" in names
    assert not names & {"./lock", "./a*", "./[b]", "./systemd/notify"}


def test_a_tmpfs_with_nothing_to_carry(tmp_path: Path) -> None:
    plan = TmpfsPlan(str(tmp_path), ("systemd",))
    assert mounts.is_bare(plan)
    (tmp_path / "systemd/inner").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
    assert mounts.is_bare(plan)
    (tmp_path / "link").symlink_to("nowhere")
    assert not mounts.is_bare(plan)
    assert mounts.is_bare(TmpfsPlan(str(tmp_path / "none"), ()))


def test_bytes_of_a_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    for name in ("a/one", "a/b/two", "out/three", "a/out/four"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"x" * 8192)
    os.link(top / "a/one", top / "again")
    (top / "link").symlink_to("a/one")
    os.mkfifo(top / "fifo")
    # Of this the archive has one page.
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.truncate(2 << 20)
    (top / "empty").touch()
    (top / "hole").touch()
    os.truncate(top / "hole", 1 << 20)
    assert mounts.tmpfs_bytes(TmpfsPlan(str(top), ("out",))) == 3 * 8192 + 4096
    entries = mounts._entries

    def vanishing(directory: str) -> list[os.DirEntry[str]]:
        found = entries(directory)
        if directory == str(top / "a"):
            (top / "a/one").unlink()
        return found

    monkeypatch.setattr(mounts, "_entries", vanishing)
    # Its other name is still there, and what else is in that directory.
    assert mounts.tmpfs_bytes(TmpfsPlan(str(top), ("out",))) == 3 * 8192 + 4096
    assert mounts.tmpfs_bytes(TmpfsPlan(str(top), ("out", "a", "again"))) == 4096
