"""A guest with the product in it as a user would have it: what runs, tests and benchmarks share."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.progress import Progress
from rekernel_lab.scenario import product
from rekernel_lab.scenario.assemble import Assembly
from rekernel_lab.scenario.client import HostClient
from rekernel_lab.scenario.upgrade import Outcome, Upgrade
from rekernel_lab.vm import vm
from rekernel_lab.vm.qemu import Machine
from rekernel_lab.vm.saved import Saved
from rekernel_lab.vm.vm import VM

IN_GUEST = "/var/lib/rekernel-lab/scenario"

# The longest, with 501 processes, takes a third of this.
_UPGRADE_S = 900.0

# How long host-client may take: until it is ready, which it need never say, and to sum up after
# SIGTERM at the end of a good and of a failed run.
_CLIENT_READY_S = 10.0
_CLIENT_END_S = 60.0
_CLIENT_FAILED_END_S = 10.0


class Deadline:
    """So many seconds from now on, for everything that is done under it."""

    def __init__(self, seconds: float, what: str = "this") -> None:
        self._seconds = seconds
        self._what = what
        self._end = time.monotonic() + seconds

    def left(self, at_most: float = float("inf")) -> float:
        """Return the seconds that are left; raises DeadlineError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{self._what} took longer than {self._seconds:.0f} s")
        return min(left, at_most)


@dataclass(frozen=True, slots=True)
class Script:
    """A script of a scenario that has run."""

    exit_code: int
    log: Path

    def to_json(self) -> dict[str, Any]:
        """Return it as results have it."""
        return {"exit_code": self.exit_code, "output": str(self.log)}


@dataclass(frozen=True, slots=True)
class Session:
    """A running guest. ``output`` is the directory for everything that is logged."""

    machine: VM
    progress: Progress
    output: Path
    deadline: Deadline

    def install(self, deb: Path) -> None:
        """Install the package."""
        with self.progress.step(f"Installing {deb.name}"):
            product.install(self.machine.guest, deb)

    def set_up(self, region_mib: int) -> None:
        """Run `rekernel setup` and reboot, as it asks for."""
        with self.progress.step(f"rekernel setup: region of {region_mib} MiB"):
            words = ["rekernel", "setup", "--yes", "--region", f"{region_mib}M"]
            output = self.machine.guest.text(words, timeout=self.deadline.left(120))
            (self.output / "setup.log").write_text(output + "\n")
        with self.progress.step("Rebooting, as setup asks for"):
            self.reboot()

    def reboot(self) -> None:
        """Reboot and wait until the guest has started everything."""
        self.machine.reboot(timeout=self.deadline.left(vm.BOOT_TIMEOUT_S))
        self.machine.wait_started(self.deadline.left(vm.BOOT_TIMEOUT_S))

    def push(self, scenario: Path) -> None:
        """Copy a scenario directory into the guest."""
        self.machine.guest.push(scenario, IN_GUEST)

    def script(self, name: str, label: str = "") -> Script:
        """Run a script of the scenario that was pushed. Its log is called `label`, else `name`."""
        log = self.output / f"{label or name}.log"
        with self.progress.step(label or name):
            done = self.machine.guest.run(
                f"cd {IN_GUEST} && exec ./{name} 2>&1", check=False, timeout=self.deadline.left()
            )
        log.write_bytes(done.stdout)
        if done.returncode:
            for line in done.stdout.decode(errors="replace").strip().splitlines()[-15:]:
                self.progress.guest(line)
        return Script(done.returncode, log)

    @contextlib.contextmanager
    def client(
        self, script: Path, results: dict[str, Script], client_s: int = 0
    ) -> Iterator[HostClient]:
        """Run a host-client during the block; what became of it is in `results`.

        It may take `client_s` until it is ready and as long to end, 0 for the usual.
        """
        with HostClient(script, self.machine.state.namespace, self.output) as client:
            patience = client_s or _CLIENT_END_S
            try:
                with self.progress.step(f"{script.name}: opening connections"):
                    client.wait_ready(client_s or _CLIENT_READY_S)
                yield client
            except BaseException:
                # Whatever it still waits for will not come.
                patience = _CLIENT_FAILED_END_S
                raise
            finally:
                results[script.name] = Script(client.finish(patience), client.log)

    def upgrade(
        self, target: str, carry: Sequence[str] | None = None, options: Sequence[str] = ()
    ) -> Outcome:
        """Upgrade to the kernel release `target`; `options` are more words for the product."""
        with self.progress.step(f"Upgrade to {target}"):
            return Upgrade(self.machine, self.progress).run(
                target, carry, self.deadline.left(_UPGRADE_S), options
            )

    def json(self, words: str) -> Any:
        """Return what a command of the guest prints, parsed. Raises LabError if it fails."""
        output = self.machine.guest.text(words, timeout=self.deadline.left(120))
        try:
            return json.loads(output)
        except ValueError as error:
            raise LabError(f"{words} printed no JSON: {output[:200]!r}") from error

    def save_traces(self) -> None:
        """Keep what its processors are at, and the guest's journal and the product's logs if it
        still answers.
        """
        with contextlib.suppress(LabError):
            (self.output / "registers.txt").write_text(self.machine.registers())
        with contextlib.suppress(LabError):
            self.machine.check_alive()
            journal = self.machine.guest.run(
                "journalctl --no-pager -o short-monotonic -n 5000", check=False, timeout=60
            )
            (self.output / "journal.log").write_bytes(journal.stdout)
            self.progress.line(f"journal of the guest: {self.output / 'journal.log'}")
            for path in ("/run/rekernel", "/var/lib/rekernel/history"):
                with contextlib.suppress(LabError):
                    self.machine.guest.pull(path, self.output)


@contextlib.contextmanager
def opened(
    name: str,
    assembly: Assembly,
    progress: Progress,
    output: Path,
    deadline: Deadline,
    *,
    memory_mib: int,
    cpus: int = 2,
    disk_mib: int = 0,
    uefi: bool = False,
    saved: Saved | None = None,
) -> Iterator[Session]:
    """A VM that ends with the block; its serial log is kept in `output`.

    It boots, or goes on from a saved state of a machine like this one.
    """
    machine = Machine(assembly.accelerator, memory_mib, cpus, disk_mib, uefi)
    release = assembly.releases[0]
    session: Session | None = None
    try:
        with progress.step(f"{'Resuming' if saved else 'Booting'} {release}"):
            running = vm.start(
                name,
                machine,
                assembly.image,
                release,
                owned=True,
                saved_state=saved.directory if saved else None,
            )
            session = Session(running, progress, output, deadline)
            running.wait_ready(deadline.left())
        yield session
    except Exception:
        if session:
            session.save_traces()
        raise
    finally:
        if session:
            shutil.copy(session.machine.state.serial_log, output / "serial.log")
            session.machine.close(forget=True)
