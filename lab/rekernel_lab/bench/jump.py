"""What benchmarks do without the product's upgrade: a bare kexec, and a reboot by way of kexec."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.run import run
from rekernel_lab.scenario.session import Session
from rekernel_lab.vm import vm
from rekernel_lab.vm.guest import SSH_FAILED

SOURCES = cache.REPOSITORY / "lab/rekernel_lab/bench/guest"
IN_GUEST = "/root/bench"

_FLOOR_S = 180.0
_JUMP = re.compile(rb"rekernel-lab: jump ([0-9a-f]+) ([0-9]+)")
_FLOOR = re.compile(rb"rekernel-lab: floor ([0-9a-f]{16})")


class Parting:
    """A command in the guest with which that goes away, so that nobody can wait for its end."""

    def __init__(self, words: Sequence[str], process: subprocess.Popen[bytes]) -> None:
        self._words = shlex.join(words)
        self._process = process

    def check(self) -> None:
        """Raises LabError with the command's own words if it has failed."""
        code = self._process.poll()
        # The connection may well end with the guest's kernel.
        if code in (None, 0, SSH_FAILED):
            return
        output = b"" if self._process.stdout is None else self._process.stdout.read()
        tail = output.decode(errors="replace").strip()[-1500:]
        raise LabError(f"in the guest: {self._words}: exited with {code}\n{tail}")


@contextlib.contextmanager
def parting(session: Session, words: Sequence[str]) -> Iterator[Parting]:
    """Start a command that ends the guest's kernel; it is given up with the block."""
    process = session.machine.guest.popen(words)
    try:
        yield Parting(words, process)
    finally:
        process.kill()
        process.wait()


class Jumps:
    """Jumps of a guest that has the product installed and set up, into one kernel."""

    def __init__(self, session: Session, release: str) -> None:
        self._session = session
        self._release = release

    def install(self) -> None:
        """Build what says when /init was reached, and copy it and the programs into the guest."""
        guest = self._session.machine.guest
        with tempfile.TemporaryDirectory(prefix="rekernel-lab-") as scratch:
            floor = Path(scratch) / "floor"
            run(["gcc", "-O2", "-static", "-nostdlib", "-fno-stack-protector", "-o", floor,
                 SOURCES / "floor.c"])  # fmt: skip
            guest.push(floor, f"{IN_GUEST}/floor")
        guest.push(SOURCES / "jump.py", f"{IN_GUEST}/jump.py")

    def floor(self) -> float:
        """Jump with the product's initrd; returns the seconds from reboot(2) to /init, by the TSC.

        Raises LabError, with the guest's own words if it does not come to that.
        """
        session = self._session
        machine = session.machine
        offset = machine.serial_size()
        with (
            session.progress.step("Floor: bare kexec to /init"),
            parting(session, self._program("floor")) as command,
        ):
            seconds = self._wait_for_markers(command, offset)
        session.progress.line(f"floor: {seconds:.2f} s")
        limit = session.deadline.left(vm.BOOT_TIMEOUT_S)
        machine.wait_ready(limit, offset)
        machine.wait_started(limit)
        return seconds

    def load(self) -> None:
        """Load the kernel with the distribution's initrd, for `systemctl kexec`."""
        self._session.machine.guest.run(self._program("plain"))

    def _program(self, how: str) -> list[str]:
        return ["python3", f"{IN_GUEST}/jump.py", how, self._release]

    def _wait_for_markers(self, command: Parting, offset: int) -> float:
        machine = self._session.machine
        deadline = time.monotonic() + self._session.deadline.left(_FLOOR_S)
        while True:
            machine.check_alive(offset)
            content = machine.state.serial_log.read_bytes()[offset:]
            jump, floor = _JUMP.search(content), _FLOOR.search(content)
            if jump and floor:
                return (int(floor[1], 16) - int(jump[1], 16)) / int(jump[2])
            command.check()
            if time.monotonic() > deadline:
                tail = content[-400:].decode(errors="replace")
                raise DeadlineError(f"/init was not reached by a bare kexec: {tail}")
            time.sleep(0.1)
