#!/usr/bin/python3
"""In the guest: load a kernel as an upgrade would, or as a plain kexec reboot would.

Usage: jump.py floor KERNEL   with the product's own initrd and /floor in it; jumps at once
       jump.py plain KERNEL   with the distribution's initrd; `systemctl kexec` may follow
"""

import os
import sys
import time
from pathlib import Path
from unittest import mock

from rekernel import syscalls
from rekernel.attempt.undo import UndoList
from rekernel.carry.memory import region
from rekernel.kernel import cmdline
from rekernel.kernel.cpio import CpioArchive
from rekernel.kernel.installed import Kernel, choose, installed
from rekernel.transition import staging

FLOOR = Path(__file__).with_name("floor")


def load_with_floor(kernel: Kernel, words: str) -> None:
    """The product's own way, but that /floor comes before its /init."""
    load = syscalls.kexec_file_load

    def with_floor(image: str, initrd: str, arguments: str) -> None:
        # A kernel unpacks several archives, one after the other.
        archive = CpioArchive()
        archive.file("floor", FLOOR.read_bytes(), 0o755)
        path = Path(initrd)
        content = path.read_bytes()
        path.write_bytes(content + bytes(-len(content) % 4) + archive.finish())
        load(image, initrd, arguments)

    undo = UndoList(Path("/run/rekernel/bench-undo.json"))
    with mock.patch.object(syscalls, "kexec_file_load", with_floor):
        loading, _ = staging.load_kernel(
            kernel, region.current(), None, f"{words} rdinit=/floor", undo
        )
        loading.finish(lambda: None)


def main() -> None:
    """Do what the command line says."""
    how, wanted = sys.argv[1:]
    kernel = choose(wanted, installed())
    words = cmdline.for_next(Path("/proc/cmdline").read_text())
    if how == "plain":
        initrd = f"/boot/initrd.img-{kernel.release}"
        syscalls.kexec_file_load(str(kernel.image), initrd, words)
        return
    began, tsc = time.monotonic_ns(), syscalls.rdtsc()
    load_with_floor(kernel, words)
    os.sync()
    time.sleep(2)
    # A calibration over all that time, as the product does it.
    hertz = (syscalls.rdtsc() - tsc) * 10**9 // (time.monotonic_ns() - began)
    with open("/dev/console", "w") as console:
        console.write(f"\nrekernel-lab: jump {syscalls.rdtsc():x} {hertz}\n")
        console.flush()
    syscalls.reboot_kexec()


if __name__ == "__main__":
    main()
