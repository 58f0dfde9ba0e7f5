from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from rekernel import smallfiles


def test_all_of_a_file(tmp_path: Path) -> None:
    data = os.urandom(200_001)
    smallfiles.create(str(tmp_path / "a"), data)
    assert smallfiles.read(str(tmp_path / "a")) == data
    smallfiles.create(str(tmp_path / "b"), b"short")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert smallfiles.read("b", directory) == b"short"
    finally:
        os.close(directory)


def test_what_comes_in_pieces() -> None:
    # More than a page, of which /proc gives as much at once as it likes.
    text = smallfiles.read("/proc/self/smaps")
    assert text.endswith(b"\n")
    assert b"[vsyscall]" in text or text.count(b"VmFlags:") > 20


def test_a_large_file_in_few_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of shared memory are as large: put together piece by piece they took minutes."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * (1 << 17))
    sizes = []
    real = os.read

    def read(fd: int, size: int) -> bytes:
        sizes.append(size)
        return real(fd, size)

    monkeypatch.setattr(os, "read", read)
    assert smallfiles.read(str(tmp_path / "a")) == (tmp_path / "a").read_bytes()
    assert len(sizes) == 2


def test_an_empty_file(tmp_path: Path) -> None:
    smallfiles.create(str(tmp_path / "a"), b"")
    assert smallfiles.read(str(tmp_path / "a")) == b""


def test_only_we_may_read(tmp_path: Path) -> None:
    smallfiles.create(str(tmp_path / "a"), b"secret")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_it_replaces_what_was_there(tmp_path: Path) -> None:
    smallfiles.create(str(tmp_path / "a"), b"longer than that")
    smallfiles.create(str(tmp_path / "a"), b"this")
    assert smallfiles.read(str(tmp_path / "a")) == b"this"


def test_writing_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        smallfiles.write(str(tmp_path / "a"), b"1")
    assert not (tmp_path / "a").exists()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    smallfiles.create(str(tmp_path / "a"), b"x")
    smallfiles.read(str(tmp_path / "a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        # Not the signal that comes with it: Python ignores SIGXFSZ.
        with pytest.raises(OSError, match="too large"):
            smallfiles.create(str(tmp_path / "b"), b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before
