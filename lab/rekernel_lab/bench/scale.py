"""`rekernel-lab bench scale`: how the blackout grows with what is carried.

One VM, one run: idle processes in one unit and in ten, established TCP connections of one process,
and units of one process each. Every change is to the kernel that runs already. Of a tree of
processes what criu takes by itself is measured as well, on the kernel that they have come to.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rekernel_lab.bench.jump import IN_GUEST, SOURCES
from rekernel_lab.bench.registry import Request, benchmark
from rekernel_lab.bench.result import Ratio, grid, phase_lines, phases_of_blackout, ratio_lines
from rekernel_lab.errors import LabError
from rekernel_lab.images import rootfs
from rekernel_lab.images.guestfiles import GUEST_ADDRESS
from rekernel_lab.scenario import assemble, product, runner
from rekernel_lab.scenario.session import Deadline, Session, opened
from rekernel_lab.vm import vm

SCHEMA = 1

_MEMORY_MIB = 6144
_REGION_MIB = 2048
_LIMIT_S = 7200.0
_PORT = 7000
_UNIT = f"""\
[Service]
Type=exec
ExecStart=/usr/bin/python3 {IN_GUEST}/load.py %i
TasksMax=infinity
LimitNOFILE=4096
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What is carried: so many units, with so many processes and connections each."""

    name: str
    processes: int = 1
    connections: int = 0
    units: int = 1

    def unit_names(self) -> list[str]:
        """The instances of load@.service."""
        port = _PORT if self.connections else 0
        return [f"load@{number}-{self.processes}-{port}.service" for number in range(self.units)]


ALONE = Load("1 process")
MORE = Load("101 processes", processes=101)
# As many, as they are on most machines: criu dumps one tree on one processor.
SPREAD = Load("100 in 10 units", processes=10, units=10)
LOADS = (
    ALONE,
    Load("11 processes", processes=11),
    MORE,
    SPREAD,
    Load("501 processes", processes=501),
    Load("10 connections", connections=10),
    Load("1000 connections", connections=1000),
    Load("10 units", units=10),
    Load("30 units", units=30),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One upgrade with this load; seconds, phases in their order."""

    load: Load
    blackout_s: float
    phases: dict[str, float]
    resident_bytes: int
    bytes_copied: int


@dataclass(frozen=True, slots=True)
class Alone:
    """criu by itself with the processes of this load; seconds."""

    load: Load
    dump_s: float
    restore_s: float


@dataclass(slots=True)
class Found:
    """Filled while the benchmark goes on."""

    facts: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    criu_alone: list[Alone] = field(default_factory=list)

    def blackout(self, load: Load) -> float | None:
        """The median of all rounds, None if there is none."""
        found = [one.blackout_s for one in self.measurements if one.load == load]
        return statistics.median(found) if found else None

    def criu(self, load: Load) -> float | None:
        """Dump and restore by criu alone: the median of all rounds, None if there is none."""
        found = [one.dump_s + one.restore_s for one in self.criu_alone if one.load == load]
        return statistics.median(found) if found else None

    def ratios(self) -> list[Ratio]:
        """The growth that has a limit, and how much of it is criu's own."""
        alone, more = self.blackout(ALONE), self.blackout(MORE)
        if alone is None or more is None:
            return []
        found = [Ratio("100 more processes / 1 process", more / alone, 1.4)]
        spread = self.blackout(SPREAD)
        if spread is not None:
            found.append(Ratio("100 processes in 10 units / 1 process", spread / alone, 1.4))
        least, most = self.criu(ALONE), self.criu(MORE)
        if least is not None and most is not None and most > least:
            growth = (more - alone) / (most - least)
            found.append(Ratio("growth by 100 processes / criu's own", growth, 1.25))
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, in its stable form."""
        return {
            "schema": SCHEMA,
            **self.facts,
            "measurements": [asdict(one) for one in self.measurements],
            "criu_alone": [asdict(one) for one in self.criu_alone],
            "ratios": [asdict(one) | {"reached": one.reached} for one in self.ratios()],
        }


def table(found: Found) -> str:
    """The result for people."""
    loads = list(dict.fromkeys(one.load for one in found.measurements))
    alone = found.blackout(ALONE)
    rows = [("carried", "blackout s", "/ 1 process", "every round")]
    columns: dict[str, dict[str, float]] = {}
    for load in loads:
        rounds = [one for one in found.measurements if one.load == load]
        median = statistics.median(one.blackout_s for one in rounds)
        columns[load.name] = min(rounds, key=lambda one: abs(one.blackout_s - median)).phases
        share = f"{median / alone:.2f}" if alone else "-"
        each = ", ".join(f"{one.blackout_s:.2f}" for one in rounds)
        rows.append((load.name, f"{median:.2f}", share, each))
    return "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in found.facts.items()),
            "",
            *grid(rows),
            "",
            "blackout by phase, s",
            *phase_lines(columns),
            "",
            "criu alone, s",
            *(
                f"{one.load.name}: dump {one.dump_s:.2f}, restore {one.restore_s:.2f}"
                for one in found.criu_alone
            ),
            "",
            *ratio_lines(found.ratios()),
        ]
    )


class _Bench:
    """The guest of the benchmark."""

    def __init__(self, session: Session, release: str, found: Found) -> None:
        self._session = session
        self._release = release
        self._found = found
        self._guest = session.machine.guest
        self._namespace = session.machine.state.namespace

    def prepare(self, deb: Path) -> None:
        """The region, and what is carried."""
        self._session.install(deb)
        self._session.set_up(_REGION_MIB)
        for name in ("load.py", "alone.py"):
            self._guest.push(SOURCES / name, f"{IN_GUEST}/{name}")
        self._guest.run(["tee", "/etc/systemd/system/load@.service"], stdin=_UNIT.encode())
        self._guest.run("systemctl daemon-reload")

    def carry(self, load: Load, *, measured: bool = True) -> None:
        """An upgrade with this load, which must come back whole."""
        names = load.unit_names()
        session = self._session
        with contextlib.ExitStack() as connections:
            with session.progress.step(load.name):
                self._guest.run(["systemctl", "start", *names])
                for _ in range(load.connections):
                    connections.enter_context(self._connect())
                self._wait_for_processes(load)
            outcome = session.upgrade(self._release)
            if not outcome.passed:
                raise LabError(f"{load.name}: exit code {outcome.exit_code}, {outcome.error}")
            self._check(load, outcome.report)
            self._guest.run(["systemctl", "stop", *names])
        if measured:
            memory = outcome.report["memory"]
            self._found.measurements.append(
                Measurement(
                    load,
                    outcome.report["blackout_s"],
                    phases_of_blackout(outcome.report),
                    memory["resident_bytes"],
                    memory["bytes_copied"],
                )
            )
            session.progress.line(f"{load.name}: blackout {outcome.report['blackout_s']:.2f} s")
        session.machine.wait_started(session.deadline.left(vm.BOOT_TIMEOUT_S))
        if measured and load in (ALONE, MORE):
            with session.progress.step(f"{load.name}: criu alone"):
                words = ["python3", f"{IN_GUEST}/alone.py", str(load.processes)]
                dump, restore = map(float, self._guest.text(words, timeout=300).split())
            self._found.criu_alone.append(Alone(load, dump, restore))

    def _connect(self) -> contextlib.AbstractContextManager[Any]:
        deadline = time.monotonic() + self._session.deadline.left(60)
        while True:
            try:
                return self._namespace.connect((GUEST_ADDRESS, _PORT), 60)
            except ConnectionRefusedError:
                # It does not listen yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _wait_for_processes(self, load: Load) -> None:
        """Every one of them is there."""
        want = load.processes * load.units
        count = "cat /sys/fs/cgroup/system.slice/system-load.slice/*/cgroup.procs | wc -l"
        deadline = time.monotonic() + self._session.deadline.left(120)
        while int(self._guest.text(count)) < want:
            if time.monotonic() > deadline:
                raise LabError(f"{load.name}: the processes did not start")
            time.sleep(1)

    def _check(self, load: Load, report: Any) -> None:
        units = {unit["unit"]: unit for unit in report["units"]}
        lost = [name for name in load.unit_names() if not units.get(name, {}).get("kept")]
        if lost or report["connections"]["lost"]:
            raise LabError(f"{load.name}: lost {lost or report['connections']['lost']}")


def _measure(bench: _Bench, loads: Sequence[Load], rounds: int) -> None:
    # For the caches of the host, which everything else finds warm.
    bench.carry(loads[0], measured=False)
    # There and back again: emulation becomes slower with every kernel that has run.
    for number in range(rounds):
        for load in loads if number % 2 == 0 else reversed(loads):
            bench.carry(load)


@benchmark("scale")
def scale(request: Request) -> int:
    """Measure and tell; returns 0 if everything could be measured, whatever came out."""
    progress, options = request.progress, request.options
    # The other ends of the connections are here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    deb = runner.package(progress, request.deb)
    packages = set(product.dependencies(deb)) - {"criu"}
    assembly = assemble.assemble(progress, options, [request.kernel], packages)
    release = assembly.releases[0]
    found = Found(
        {
            "kernel": release,
            "criu": rootfs.criu_version(assembly.image),
            "accel": assembly.accelerator,
            "cpus": options.cpus,
            "memory_mib": _MEMORY_MIB,
        }
    )
    output = runner.output_directory("bench-scale")
    try:
        with opened(
            f"bench-{os.getpid()}",
            assembly,
            progress,
            output,
            Deadline(_LIMIT_S, "the benchmark"),
            memory_mib=_MEMORY_MIB,
            cpus=options.cpus,
        ) as session:
            bench = _Bench(session, release, found)
            bench.prepare(deb)
            if request.smoke:
                bench.carry(ALONE)
            else:
                _measure(bench, LOADS, request.rounds)
    finally:
        # Also what was measured before something went wrong.
        if request.json:
            request.json.write_text(json.dumps(found.to_json(), indent=2) + "\n")
        print(table(found))
        progress.line(f"logs in {output}")
    return 0
