#!/usr/bin/python3
"""In the guest: load a kernel as an upgrade would, or as a plain kexec reboot would.

Usage: jump.py floor KERNEL   with the product's own initrd and /floor in it; jumps at once
       jump.py plain KERNEL   with the distribution's initrd; `systemctl kexec` may follow
"""

import os
import sys
import time
from pathlib import Path

from rekernel import syscalls
from rekernel.kernel.installed import choose, installed
from rekernel.memory import region
from rekernel.transition import staging
from rekernel.transition.undo import UndoList


def cpio_of_floor() -> bytes:
    """A newc archive with /floor; a kernel unpacks several, one after the other."""
    content = Path("/root/bench/floor").read_bytes()
    archive = b""
    for name, mode, data in (("floor", 0o100755, content), ("TRAILER!!!", 0, b"")):
        fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields)
        archive += name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return archive


def main() -> None:
    """Do what the command line says."""
    how, wanted = sys.argv[1:]
    kernel = choose(wanted, installed())
    cmdline = staging.new_cmdline(Path("/proc/cmdline").read_text())
    if how == "plain":
        syscalls.kexec_file_load(str(kernel.image), f"/boot/initrd.img-{kernel.release}", cmdline)
        return
    load = syscalls.kexec_file_load

    def load_with_floor(image: str, initrd: str, arguments: str) -> None:
        path = Path(initrd)
        content = path.read_bytes()
        path.write_bytes(content + b"\0" * (-len(content) % 4) + cpio_of_floor())
        load(image, initrd, arguments)

    syscalls.kexec_file_load = load_with_floor
    began, tsc = time.monotonic_ns(), syscalls.rdtsc()
    undo = UndoList(Path("/run/rekernel/bench-undo.json"))
    staging.load_kernel(kernel, region.current(), None, f"{cmdline} rdinit=/floor", undo)
    os.sync()
    time.sleep(2)
    # A calibration over all that time, as the product does it.
    hertz = (syscalls.rdtsc() - tsc) * 10**9 // (time.monotonic_ns() - began)
    with open("/dev/console", "w") as console:
        console.write(f"\nrekernel-lab: jump {syscalls.rdtsc():x} {hertz}\n")
        console.flush()
    syscalls.reboot_kexec()


main()
