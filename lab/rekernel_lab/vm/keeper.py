"""The process that owns one VM: starts QEMU, boots it again as a boot loader would, cleans up.

Run as `python -m rekernel_lab.vm.keeper NAME`. It ends when the guest powers off, QEMU dies, or
it gets SIGTERM; QEMU never outlives it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from rekernel_lab.errors import LabError, LostVMError
from rekernel_lab.images.rootfs import Image
from rekernel_lab.run import environment, run
from rekernel_lab.vm import bootloader, qemu, saved, state
from rekernel_lab.vm.state import Process, State

# Relative to the VM's directory, because the path of a socket may have 108 bytes only.
_QMP = Path("qmp")

# What begins every boot in the serial log.
BOOT_MARK = b"\n[lab] boot "


class _Stop(BaseException):
    """SIGTERM or SIGINT arrived."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def _boot(vm: State) -> qemu.Boot:
    image = Image(vm.image)
    own = bootloader.parse_grub_cfg(bootloader.read_grub_cfg(vm.disk))
    bootloader.copy_initrd(vm.disk, vm.release, vm.initrd)
    extra = f"{qemu.kernel_arguments(vm.machine.accelerator)} {vm.cmdline}"
    return qemu.Boot(
        kernel=image.kernel(vm.release),
        initrd=vm.initrd,
        cmdline=bootloader.compose(own, extra),
    )


def _monitor(process: subprocess.Popen[bytes], vm: State) -> qemu.Monitor:
    deadline = time.monotonic() + 20
    while True:
        try:
            return qemu.Monitor(_QMP)
        except LabError:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (vm.directory / "qemu.log").read_text(errors="replace")[-800:].strip()
                raise LostVMError(f"QEMU did not start: {tail}") from None
            time.sleep(0.05)


def _run_once(vm: State, saved_state: Path | None) -> str:
    """Boot once, or go on from a saved state, and return why QEMU ended, in the words of QMP's
    SHUTDOWN event.
    """
    boot = _boot(vm)
    with vm.serial_log.open("ab") as serial:
        serial.write(BOOT_MARK + f"{vm.boots + 1}: {vm.release}: {boot.cmdline}\n".encode())
    command = qemu.command(
        vm.machine,
        boot,
        disk=vm.disk,
        second=vm.second_disk,
        variables=vm.variables,
        serial=vm.serial_log,
        qmp=_QMP,
        questions=Path(vm.questions.name),
    )
    if saved_state:
        command += qemu.WAITING
    with (vm.directory / "qemu.log").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *vm.namespace.wrap(*command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=vm.directory,
            env=environment(),
        )
    try:
        monitor = _monitor(process, vm)
        if saved_state:
            saved.resume(monitor, saved_state)
        vm.save(phase="running", boots=vm.boots + 1, qemu=Process.of(process.pid))
        reason = "lost"
        for event, data in monitor.events():
            if event == "SHUTDOWN":
                reason = str(data.get("reason", ""))
        process.wait(timeout=20)
        return reason
    finally:
        process.kill()
        process.wait()
        _QMP.unlink(missing_ok=True)
        vm.questions.unlink(missing_ok=True)


def keep(name: str) -> None:
    """Run VM `name` until it powers off; raises LostVMError if QEMU fails."""
    vm = state.load(name)
    vm = vm.save(keeper=Process.of(os.getpid()))
    source = saved.Saved(vm.saved).disk if vm.saved else Image(vm.image).disk
    run(["cp", "--sparse=always", "--reflink=auto", source, vm.disk])
    if vm.machine.disk_mib:
        run(["truncate", f"--size={vm.machine.disk_mib}M", vm.second_disk])
    if vm.machine.uefi:
        shutil.copy(qemu.UEFI_VARIABLES, vm.variables)
    vm.namespace.create()
    saved_state = vm.saved
    while True:
        reason = _run_once(vm, saved_state)
        saved_state = None
        # The kernel and the extra arguments may have been changed for this boot.
        vm = state.load(name)
        if reason != "guest-reset":
            break
    if reason != "guest-shutdown":
        said = (vm.directory / "qemu.log").read_text(errors="replace").strip()[-400:]
        raise LostVMError(f"QEMU ended ({reason}) {said}".strip())


def main() -> None:
    """Entry point of the keeper process."""
    name = sys.argv[1]
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    phase, error = "off", ""
    try:
        os.chdir(state.load(name).directory)
        keep(name)
    except _Stop:
        pass
    except Exception as problem:
        phase, error = "failed", str(problem)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        vm = state.load(name)
        vm.qemu.end(timeout=1)
        vm.namespace.delete()
        vm.remove_disks()
        vm.save(phase=phase, error=error)


if __name__ == "__main__":
    main()
