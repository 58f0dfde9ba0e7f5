"""Virtual machines: start, wait for, reboot, end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import DeadlineError, LabError, LostVMError, UsageError
from rekernel_lab.images.rootfs import Image, ssh_keys
from rekernel_lab.run import environment
from rekernel_lab.vm import keeper, saved, state
from rekernel_lab.vm.guest import Guest
from rekernel_lab.vm.qemu import Machine, Monitor
from rekernel_lab.vm.state import Process, State

# Under emulation on a busy machine; with hardware help it takes a tenth of that.
BOOT_TIMEOUT_S = 300.0

_PANIC = b"Kernel panic - not syncing"


@dataclass(frozen=True, slots=True)
class VM:
    """A handle on a VM that a keeper process runs. Cheap to make, holds nothing open."""

    name: str
    # Of a connection into the guest that commands share: see Guest.connected().
    control: Path | None = None

    @property
    def state(self) -> State:
        """The state as the keeper last wrote it."""
        return state.load(self.name)

    @property
    def guest(self) -> Guest:
        """The way into the guest."""
        return Guest(self.state.namespace, ssh_keys(), self.control)

    def check_running(self) -> None:
        """Raise LostVMError if the VM ended."""
        now = self.state
        if now.phase in ("off", "failed"):
            raise LostVMError(
                f"VM {self.name} is {now.phase}" + (f": {now.error}" * bool(now.error))
            )
        if not now.keeper.alive():
            raise LostVMError(f"VM {self.name} lost its keeper", hint="rekernel-lab clean")

    def check_alive(self, serial_from: int = 0) -> None:
        """Raise LostVMError if the VM ended, or its kernel panicked.

        `serial_from` is the offset in the serial log where the boot in question begins.
        """
        self.check_running()
        with self.state.serial_log.open("rb") as serial:
            serial.seek(serial_from)
            content = serial.read()
        # A panic before the last boot is history: the machine came back from it.
        content = content[max(content.rfind(keeper.BOOT_MARK), 0) :]
        if _PANIC in content:
            line = content[content.index(_PANIC) :].split(b"\n", 1)[0].decode(errors="replace")
            raise LostVMError(f"VM {self.name}: {line.strip()}", hint="see its serial log")

    def registers(self) -> str:
        """Return what every processor is at, twice: where a guest hangs that says nothing.

        Raises LabError if QEMU does not answer.
        """
        ask = {"command-line": "info registers -a"}
        with contextlib.closing(self._monitor()) as monitor:
            once = monitor.execute("human-monitor-command", **ask)
            time.sleep(1)
            return f"{once}\n\nA second later:\n{monitor.execute('human-monitor-command', **ask)}\n"

    def save(self, directory: Path) -> None:
        """Stop the guest and save its state there; afterwards it can only be closed.

        Raises LabError if QEMU cannot do that.
        """
        with contextlib.closing(self._monitor()) as monitor:
            saved.save(monitor, self.state.disk, directory)

    def _monitor(self) -> Monitor:
        # By way of its directory, because the path of a socket may have 108 bytes only.
        try:
            directory = os.open(self.state.directory, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise LabError(f"VM {self.name} is gone: {error}") from error
        try:
            return Monitor(Path(f"/proc/self/fd/{directory}", self.state.questions.name))
        finally:
            os.close(directory)

    def serial_size(self) -> int:
        """Return the present length of the serial log in bytes."""
        return self.state.serial_log.stat().st_size

    def wait_ready(self, timeout: float = BOOT_TIMEOUT_S, serial_from: int = 0) -> None:
        """Wait until commands can be run in the guest, at most `timeout` seconds."""
        self.guest.wait_ready(timeout, lambda: self.check_alive(serial_from))

    def wait_started(self, timeout: float = BOOT_TIMEOUT_S) -> str:
        """Wait until the guest's systemd has started everything; return "running" or so."""
        done = self.guest.run(
            ["timeout", str(int(timeout)), "systemctl", "is-system-running", "--wait"],
            check=False,
            timeout=timeout + 30,
        )
        return done.stdout.decode().strip()

    def reboot(
        self,
        *,
        release: str | None = None,
        cmdline: str | None = None,
        timeout: float = BOOT_TIMEOUT_S,
    ) -> None:
        """Reboot through firmware and boot loader; with another kernel or arguments if given."""
        before = self.state
        changes = {"release": release, "cmdline": cmdline}
        before.save(**{key: value for key, value in changes.items() if value is not None})
        offset = self.serial_size()
        # Detached from the connection, which would otherwise wait for a dead sshd.
        self.guest.run("systemd-run --quiet --no-block systemctl reboot", timeout=60)
        deadline = time.monotonic() + timeout
        while self.state.boots == before.boots:
            self.check_alive(offset)
            if time.monotonic() > deadline:
                raise DeadlineError(f"VM {self.name} did not go down within {timeout:.0f} s")
            time.sleep(0.2)
        self.wait_ready(timeout, offset)

    def close(self, *, forget: bool = False) -> None:
        """End the VM and remove everything but its logs; with `forget` those too."""
        now = self.state
        now.remove_leftovers()
        if forget:
            state.forget(now)
        elif now.phase in ("starting", "running"):
            self.state.save(phase="off")


def start(
    name: str,
    machine: Machine,
    image: Image,
    release: str,
    *,
    cmdline: str = "",
    owned: bool = False,
    saved_state: Path | None = None,
) -> VM:
    """Start a VM; it ends with this process if it is `owned`, else it stays.

    It boots, or goes on from a saved state of a machine like this one.

    Raises UsageError if a VM of that name runs already.
    """
    vm_directory = state.vm_directory(name)
    with cache.lock(f"vm-{name}"):
        if (vm_directory / "state.json").exists():
            old = state.load(name)
            if old.keeper.alive():
                raise UsageError(f"VM {name} is running", hint=f"end it: rekernel-lab down {name}")
            state.forget(old)
        new = State(name, machine, image.directory, release, cmdline, saved_state)
        new.save()
        new.serial_log.touch()
        process = _start_keeper(new, owned)
        started = Process.of(process.pid)
        try:
            _wait_for_qemu(VM(name), process)
        except BaseException:
            started.end()
            state.load(name).remove_leftovers()
            raise
    return VM(name)


def _start_keeper(new: State, owned: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rekernel_lab.vm.keeper", new.name]
    with (new.directory / "keeper.log").open("ab") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command] if owned else command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A Ctrl-C at the terminal is for the lab, which then ends its VMs in order.
            start_new_session=True,
            env=environment({"PYTHONPATH": str(Path(__file__).resolve().parents[2])}),
        )


def _wait_for_qemu(vm: VM, process: subprocess.Popen[bytes], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while vm.state.phase == "starting":
        if process.poll() is not None and vm.state.phase == "starting":
            tail = (vm.state.directory / "keeper.log").read_text(errors="replace")[-1500:]
            raise LabError(f"the keeper of VM {vm.name} ended:\n{tail}")
        if time.monotonic() > deadline:
            raise DeadlineError(f"QEMU for {vm.name} did not start within {timeout:.0f} s")
        time.sleep(0.05)
    if vm.state.phase == "failed":
        raise LostVMError(vm.state.error)
