"""From the initrd to the root file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rekernel.agent import boot
from rekernel.agent.boot import RootNotFoundError

SOURCE = Path(__file__).parents[3] / "src"
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


@pytest.mark.skipif(shutil.which("mkfs.ext4", path=_PATH) is None, reason="needs mkfs.ext4")
def test_the_uuid_is_what_blkid_says(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    assert boot._ext4_uuid(str(image)) is None
    environment = {"PATH": _PATH}
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], env=environment, check=True)
    blkid = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "UUID", str(image)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    uuid = blkid.stdout.strip()
    assert len(uuid) == 36
    assert boot._ext4_uuid(str(image)) == uuid
    os.truncate(image, 1024 + 0x77)
    assert boot._ext4_uuid(str(image)) is None


def test_what_is_no_disk(tmp_path: Path) -> None:
    assert boot._ext4_uuid(str(tmp_path)) is None
    assert boot._ext4_uuid(str(tmp_path / "gone")) is None


def test_no_root_file_system() -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    with pytest.raises(RootNotFoundError, match=f"no block device has the root .* {uuid}"):
        boot.find_root(uuid, timeout=0)


def test_modules_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "b.ko").write_bytes(b"no module")
    failed = boot.load_modules([[str(tmp_path / "a.ko"), str(tmp_path / "b.ko")], []], {})
    assert len(failed) == 2
    assert "a.ko: No such file or directory" in failed
    # Operation not permitted, or Exec format error: this kernel's word.
    assert [line for line in failed if line.startswith("b.ko: ")]


def test_prefetch_passes_over_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    boot.prefetch([str(tmp_path / "gone"), str(tmp_path / "file")])


# Below a directory, in a mount namespace of its own.
_MOUNTS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rekernel.agent import boot
from rekernel.handover.manifest import Mount
top = sys.argv[2]
mounts = [
    Mount(f"{top}/run", "tmpfs", "tmpfs", 6, "size=5120k,mode=755"),
    Mount(f"{top}/run/a b", "tmpfs", "odd", 14, "", "", True),
    Mount(f"{top}/run/a b/latin\\udcfc", "tmpfs", "tmpfs", 0, "", "", True),
]
boot.mount_all(mounts)
boot.mount_all(mounts)
def table():
    with open("/proc/self/mountinfo", "rb") as file:
        return [line.split() for line in file if os.fsencode(top) in line]
lines = table()
assert len(lines) == 3, lines
assert lines[0][5].startswith(b"rw,nosuid,nodev"), lines
assert b"size=5120k" in lines[0][-1] and b"mode=755" in lines[0][-1], lines
assert lines[1][5].startswith(b"rw,nosuid,nodev,noexec"), lines
assert lines[2][4].endswith(b"/a\\\\040b/latin\\xfc"), lines
boot.unmount_transient(mounts)
assert [line[4] for line in table()] == [os.fsencode(top) + b"/run"]
try:
    boot.mount_all([Mount(f"{top}/x", "no-such-fs", "x", 0)])
except OSError as error:
    assert error.filename == f"{top}/x", error
    assert error.errno == 19, error
else:
    raise AssertionError
"""


def _can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    script = "mount -t tmpfs tmpfs /mnt"
    return (
        subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not _can_mount(), reason="needs root and mount namespaces")
def test_mounts(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _MOUNTS, str(SOURCE), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
