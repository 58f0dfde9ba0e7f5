"""What is known about a VM, kept on disk so that any later lab can find and end it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekernel_lab import cache
from rekernel_lab.errors import LabError, UsageError
from rekernel_lab.vm.netns import Namespace
from rekernel_lab.vm.qemu import Machine


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the lab. PIDs are used again, so its start time is part of its name."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the identity of the running process `pid`."""
        return cls(pid, _start_time(pid) or 0)

    def alive(self) -> bool:
        """Tell whether that very process still runs."""
        return self.pid > 0 and _start_time(self.pid) == self.started

    def end(self, timeout: float = 20) -> None:
        """Terminate the process, at last by SIGKILL after `timeout` seconds."""
        for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
            if not self.alive():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            deadline = time.monotonic() + patience
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.05)


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat (clock ticks since boot), None if gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class State:
    """One VM. `release` and `cmdline` count from the next boot on."""

    name: str
    machine: Machine
    image: Path
    release: str
    cmdline: str = ""
    # The directory of the saved state that it begins with, if it does not boot.
    saved: Path | None = None
    # "starting", "running", "off" or "failed"
    phase: str = "starting"
    error: str = ""
    boots: int = 0
    keeper: Process = Process(0, 0)
    qemu: Process = Process(0, 0)

    @property
    def directory(self) -> Path:
        """Where everything about this VM is."""
        return vm_directory(self.name)

    @property
    def path(self) -> Path:
        """The state file itself."""
        return self.directory / "state.json"

    @property
    def serial_log(self) -> Path:
        """Everything the guest ever wrote to its serial console."""
        return self.directory / "serial.log"

    @property
    def disk(self) -> Path:
        """The VM's own disk."""
        return self.directory / "disk.raw"

    @property
    def initrd(self) -> Path:
        """What the VM's disk had at its last boot."""
        return self.directory / "initrd"

    @property
    def second_disk(self) -> Path:
        """Another one, if the machine has it."""
        return self.directory / "second.raw"

    @property
    def variables(self) -> Path:
        """What its UEFI remembers, if it has that."""
        return self.directory / "uefi-variables.fd"

    @property
    def questions(self) -> Path:
        """The socket on which QEMU answers questions of one caller at a time."""
        return self.directory / "questions"

    @property
    def namespace(self) -> Namespace:
        """The VM's network namespace. Its name differs between caches too."""
        return Namespace(f"{_NAMESPACE_PREFIX}{self.name}{_namespace_suffix()}")

    def save(self, **changes: Any) -> State:
        """Write the state with `changes` and return it."""
        new = dataclasses.replace(self, **changes)
        self.directory.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps(dataclasses.asdict(new), default=str, indent=2) + "\n")
        scratch.rename(self.path)
        return new

    def remove_leftovers(self) -> None:
        """End the VM's processes and remove its namespace and disk; its logs stay."""
        self.keeper.end()
        self.qemu.end(timeout=1)
        self.namespace.delete()
        self.remove_disks()

    def remove_disks(self) -> None:
        """Free the space that they take."""
        self.disk.unlink(missing_ok=True)
        self.second_disk.unlink(missing_ok=True)
        self.variables.unlink(missing_ok=True)
        self.initrd.unlink(missing_ok=True)


_NAMESPACE_PREFIX = "rekernel-lab-"


def _namespace_suffix() -> str:
    return f"-{cache.key(str(cache.root()))[:6]}"


def is_own_namespace(name: str) -> bool:
    """Tell whether a network namespace of that name was made by a lab with this cache."""
    return name.startswith(_NAMESPACE_PREFIX) and name.endswith(_namespace_suffix())


def vms_root() -> Path:
    """Return the directory with one directory per VM."""
    return cache.root() / "vms"


def vm_directory(name: str) -> Path:
    """Return the directory of VM `name`; raises UsageError if that cannot be a name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
        raise UsageError(f"{name!r} is no name for a VM", hint="use a-z, 0-9 and -")
    return vms_root() / name


def load(name: str) -> State:
    """Return the state of VM `name`; raises UsageError if there is none."""
    path = vm_directory(name) / "state.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(state.name for state in load_all()) or "none"
        raise UsageError(f"no VM {name!r}", hint=f"known: {known}") from None
    try:
        raw["machine"] = Machine(**raw["machine"])
        raw["image"] = Path(raw["image"])
        raw["saved"] = Path(raw["saved"]) if raw.get("saved") else None
        raw["keeper"] = Process(**raw["keeper"])
        raw["qemu"] = Process(**raw["qemu"])
        return State(**raw)
    except (KeyError, TypeError) as error:
        raise LabError(f"{path} was written by another version of the lab: {error}") from error


def load_all() -> list[State]:
    """Return the states of all VMs, running or not."""
    return [load(path.parent.name) for path in sorted(vms_root().glob("*/state.json"))]


def forget(state: State) -> None:
    """Remove the VM with its logs."""
    state.remove_leftovers()
    shutil.rmtree(state.directory, ignore_errors=True)
