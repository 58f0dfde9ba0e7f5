"""Runs a scenario from a clean machine to the last verification."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rekernel_lab import cache, product, rootfs, vm
from rekernel_lab.assemble import Assembly, Options, assemble
from rekernel_lab.client import HostClient
from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.progress import Progress
from rekernel_lab.qemu import Machine
from rekernel_lab.scenario import GUEST_PREPARE, GUEST_VERIFY, HOST_CLIENT, Scenario
from rekernel_lab.upgrade import Outcome, Upgrade
from rekernel_lab.vm import VM

SCHEMA = 1

# How long host-client may take to sum up after SIGTERM, at the end of a good and of a failed run.
_CLIENT_END_S = 60.0
_CLIENT_FAILED_END_S = 10.0

_IN_GUEST = "/var/lib/rekernel-lab/scenario"


@dataclass(slots=True)
class Result:
    """What a run found out; filled while it goes on, so that a failed run has one too."""

    scenario: str
    output: Path
    kernel_from: str = ""
    criu: str = ""
    accel: str = ""
    cpus: int = 0
    upgrades: list[Outcome] = field(default_factory=list)
    scripts: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str = ""
    finished: bool = False

    @property
    def passed(self) -> bool:
        """Tell whether the run went to its end and every part of it was right."""
        return (
            self.finished
            and not self.error
            and all(outcome.passed for outcome in self.upgrades)
            and all(script["exit_code"] == 0 for script in self.scripts.values())
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result in its stable form."""
        return {
            "schema": SCHEMA,
            "scenario": self.scenario,
            "passed": self.passed,
            "error": self.error or None,
            "kernel_from": self.kernel_from,
            "upgrades": [dataclasses.asdict(outcome) for outcome in self.upgrades],
            "scripts": self.scripts,
            "criu": self.criu,
            "cpus": self.cpus,
            "accel": self.accel,
            "serial_log": str(self.output / "serial.log"),
        }


class Runner:
    """One run of one scenario."""

    def __init__(
        self, scenario: Scenario, progress: Progress, options: Options, deb: Path | None
    ) -> None:
        self._scenario = scenario
        self._progress = progress
        self._options = options
        self._deb = deb
        name = f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._output = cache.root() / "runs" / name
        self._deadline = 0.0

    def run(self) -> Result:
        """Run the scenario. Failures are in the result; only Ctrl-C and bugs are raised."""
        result = Result(self._scenario.name, self._output, cpus=self._options.cpus)
        self._output.mkdir(parents=True)
        try:
            self._run(result)
            result.finished = True
        except LabError as error:
            result.error = f"{error} ({error.hint})" if error.hint else str(error)
        return result

    def _left(self) -> float:
        """Return the seconds that are left; raises DeadlineError if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"the scenario took longer than {self._scenario.timeout_s} s")
        return left

    def _run(self, result: Result) -> None:
        scenario, progress = self._scenario, self._progress
        deb = self._deb
        if deb is None:
            with progress.step("Building the package"):
                deb = product.build()
        packages = {*scenario.packages, *product.dependencies(deb)} - {"criu"}
        prefixes = [scenario.kernel_from, *scenario.upgrades]
        assembly = assemble(progress, self._options, prefixes, packages)
        result.kernel_from = assembly.releases[0]
        result.criu = rootfs.criu_version(assembly.image)
        result.accel = assembly.accelerator
        # Images are made once; what has a limit is the scenario itself.
        self._deadline = time.monotonic() + scenario.timeout_s
        with self._vm(assembly) as machine:
            self._prepare(machine, deb, result)
            with self._client(machine, result) as client:
                for target in assembly.releases[1:]:
                    self._upgrade(machine, target, result)
                    if client:
                        client.check_alive()
            # Last, because it may restart services under the client's connections.
            self._guest_script(machine, GUEST_VERIFY, result)

    @contextlib.contextmanager
    def _vm(self, assembly: Assembly) -> Iterator[VM]:
        scenario = self._scenario
        machine = Machine(assembly.accelerator, scenario.memory_mib, self._options.cpus)
        name = f"run-{os.getpid()}"
        release = assembly.releases[0]
        running: VM | None = None
        try:
            with self._progress.step(f"Booting {release}"):
                running = vm.start(name, machine, assembly.image, release, owned=True)
                running.wait_ready(self._left())
            yield running
        except LabError:
            if running:
                self._save_journal(running)
            raise
        finally:
            if running:
                shutil.copy(running.state.serial_log, self._output / "serial.log")
                running.close(forget=True)

    def _prepare(self, machine: VM, deb: Path, result: Result) -> None:
        progress, scenario = self._progress, self._scenario
        with progress.step(f"Installing {deb.name}"):
            product.install(machine.guest, deb)
        with progress.step(f"rekernel setup: region of {scenario.region_mib} MiB"):
            region = f"{scenario.region_mib}M"
            output = machine.guest.text(["rekernel", "setup", "--yes", "--region", region])
            (self._output / "setup.log").write_text(output + "\n")
        with progress.step("Rebooting, as setup asks for"):
            machine.reboot(timeout=min(self._left(), vm.BOOT_TIMEOUT_S))
            machine.wait_started(min(self._left(), vm.BOOT_TIMEOUT_S))
        machine.guest.push(scenario.directory, _IN_GUEST)
        self._guest_script(machine, GUEST_PREPARE, result)

    def _guest_script(self, machine: VM, name: str, result: Result) -> None:
        """Run a guest script if the scenario has it. Raises LabError if guest-prepare fails."""
        if not self._scenario.script(name):
            return
        log = self._output / f"{name}.log"
        command = f"cd {_IN_GUEST} && exec ./{shlex.quote(name)} 2>&1"
        with self._progress.step(name):
            done = machine.guest.run(command, check=False, timeout=self._left())
        log.write_bytes(done.stdout)
        result.scripts[name] = {"exit_code": done.returncode, "output": str(log)}
        if done.returncode:
            for line in done.stdout.decode(errors="replace").strip().splitlines()[-15:]:
                self._progress.guest(line)
            if name == GUEST_PREPARE:
                raise LabError(f"{name} exited with {done.returncode}", hint=f"see {log}")

    @contextlib.contextmanager
    def _client(self, machine: VM, result: Result) -> Iterator[HostClient | None]:
        """Run host-client, if there is one, during the block; what it says is in the result."""
        script = self._scenario.script(HOST_CLIENT)
        if script is None:
            yield None
            return
        with HostClient(script, machine.state.namespace, self._output) as client:
            patience = _CLIENT_END_S
            try:
                with self._progress.step("host-client: opening connections"):
                    client.wait_ready()
                yield client
            except LabError:
                # Whatever it still waits for will not come.
                patience = _CLIENT_FAILED_END_S
                raise
            finally:
                code = client.finish(patience)
                result.scripts[HOST_CLIENT] = {"exit_code": code, "output": str(client.log)}

    def _upgrade(self, machine: VM, target: str, result: Result) -> None:
        upgrade = Upgrade(machine, self._progress)
        with self._progress.step(f"Upgrade to {target}"):
            outcome = upgrade.run(target, self._scenario.carry, self._left())
            result.upgrades.append(outcome)
            if not outcome.passed:
                raise LabError(
                    f"upgrade to {target}: exit code {outcome.exit_code}, "
                    f"the guest runs {outcome.release}"
                    + (f", {outcome.error}" * bool(outcome.error))
                )

    def _save_journal(self, machine: VM) -> None:
        """Keep the guest's journal of a failed run, if the guest still answers."""
        with contextlib.suppress(LabError):
            machine.check_alive()
            journal = machine.guest.run(
                "journalctl --no-pager -o short-monotonic -n 5000", check=False, timeout=60
            )
            (self._output / "journal.log").write_bytes(journal.stdout)
            self._progress.line(f"journal of the guest: {self._output / 'journal.log'}")
