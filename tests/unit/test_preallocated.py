"""Files that can be written when there is no room left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rekernel import preallocated


def test_reserved_room_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.json"
    preallocated.reserve(path, 64 << 10)
    assert not path.exists()
    (taken,) = path.parent.iterdir()
    inode = taken.stat().st_ino
    assert taken.stat().st_blocks * 512 >= 64 << 10
    preallocated.write(path, "short\n")
    assert path.read_text() == "short\n"
    assert path.stat().st_ino == inode
    assert os.listdir(path.parent) == ["report.json"]


def test_without_a_reservation(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    preallocated.write(path, "a longer text\n")
    preallocated.write(path, "short\n")
    assert path.read_text() == "short\n"


def test_what_was_there_stays_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    preallocated.reserve(path, 4096)
    assert path.read_text() == "old"
    preallocated.write(path, "new")
    assert path.read_text() == "new"
