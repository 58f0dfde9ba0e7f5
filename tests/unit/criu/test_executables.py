"""Executables that are open for their path only, in criu's images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imagefiles import image, message

from rekernel.criu.executables import separate
from rekernel.criu.images import ImageError
from rekernel.errors import RekernelError
from rekernel.transition.amend import Wanted, amend_images

PATH_ONLY = os.O_PATH | os.O_CLOEXEC


def regular(number: int, flags: int) -> bytes:
    return message(f1=1, f2=number, f3=message(f1=number, f2=flags, f3=0, f5=b"", f6=b"/usr/x"))


def memory(executable: int) -> bytes:
    return message(f1=1, f2=2, f12=executable)


def test_an_executable_gets_an_entry_of_its_own(tmp_path: Path) -> None:
    data = image(regular(3, os.O_RDONLY), regular(5, PATH_ONLY), regular(127, PATH_ONLY))
    before = bytes(data)
    for name, executable in (("a", 5), ("b", 5), ("c", 3)):
        (tmp_path / f"mm-{name}.img").write_bytes(image(memory(executable)))
    assert separate(data, tmp_path) == 1
    # 127 is taken; in as many bytes, as only O_RDONLY has fewer otherwise.
    padded = regular(126, PATH_ONLY).replace(b"\x10\x80\x80\xa0\x01", b"\x10\x80\x80\x80\x00")
    assert bytes(data[len(before) + 4 :]) == padded
    assert data[: len(before)] == before
    assert (tmp_path / "mm-a.img").read_bytes() == image(memory(126))
    assert (tmp_path / "mm-b.img").read_bytes() == image(memory(126))
    assert (tmp_path / "mm-c.img").read_bytes() == image(memory(3))


def test_numbers_of_two_bytes(tmp_path: Path) -> None:
    data = image(regular(300, PATH_ONLY))
    (tmp_path / "mm-1.img").write_bytes(image(memory(300)))
    assert separate(data, tmp_path) == 1
    assert (tmp_path / "mm-1.img").read_bytes() == image(memory((1 << 14) - 1))


def test_all_trees(tmp_path: Path) -> None:
    tree = tmp_path / "a"
    tree.mkdir()
    (tree / "files.img").write_bytes(image(regular(5, PATH_ONLY), regular(6, 0)))
    (tree / "mm-1.img").write_bytes(image(memory(6)))
    amend_images(tmp_path.iterdir(), Wanted())
    # Open for its path, but nobody runs it.
    assert (tree / "files.img").read_bytes() == image(regular(5, PATH_ONLY), regular(6, 0))


def test_not_what_criu_writes(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no number or no flags"):
        separate(image(message(f1=1, f2=5, f3=message(f1=5))), tmp_path)
    (tmp_path / "mm-1.img").write_bytes(image(memory(127)))
    crowded = image(*(regular(number, PATH_ONLY) for number in range(1, 128)), regular(0, 0))
    with pytest.raises(ImageError, match="too many open files"):
        separate(crowded, tmp_path)


def test_one_that_was_deleted(tmp_path: Path) -> None:
    (tmp_path / "mm-1.img").write_bytes(image(memory(5)))
    remapped = tmp_path / "remap-fpath.img"
    remapped.write_bytes(image(message(f1=6, f2=1)))
    assert separate(image(regular(5, PATH_ONLY)), tmp_path) == 1
    (tmp_path / "mm-1.img").write_bytes(image(memory(5)))
    remapped.write_bytes(image(message(f1=6, f2=1), message(f1=5, f2=2)))
    with pytest.raises(RekernelError, match="was replaced"):
        separate(image(regular(5, PATH_ONLY)), tmp_path)
