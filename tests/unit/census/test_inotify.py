"""Watches that criu makes again, and those that it does not: of real files if possible."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rekernel.carry.inotify import observe as inotify
from rekernel.census import inotify as watched
from rekernel.census.inotify import of_watches
from rekernel.criu.descriptors import Descriptor, descriptors
from rekernel.records import replace

_IN_ATTRIB = 4
_libc = ctypes.CDLL(None, use_errno=True)
# As Linux 6.12 shows them.
_FLAGS = "fanotify flags:{flags:x} event-flags:0\n"
_INODE = (
    "fanotify ino:4f sdev:800002 mflags:0 mask:20 ignored_mask:0 fhandle-bytes:8 "
    "fhandle-type:1 f_handle:4f00000000000000\n"
)
_MOUNT = "fanotify mnt_id:1d mflags:0 mask:2 ignored_mask:0\n"
_ASKED = "a fanotify group that is asked before a file is opened"
_FILE_SYSTEM = "fanotify sdev:800002 mflags:0 mask:2 ignored_mask:0\n"


@pytest.fixture
def group() -> Iterator[Descriptor]:
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    (item,) = (item for item in descriptors(os.getpid()) if item.number == fd)
    yield item
    with suppress(OSError):
        os.close(fd)


def watch(item: Descriptor, path: Path) -> None:
    assert _libc.inotify_add_watch(item.number, os.fsencode(path), _IN_ATTRIB) >= 0


def test_a_deleted_file(group: Descriptor, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w"):
        watch(group, path)
        assert of_watches(group, [os.getpid()]) is None
        path.unlink()
        # criu makes it again for who has it open, and with it the watch.
        assert of_watches(group, [os.getpid()]) is None
        found = of_watches(group, [])
        assert found
        assert found.what == "a watch (inotify) of a deleted file that only others have open"


def test_a_deleted_file_in_a_tmpfs(group: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = inotify.Watched("", 1, 2, "tmpfs", "/run", is_deleted=True)
    monkeypatch.setattr(inotify, "observe_all", lambda pid, number: iter([gone]))
    found = of_watches(group, [os.getpid()])
    assert found
    assert found.what == "a watch (inotify) of a deleted file in a tmpfs"


def test_a_name_that_the_kernel_has_forgotten(
    group: Descriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for, and then in memory again; if that fails criu would not find it either."""
    path = tmp_path / "file"
    path.touch()
    watch(group, path)
    known = list(inotify.observe_all(group.pid, group.number))
    forgotten = [replace(item, path="") for item in known]
    looks = [forgotten, known]
    monkeypatch.setattr(inotify, "observe_all", lambda pid, number: iter(looks.pop(0)))
    assert of_watches(group, []) is None
    assert looks == []
    asked: list[int] = []
    monkeypatch.setattr(inotify, "recall", lambda pid, item: asked.append(item.inode))
    looks += [forgotten, forgotten]
    found = of_watches(group, [])
    assert asked == [path.stat().st_ino]
    assert found
    assert f"of a file whose name the kernel has forgotten (inode {asked[0]} below /" in found.what
    assert "find -xdev -inum" in found.remedy


def test_what_stays(group: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    stays = inotify.Watched("/run/utmp", 1, 2, "tmpfs")
    monkeypatch.setattr(inotify, "observe_all", lambda pid, number: iter([stays]))
    found = of_watches(group, [])
    assert found
    assert found.what == "a watch (inotify) of /run/utmp, which stays with this kernel,"


def test_a_symbolic_link(
    group: Descriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    item = inotify.Watched(str(link), 1, 2, "ext4")
    monkeypatch.setattr(inotify, "observe_all", lambda pid, number: iter([item]))
    # The dump's images are mended for it.
    assert of_watches(group, []) is None
    found = of_watches(replace(group, link=inotify.FANOTIFY), [])
    assert found
    assert found.what == f"a mark (fanotify) of the symbolic link {link}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_FLAGS.format(flags=0) + _INODE + _MOUNT, ""),
        # FAN_REPORT_FID
        (_FLAGS.format(flags=0x200) + _INODE, ""),
        (
            _FLAGS.format(flags=0x4) + _INODE,
            _ASKED,
        ),
        (_FLAGS.format(flags=0x8), _ASKED),
        (_FLAGS.format(flags=0) + _FILE_SYSTEM, "a mark (fanotify) of a whole file system"),
    ],
)
def test_groups(text: str, words: str) -> None:
    found = watched._of_group(text)
    assert (found.what if found else "") == words


def test_what_is_no_watch() -> None:
    assert of_watches(Descriptor(7, 3, "/etc/passwd", 1, 0, 1), []) is None
