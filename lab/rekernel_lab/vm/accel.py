"""Which accelerator works here: found out by booting a kernel, not by looking at /dev/kvm."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import DeadlineError, UsageError
from rekernel_lab.run import run, text
from rekernel_lab.vm import qemu, tinyinit

KVM = Path("/dev/kvm")

# With a KVM that works, a kernel is there in two seconds.
_DEADLINE_S = 20.0

NAMES = ("kvm", "tcg")


def boots(name: str, kernel: Path, deadline: float = _DEADLINE_S) -> bool:
    """Tell whether `kernel` gets to user space on accelerator `name` within `deadline` s."""
    with tempfile.TemporaryDirectory(prefix="rekernel-lab-") as scratch:
        initrd = Path(scratch) / "initrd"
        initrd.write_bytes(tinyinit.initrd())
        serial = Path(scratch) / "serial"
        command = [
            qemu.BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", *qemu.accelerator_arguments(name), "-m", "512M",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", "console=ttyS0 quiet panic=-1", "-serial", f"file:{serial}",
        ]  # fmt: skip
        with contextlib.suppress(DeadlineError):
            run(["setpriv", "--pdeathsig", "KILL", *command], check=False, timeout=deadline)
        return serial.exists() and tinyinit.MARKER in serial.read_text(errors="replace")


def pick(kernel: Path, wanted: str = "") -> str:
    """Return the accelerator to use: `wanted`, else KVM if it can run `kernel`, else TCG.

    The answer is kept until this host is booted again or gets another QEMU.
    """
    if wanted:
        if wanted not in NAMES:
            raise UsageError(f"no accelerator {wanted!r}", hint=f"known: {', '.join(NAMES)}")
        return wanted
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"
    with cache.lock("accelerator"):
        path = cache.root() / "accelerator.json"
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        key = cache.key(boot_id, text([qemu.BINARY, "--version"]))
        if path.exists():
            known = json.loads(path.read_text())
            if known.get("key") == key:
                return str(known["accelerator"])
        answer = "kvm" if boots("kvm", kernel) else "tcg"
        path.write_text(json.dumps({"key": key, "accelerator": answer}) + "\n")
        return answer
