"""The archive, unpacked by cpio itself."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekernel.kernel.cpio import CpioArchive

pytestmark = pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")

parts = st.text("ab.-_ é", min_size=1, max_size=4).filter(lambda text: text not in (".", ".."))
# Files with and without an extension of their own keep apart from directories.
paths = st.lists(parts, min_size=1, max_size=4).map(lambda names: "/".join(names) + "~")
modes = st.integers(0, 0o777).map(lambda mode: mode | 0o400)
files = st.dictionaries(paths, st.tuples(st.binary(max_size=50), modes), max_size=6)


def unpack(archive: CpioArchive, target: Path) -> str:
    done = subprocess.run(
        ["cpio", "--extract", "--make-directories", "--verbose"],
        input=archive.finish(),
        cwd=target,
        capture_output=True,
        check=True,
    )
    # "N blocks" is all that it may say beside the names.
    return done.stderr.decode()


@settings(max_examples=25)
@given(files)
def test_round_trip(contents: dict[str, tuple[bytes, int]]) -> None:
    archive = CpioArchive()
    for name, (data, mode) in contents.items():
        archive.file(f"/{name}", data, mode)
        assert name in archive
        assert f"/{name}" in archive
    with tempfile.TemporaryDirectory() as scratch:
        unpack(archive, Path(scratch))
        found = {
            str(path.relative_to(scratch)): (
                path.read_bytes(),
                stat.S_IMODE(path.stat().st_mode),
            )
            for path in Path(scratch).rglob("*")
            if path.is_file()
        }
    assert found == contents


def test_the_first_of_two_stays() -> None:
    archive = CpioArchive()
    archive.file("a/b", b"first")
    archive.file("/a/b", b"second")
    with tempfile.TemporaryDirectory() as scratch:
        unpack(archive, Path(scratch))
        assert Path(scratch, "a/b").read_bytes() == b"first"


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_devices_and_links(tmp_path: Path) -> None:
    archive = CpioArchive()
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    archive.directory("proc")
    archive.symlink("lib64/ld.so", "../usr/lib/ld.so")
    unpack(archive, tmp_path)
    console = (tmp_path / "dev/console").stat()
    assert stat.S_ISCHR(console.st_mode)
    assert stat.S_IMODE(console.st_mode) == 0o600
    assert console.st_rdev == os.makedev(5, 1)
    assert (tmp_path / "dev/null").stat().st_rdev == os.makedev(1, 3)
    assert (tmp_path / "proc").is_dir()
    assert os.readlink(tmp_path / "lib64/ld.so") == "../usr/lib/ld.so"


def test_copies_are_found_under_every_name(tmp_path: Path) -> None:
    top = tmp_path / "machine"
    (top / "usr/lib").mkdir(parents=True)
    (top / "usr/lib/libx.so.1.2").write_bytes(b"object")
    (top / "usr/lib/libx.so.1.2").chmod(0o755)
    (top / "usr/lib/libx.so.1").symlink_to("libx.so.1.2")
    (top / "lib").symlink_to("usr/lib")
    archive = CpioArchive()
    names = [top / "lib/libx.so.1", top / "lib/libx.so.1.2", top / "usr/lib/libx.so.1"]
    for path in names:
        archive.copy(path)
    unpacked = tmp_path / "initrd"
    unpacked.mkdir()
    unpack(archive, unpacked)
    for path in names:
        copy = unpacked / path.relative_to("/")
        assert copy.read_bytes() == b"object"
        # Not by way of this machine.
        assert copy.resolve().is_relative_to(unpacked)
    assert (unpacked / (top / "usr/lib/libx.so.1.2").relative_to("/")).stat().st_mode & 0o111
