"""What criu finds watched files by, as long as trees are restored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from said import Said

from rekernel.carry.inotify import restore as watched


def test_links_lead_to_files_that_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(watched, "WATCHED", str(tmp_path / "watched"))
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    with watched.leading_to({"0": str(link), "1": str(tmp_path / "gone")}):
        # As criu opens it.
        fd = os.open(tmp_path / "watched" / "0", os.O_PATH)
        assert os.fstat(fd).st_ino == link.lstat().st_ino
        os.close(fd)
        assert not os.path.lexists(tmp_path / "watched" / "1")
    assert not (tmp_path / "watched" / "0").exists()
    (line,) = said.lines
    assert f"{tmp_path}/gone cannot be watched again" in line


def test_nothing_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "WATCHED", str(tmp_path / "watched"))
    with watched.leading_to({}):
        assert not (tmp_path / "watched").exists()
