"""Watches of symbolic links: real ones, and images of them."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagefiles import image, message, varint

from rekernel.carry.inotify.entry import WATCHED
from rekernel.carry.inotify.observe import LINK, Watched, observe, observe_all, pin, recall
from rekernel.criu.images import ImageError
from rekernel.errors import RekernelError
from rekernel.records import replace
from rekernel.transition.amend import Wanted, amend, amend_images

# sys/inotify.h
_IN_ATTRIB, _IN_DONT_FOLLOW = 0x4, 0x02000000
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def inotify() -> Iterator[int]:
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    yield fd
    os.close(fd)


def watch(fd: int, path: Path) -> None:
    assert _libc.inotify_add_watch(fd, os.fsencode(path), _IN_ATTRIB | _IN_DONT_FOLLOW) >= 0


@pytest.fixture
def link(tmp_path: Path) -> Path:
    path = tmp_path / "link"
    path.symlink_to("/etc/passwd")
    return path


def entry(fd: int, path: bytes = b"") -> bytes:
    """As criu writes an inotify descriptor with one watch."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    match = re.search(r"sdev:(\w+) .*fhandle-bytes:(\w+) fhandle-type:(\w+) f_handle:(\w+)", info)
    assert match
    device, size, kind = (int(match[number], 16) for number in (1, 2, 3))
    numbers = struct.unpack("<16Q", bytes.fromhex(match[4]).ljust(128, b"\0"))
    handle = message(f1=size, f2=kind) + b"".join(b"\x18" + varint(value) for value in numbers)
    handle += message(f4=path) if path else b""
    one = message(f1=1, f2=9, f3=4, f4=0, f5=device, f6=1, f7=handle)
    return message(f1=13, f2=1, f13=message(f1=1, f2=0, f4=b"", f5=one))


def test_what_is_watched(inotify: int, link: Path, tmp_path: Path) -> None:
    assert os.readlink(f"/proc/self/fd/{inotify}") == LINK
    assert list(observe(os.getpid(), inotify)) == []
    watch(inotify, link)
    watch(inotify, tmp_path)
    assert sorted(observe(os.getpid(), inotify)) == [str(tmp_path), str(link)]


def test_what_is_deleted_has_no_path(inotify: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w"):
        watch(inotify, path)
        path.unlink()
        assert list(observe(os.getpid(), inotify)) == [""]
        with pytest.raises(RekernelError, match="has no path any more"):
            amend(image(entry(inotify)), Wanted(), {})


def test_a_path_takes_the_place_of_the_handle(inotify: int, link: Path) -> None:
    watch(inotify, link)
    data = image(entry(inotify))
    before = len(data)
    known = {"0": "/etc/localtime"}
    assert amend(data, Wanted(), known)[0] == 1
    assert known == {"0": "/etc/localtime", "1": str(link)}
    assert len(data) == before
    path = re.search(rb'"(.)(/run/rekernel/watched/+1)', data)
    assert path
    assert path[1] == bytes([len(path[2])])
    assert os.path.normpath(path[2].decode()) == f"{WATCHED}/1"
    # Another one watches the same.
    assert amend(image(entry(inotify)), Wanted(), known)[0] == 1
    assert len(known) == 2


def test_what_has_a_path_keeps_it(inotify: int, link: Path) -> None:
    watch(inotify, link)
    data = image(entry(inotify, b"/etc/x"))
    assert amend(data, Wanted(), {})[0] == 0
    # In a mount namespace of its own criu finds it by its handle.
    assert amend(image(entry(inotify)), Wanted(), None)[0] == 0


def test_all_trees(inotify: int, link: Path, tmp_path: Path) -> None:
    watch(inotify, link)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "files.img").write_bytes(image(entry(inotify)))
    (tmp_path / "b" / "mountpoints-9.img").write_bytes(image())
    assert amend_images(sorted(tmp_path.iterdir()), Wanted()).watched == {"0": str(link)}
    assert WATCHED.encode() in (tmp_path / "a" / "files.img").read_bytes()
    assert (tmp_path / "b" / "files.img").read_bytes() == image(entry(inotify))


def test_not_what_criu_writes() -> None:
    with pytest.raises(ImageError, match="no device or no handle"):
        amend(image(message(f13=message(f5=message(f1=1)))), Wanted(), {})


def test_a_deleted_file_that_criu_makes_again(inotify: int, tmp_path: Path) -> None:
    """With it comes its watch: criu finds it by the inode that it had."""
    path = tmp_path / "file"
    images = tmp_path / "tree"
    images.mkdir()
    with path.open("w"):
        watch(inotify, path)
        path.unlink()
        (images / "files.img").write_bytes(image(entry(inotify)))
        with pytest.raises(RekernelError, match="has no path any more"):
            amend_images([images], Wanted())
        # The file's own contents follow the entry, whatever they are.
        ghost = image(message(f1=0, f2=0, f3=0o100644, f4=5, f5=9)) + b"\xff\xff contents"
        (images / "ghost-file-1.img").write_bytes(ghost)
        assert amend_images([images], Wanted()).watched == {}
        assert (images / "files.img").read_bytes() == image(entry(inotify))


def test_of_a_fanotify_group(tmp_path: Path) -> None:
    # sys/fanotify.h: FAN_CLOEXEC, O_RDONLY; FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD
    group = _libc.fanotify_init(1, 0)
    if group < 0:
        pytest.skip(f"no fanotify here: {os.strerror(ctypes.get_errno())}")
    try:
        mask, here = ctypes.c_uint64(2), ctypes.c_int(-100)
        assert _libc.fanotify_mark(group, 1, mask, here, os.fsencode(tmp_path)) == 0
        (found,) = observe_all(os.getpid(), group)
    finally:
        os.close(group)
    status = tmp_path.stat()
    assert found.path == str(tmp_path)
    assert (found.device, found.inode) == (status.st_dev, status.st_ino)
    assert found.fstype


def test_a_file_is_looked_for_by_its_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "with\nnew lines"
    path.touch()
    status = path.stat()
    item = Watched("", status.st_dev, status.st_ino, "ext4", str(tmp_path))
    asked: list[str] = []
    monkeypatch.setattr(os, "lstat", lambda name: asked.append(name))
    recall(os.getpid(), item)
    recall(os.getpid(), replace(item, inode=1 << 60))
    monkeypatch.undo()
    assert asked == [f"/proc/{os.getpid()}/root{path}", ""]


def test_names_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere")
    (kept,) = pin(os.getpid(), [f"{tmp_path}/link", f"{tmp_path}/gone"])
    assert os.readlink(f"/proc/self/fd/{kept}") == f"{tmp_path}/link"
    os.close(kept)
