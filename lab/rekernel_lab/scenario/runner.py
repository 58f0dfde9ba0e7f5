"""Runs a scenario from a clean machine to the last verification."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.images import rootfs
from rekernel_lab.progress import Progress
from rekernel_lab.scenario import prepared, product
from rekernel_lab.scenario.assemble import Assembly, Options, assemble
from rekernel_lab.scenario.client import HostClient
from rekernel_lab.scenario.scenario import (
    GUEST_CHECK,
    GUEST_PREPARE,
    GUEST_VERIFY,
    HOST_CLIENT,
    Scenario,
)
from rekernel_lab.scenario.session import Deadline, Script, Session, opened
from rekernel_lab.scenario.upgrade import Outcome

SCHEMA = 1

# Of the output of a script that failed, to be shown at once.
_LAST_LINES = 10


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
    scripts: dict[str, Script] = field(default_factory=dict)
    error: str = ""
    finished: bool = False

    @property
    def passed(self) -> bool:
        """Tell whether the run went to its end and every part of it was right."""
        return self.finished and not self.shortcomings()

    def shortcomings(self) -> list[str]:
        """Say what was not right, with the last lines of each script that failed."""
        found = [self.error] if self.error else []
        found += [
            f"upgrade to {outcome.target}: exit code {outcome.exit_code}"
            for outcome in self.upgrades
            if not outcome.passed
        ]
        for name, script in self.scripts.items():
            if script.exit_code:
                lines = script.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
                found.append("\n  ".join([f"{name}: exit code {script.exit_code}", *lines]))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the result in its stable form."""
        return {
            "schema": SCHEMA,
            "scenario": self.scenario,
            "passed": self.passed,
            "error": self.error or None,
            "kernel_from": self.kernel_from,
            "upgrades": [dataclasses.asdict(outcome) for outcome in self.upgrades],
            "scripts": {name: script.to_json() for name, script in self.scripts.items()},
            "criu": self.criu,
            "cpus": self.cpus,
            "accel": self.accel,
            "serial_log": str(self.output / "serial.log"),
        }


def package(progress: Progress, deb: Path | None) -> Path:
    """Return the package to test: `deb`, or one that is built from this repository."""
    if deb is not None:
        return deb
    with progress.step("Building the package"):
        return product.build()


def assemble_for(
    scenario: Scenario,
    progress: Progress,
    options: Options,
    deb: Path,
    base: Scenario | None = None,
) -> Assembly:
    """Return the image that a scenario needs, with what the package depends on; or the image of
    the guest that it shares with others, `base`, with the scenario's own kernels.
    """
    packages = {*(base or scenario).packages, *product.dependencies(deb)} - {"criu"}
    prefixes = [scenario.kernel_from, *scenario.upgrades]
    return assemble(progress, options, prefixes, packages)


def output_directory(name: str) -> Path:
    """Return a new directory for the logs of a run."""
    path = cache.root() / "runs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path.mkdir(parents=True)
    return path


@contextlib.contextmanager
def installed(
    name: str,
    scenario: Scenario,
    assembly: Assembly,
    progress: Progress,
    output: Path,
    deb: Path,
    limit_s: float,
    *,
    cpus: int = 2,
    base: Scenario | None = None,
) -> Iterator[Session]:
    """A guest with the package in it and the scenario's files, set up and rebooted.

    From nothing; or, if `base` says which guest it shares with other scenarios, from the saved
    state of that. Images and that state are made once; what has a limit is the scenario itself.
    """
    shape = base or scenario
    state = prepared.prepare(assembly, deb, base, cpus, progress, output) if base else None
    with opened(
        name,
        assembly,
        progress,
        output,
        Deadline(limit_s, "the scenario"),
        memory_mib=shape.memory_mib,
        cpus=cpus,
        disk_mib=shape.disk_mib,
        saved=state,
    ) as session:
        if base:
            prepared.take_over(session, scenario, base)
        else:
            session.install(deb)
            session.set_up(scenario.region_mib)
        session.push(scenario.directory)
        yield session


class Runner:
    """One run of one scenario. `base`: the guest that it shares with other ones."""

    def __init__(
        self,
        scenario: Scenario,
        progress: Progress,
        options: Options,
        deb: Path | None,
        base: Scenario | None = None,
    ) -> None:
        self._base = base
        self._scenario = scenario
        self._progress = progress
        self._options = options
        self._deb = deb

    def run(self) -> Result:
        """Run the scenario. Failures are in the result; only Ctrl-C and bugs are raised."""
        output = output_directory(self._scenario.name)
        result = Result(self._scenario.name, output, cpus=self._options.cpus)
        try:
            self._run(result)
            result.finished = True
        except LabError as error:
            result.error = f"{error} ({error.hint})" if error.hint else str(error)
        return result

    def _run(self, result: Result) -> None:
        scenario, progress = self._scenario, self._progress
        deb = package(progress, self._deb)
        assembly = assemble_for(scenario, progress, self._options, deb, self._base)
        result.kernel_from = assembly.releases[0]
        result.criu = rootfs.criu_version(assembly.image)
        result.accel = assembly.accelerator
        with installed(
            f"run-{os.getpid()}",
            scenario,
            assembly,
            progress,
            result.output,
            deb,
            scenario.timeout_s,
            cpus=self._options.cpus,
            base=self._base,
        ) as session:
            self._script(session, GUEST_PREPARE, result, fatal=True)
            with self._client(session, result) as client:
                for number, target in enumerate(assembly.releases[1:], 1):
                    self._upgrade(session, target, result)
                    self._script(
                        session, GUEST_CHECK, result, f"{GUEST_CHECK}-{number}", fatal=True
                    )
                    if client:
                        client.check_alive()
            # Last, because it may restart services under the client's connections.
            self._script(session, GUEST_VERIFY, result)

    def _script(
        self, session: Session, name: str, result: Result, label: str = "", *, fatal: bool = False
    ) -> None:
        """Run a guest script if the scenario has it. Raises LabError if a `fatal` one fails."""
        if not self._scenario.script(name):
            return
        label = label or name
        done = result.scripts[label] = session.script(name, label)
        if done.exit_code and fatal:
            raise LabError(f"{label} exited with {done.exit_code}", hint=f"see {done.log}")

    @contextlib.contextmanager
    def _client(self, session: Session, result: Result) -> Iterator[HostClient | None]:
        """Run host-client, if there is one, during the block."""
        script = self._scenario.script(HOST_CLIENT)
        if script is None:
            yield None
            return
        with session.client(script, result.scripts, self._scenario.client_s) as client:
            yield client

    def _upgrade(self, session: Session, target: str, result: Result) -> None:
        outcome = session.upgrade(target, self._scenario.carry)
        result.upgrades.append(outcome)
        if outcome.report:
            self._show_report(session, len(result.upgrades))
        if not outcome.passed:
            raise LabError(
                f"upgrade to {target}: exit code {outcome.exit_code}, "
                f"the guest runs {outcome.release}" + (f", {outcome.error}" * bool(outcome.error))
            )

    def _show_report(self, session: Session, number: int) -> None:
        """Print the product's own report, and keep its page."""
        guest = session.machine.guest
        page = self._keep(session, f"report-{number}.html", "rekernel report --html -")
        self._keep(session, f"report-{number}.json", "rekernel report --json")
        self._progress.line("")
        for line in guest.text("rekernel report").splitlines():
            self._progress.line(f"  {line}")
        self._progress.line(f"  as a page: {page}\n")

    @staticmethod
    def _keep(session: Session, name: str, words: str) -> Path:
        path = session.output / name
        path.write_bytes(session.machine.guest.run(words, check=False).stdout)
        return path
