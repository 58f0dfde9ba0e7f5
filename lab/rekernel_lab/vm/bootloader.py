"""The lab as boot loader: kernel arguments and initrd come from the guest's own disk."""

from __future__ import annotations

import re
from pathlib import Path

from rekernel_lab.errors import LabError
from rekernel_lab.run import run

GRUB_CFG = "/boot/grub/grub.cfg"


def parse_grub_cfg(content: str) -> str:
    """Return the arguments of the first `linux` line, white space made single.

    Raises LabError if there is none.
    """
    match = re.search(r"^\s*linux\s+\S+(.*)$", content, re.MULTILINE)
    if not match:
        raise LabError("the guest's grub.cfg has no linux line", hint="update-grub writes it")
    return " ".join(match[1].split())


def compose(from_guest: str, extra: str) -> str:
    """Return the kernel command line: the guest's own arguments, then the lab's extra ones."""
    return " ".join([*from_guest.split(), *extra.split()])


def read_grub_cfg(disk: Path) -> str:
    """Return the guest's grub.cfg from the raw disk image of a VM that is not running."""
    # After a power cut the newest grub.cfg may still be in the journal only. 1: repaired.
    run(["e2fsck", "-y", "-E", "journal_only", disk], check=False)
    return run(["debugfs", "-R", f"cat {GRUB_CFG}", disk]).stdout.decode()


def copy_initrd(disk: Path, release: str, target: Path) -> None:
    """Copy the guest's initrd, which it may have made anew, from the same image."""
    run(["debugfs", "-R", f"dump /boot/initrd.img-{release} {target}", disk])
    if not target.exists() or not target.stat().st_size:
        raise LabError(f"the guest has no initrd for {release}", hint="update-initramfs makes it")
