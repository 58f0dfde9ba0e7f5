"""QEMU: its command line, and its machine protocol (QMP)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekernel_lab.errors import LabError
from rekernel_lab.vm.netns import TAP

BINARY = "qemu-system-x86_64"
_UEFI = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
# Its variables at first: each machine gets its own.
UEFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

# Writing to a page costs QEMU much more while it keeps translations of code that the page held.
# With 1 GB of them the first kernel after the boot wrote 45 MB in 4.5 to 10 s, with 256 in 0.7 s;
# with 128 MB it is as fast, but everything else takes a third longer.
# On a CPU with fast string instructions (ERMS, FSRM) the kernel clears and copies pages with those,
# which QEMU emulates byte by byte: criu's dump of 101 processes took 4.1 s, without them 3.2 s.
_ACCELERATORS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,erms=off,fsrm=off"],
}
# Kernels look for broken timers by waiting for four ticks, and panic if they miss them ("IO-APIC +
# timer doesn't work!"): seen on a busy host. With KVM they leave that out by themselves
# (kvm_guest_init() in arch/x86/kernel/kvm.c).
_KERNEL_ARGUMENTS = {"kvm": "", "tcg": "no_timer_check"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What kind of virtual machine to run."""

    accelerator: str
    memory_mib: int = 6144
    cpus: int = 2
    # Of a second disk, which is empty at first; 0 for none.
    disk_mib: int = 0
    # Firmware as of a new machine; else as of an old one (BIOS).
    uefi: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """What the boot loader decides: which kernel, and its command line."""

    kernel: Path
    initrd: Path
    cmdline: str


def accelerator_arguments(name: str) -> list[str]:
    """Return the QEMU options for accelerator `name` ("kvm" or "tcg")."""
    return list(_ACCELERATORS[name])


def kernel_arguments(name: str) -> str:
    """Return what a kernel is told with accelerator `name`."""
    return _KERNEL_ARGUMENTS[name]


def command(
    machine: Machine,
    boot: Boot,
    *,
    disk: Path,
    second: Path,
    variables: Path,
    serial: Path,
    qmp: Path,
    questions: Path,
) -> list[str]:
    """Return the complete QEMU command line; `second` is used if the machine has a second disk,
    `variables` if it has UEFI. `qmp` is the keeper's; anybody may ask on `questions`.

    -no-reboot makes QEMU end on a real reboot or power-off; a kexec inside goes unnoticed.
    """
    flash = [
        "-drive", f"if=pflash,unit=0,file={_UEFI},format=raw,readonly=on",
        "-drive", f"if=pflash,unit=1,file={variables},format=raw",
    ]  # fmt: skip
    another = f"if=none,id=second,file={second},format=raw,cache=unsafe,discard=unmap"
    return [
        BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,usb=off,smbus=off,sata=off",
        *accelerator_arguments(machine.accelerator),
        *(flash * machine.uefi),
        "-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M",
        "-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", boot.cmdline,
        # The disk is a throw-away copy: no need to wait for the host's own disk.
        "-drive", f"if=none,id=disk,file={disk},format=raw,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=disk",
        *(["-drive", another, "-device", "virtio-blk-pci,drive=second"] * bool(machine.disk_mib)),
        "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no",
        "-device", "virtio-net-pci,netdev=net,mac=52:54:00:4c:41:42,romfile=",
        "-device", "virtio-rng-pci",
        "-chardev", f"file,id=serial,path={serial},append=on", "-serial", "chardev:serial",
        "-qmp", f"unix:{qmp},server=on,wait=off",
        "-qmp", f"unix:{questions},server=on,wait=off",
    ]  # fmt: skip


# Added to a command line: QEMU does not boot, but waits for a saved state.
WAITING = ("-incoming", "defer")


class Monitor:
    """A QMP connection (docs/interop/qmp-spec of QEMU), as far as the lab needs it."""

    def __init__(self, path: Path, timeout: float = 10) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self._read()
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise LabError(f"QEMU does not answer on {path}: {error}") from error

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise LabError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, name: str, **arguments: Any) -> Any:
        """Run one QMP command and return what it returns.

        Raises LabError if it fails, or QEMU does not answer.
        """
        request = {"execute": name, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            return self._answer(name)
        except (OSError, ValueError) as error:
            raise LabError(f"QEMU {name}: {error}") from error

    def _answer(self, name: str) -> Any:
        while True:
            message = self._read()
            if "error" in message:
                raise LabError(f"QEMU {name}: {message['error'].get('desc')}")
            if "return" in message:
                return message["return"]

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (event, data) until QEMU ends. Blocks without a limit."""
        self._socket.settimeout(None)
        while True:
            try:
                line = self._lines.readline()
            except OSError:
                return
            if not line:
                return
            message = json.loads(line)
            if "event" in message:
                yield message["event"], message.get("data", {})

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
