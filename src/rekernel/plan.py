"""What an upgrade would do: target kernel, units with verdicts, memory, obstacles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rekernel.census import attempt
from rekernel.census.pages import Survey, survey
from rekernel.census.processes import parents
from rekernel.census.verdicts import UnitVerdict, Verdict, judge
from rekernel.containers.model import Container
from rekernel.errors import BlockedError, NothingToDoError, UsageError
from rekernel.host import disks, drivers, loops, mounts, network
from rekernel.kernel import fitness
from rekernel.kernel.installed import Kernel, choose, installed, running_release
from rekernel.memory import region
from rekernel.policy import Policy
from rekernel.records import record
from rekernel.systemd.units import running_units

# Kernel threads of a fresh kernel end well below this.
LOWEST_SAFE_PID = 1000
_LEAST_GROWTH = 16 << 20


@record
class Plan:
    """Decided before anything is touched. ``pages`` is None where it cannot be told."""

    kernel: Kernel
    running: str
    backend: str
    where: region.Layout | None
    units: tuple[UnitVerdict, ...]
    resident_bytes: int
    warnings: tuple[str, ...]
    pages: Survey | None = None
    # Of resident_bytes: what a dump writes to files, without a region and in any case.
    anonymous_bytes: int = 0
    shared_bytes: int = 0
    # What podman's containers have in memory; not in the figures above.
    container_bytes: int = 0

    @property
    def growth_bytes(self) -> int:
        """What processes that share pages after a fork grow by: each gets a copy of its own.

        0 without a region, as criu knows of shared pages, and if it is hardly more than errors of
        measurement.
        """
        if self.pages is None:
            return 0
        private = self.pages.in_region_bytes + self.pages.stray_bytes
        growth = private - self.anonymous_bytes
        return growth if growth > max(_LEAST_GROWTH, self.anonymous_bytes // 10) else 0

    def having(self, verdict: Verdict) -> list[UnitVerdict]:
        """The units with this verdict."""
        return [item for item in self.units if item.verdict is verdict]

    def own(self, verdict: Verdict) -> list[UnitVerdict]:
        """The same but for containers."""
        return [item for item in self.having(verdict) if not item.container]

    def containers(self, verdict: Verdict) -> list[Container]:
        """Containers with this verdict."""
        return [item.container for item in self.having(verdict) if item.container]


@record
class Resident:
    """Proportional set sizes of processes in bytes: all, and by kind (proc(5), smaps_rollup).

    With what is swapped out: it comes back before the freeze.
    """

    total: int
    anonymous: int
    shared: int


def resident(pids: Sequence[int]) -> Resident:
    """What these processes have in memory or swap; one that is gone counts nothing."""
    found = {"Pss:": 0, "Pss_Anon:": 0, "Pss_Shmem:": 0, "SwapPss:": 0}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, *value = line.split()
            if name in found:
                found[name] += int(value[0]) * 1024
    total, anonymous, shared, swapped = found.values()
    return Resident(total + swapped, anonymous + swapped, shared)


def warnings_for(units: Sequence[UnitVerdict]) -> list[str]:
    """What need not stop an upgrade but should be known before."""
    found = []
    carried = [item for item in units if item.verdict is Verdict.CARRIED]
    low = min((pid for item in carried for pid in item.processes), default=1 << 22)
    if low < LOWEST_SAFE_PID:
        found.append(
            f"process {low} has a PID that the new kernel may need for itself: "
            "`rekernel setup` keeps services above those"
        )
    if not carried:
        found.append("nothing would be carried: an upgrade is refused, a reboot does the same")
    found += [
        f"{item.unit.name} ends: {item.reason}" for item in units if item.verdict is Verdict.ENDS
    ]
    return found


def make(wanted: str | None, policy: Policy, memory: str = "auto") -> Plan:
    """Look at the machine and decide.

    ``memory``: "region", "image" or "auto". Raises BlockedError, NothingToDoError, UsageError.
    """
    kernels = installed()
    kernel = choose(wanted, kernels)
    running = running_release()
    if wanted is None and kernel.release == running:
        raise NothingToDoError(
            f"{running} is the newest installed kernel and it is running",
            "name a kernel to switch to it all the same",
        )
    table = mounts.observe()
    disks.root(table)
    attached = loops.observe(table)
    problems = disks.unsupported(table, attached) + network.unsupported(network.observe())
    if problems:
        raise BlockedError(
            f"cannot be set up again before the restore: {', '.join(problems)}",
            "`rekernel check` says more: take it down or unmount it for the upgrade",
        )
    where = region.current()
    lacks = fitness.shortcomings(
        kernel, running, drivers.essential(table), region=bool(where) and memory != "image"
    )
    if lacks:
        raise BlockedError(
            f"kernel {kernel.release} cannot take over: {', '.join(lacks)}",
            "`rekernel check` lists kernels that can; those for clouds have few drivers",
        )
    if memory == "region" and where is None:
        raise BlockedError(
            "no carry region is set up", "run `rekernel setup` and reboot once, or --memory=image"
        )
    if memory == "image":
        where = None
    # Not the one that does it.
    services = [unit for unit in running_units() if unit.name != attempt.UNIT]
    units = judge(services, policy, parents())
    nowhere = policy.without_units(item.unit.name for item in units)
    for name in nowhere:
        if name in policy.asked:
            raise UsageError(f"{name} does not run", "see `rekernel check` for what does")
    carried = [item for item in units if item.verdict is Verdict.CARRIED and not item.container]
    pids = [pid for item in carried for pid in item.processes]
    memory_of = resident(pids)
    return Plan(
        kernel=kernel,
        running=running,
        backend="region" if where else "image",
        where=where,
        units=tuple(units),
        resident_bytes=memory_of.total,
        warnings=(
            *(f"policy names {name}, which does not run" for name in nowhere),
            *attached.given_up(mount.source for mount in table),
            *warnings_for(units),
        ),
        pages=survey(pids, region.ram_ranges(where)) if where else None,
        anonymous_bytes=memory_of.anonymous,
        shared_bytes=memory_of.shared,
        container_bytes=resident(
            [
                pid
                for item in units
                if item.verdict is Verdict.CARRIED and item.container
                for pid in item.processes
            ]
        ).total,
    )
