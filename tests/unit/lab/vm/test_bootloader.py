"""The guest's update-grub, and what the lab reads out of its grub.cfg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rekernel_lab.errors import LabError
from rekernel_lab.images.guestfiles import DEFAULT_GRUB, ROOT_LABEL, UPDATE_GRUB
from rekernel_lab.vm.bootloader import compose, parse_grub_cfg


def update_grub(root: Path) -> str:
    """Run the guest's script over `root` and return the kernel arguments it leaves."""
    subprocess.run(["sh", "-c", UPDATE_GRUB], env={"LAB_ROOT": str(root)}, check=True)
    return parse_grub_cfg((root / "boot/grub/grub.cfg").read_text())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the defaults file of the image."""
    (tmp_path / "etc/default/grub.d").mkdir(parents=True)
    (tmp_path / "etc/default/grub").write_text(DEFAULT_GRUB)
    return tmp_path


def test_defaults(root: Path) -> None:
    assert update_grub(root) == f"root=LABEL={ROOT_LABEL} ro console=ttyS0,115200 quiet"


def test_drop_ins_add_in_order(root: Path) -> None:
    drop_ins = root / "etc/default/grub.d"
    (drop_ins / "rekernel.cfg").write_text(
        'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX memmap=2G!4G memmap=2G%4G-12+0xefffffff"\n'
    )
    (drop_ins / "a.cfg").write_text(
        'GRUB_CMDLINE_LINUX_DEFAULT="${GRUB_CMDLINE_LINUX_DEFAULT} x"\n'
    )
    (drop_ins / "ignored.txt").write_text("exit 1\n")
    assert update_grub(root).split()[2:] == [
        "console=ttyS0,115200",
        "memmap=2G!4G",
        "memmap=2G%4G-12+0xefffffff",
        "quiet",
        "x",
    ]


def test_without_any_file(tmp_path: Path) -> None:
    assert update_grub(tmp_path) == f"root=LABEL={ROOT_LABEL} ro"


def test_broken_drop_in_keeps_the_old_configuration(root: Path) -> None:
    before = update_grub(root)
    (root / "etc/default/grub.d/bad.cfg").write_text("false\n")
    with pytest.raises(subprocess.CalledProcessError):
        update_grub(root)
    assert parse_grub_cfg((root / "boot/grub/grub.cfg").read_text()) == before


def test_no_linux_line() -> None:
    with pytest.raises(LabError, match="no linux line"):
        parse_grub_cfg("# linux /boot/vmlinuz\nset timeout=0\n")


def test_extra_arguments_come_last() -> None:
    assert compose("root=/dev/vda  quiet", " a=1  b ") == "root=/dev/vda quiet a=1 b"
    assert compose("root=/dev/vda", "") == "root=/dev/vda"
