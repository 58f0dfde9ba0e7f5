"""What an upgrade would do: target kernel, units with verdicts, memory, obstacles."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rekernel.attempt import state as attempt
from rekernel.carry import support
from rekernel.carry.disks import observe as disks
from rekernel.carry.loops import observe as loops
from rekernel.carry.memory import region
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.network import observe as network
from rekernel.census import usage, wants
from rekernel.census.pages import Survey, survey
from rekernel.census.processes import parents
from rekernel.census.usage import Usage
from rekernel.census.verdicts import UnitVerdict, Verdict, judge
from rekernel.containers.model import Container
from rekernel.errors import BlockedError, NothingToDoError, UsageError
from rekernel.kernel import drivers, fitness
from rekernel.kernel.installed import Kernel, choose, installed, running_release
from rekernel.plan import room
from rekernel.plan.confirmed import Confirmed, compare
from rekernel.plan.room import Room
from rekernel.policy import Policy
from rekernel.records import record
from rekernel.systemd.units import running_units

# Kernel threads of a fresh kernel end well below this.
LOWEST_SAFE_PID = 1000
_LEAST_GROWTH = 16 << 20
# How long what has become worse may take to be as it was.
_PASSES_S = 2.0


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
    # Of what is carried; containers of podman too, which are in no figure above.
    usages: tuple[Usage, ...]
    room: Room
    pages: Survey | None = None

    @property
    def anonymous_bytes(self) -> int:
        """Bytes of resident_bytes that are private."""
        return sum(item.anonymous for item in self.usages if not item.container)

    @property
    def container_bytes(self) -> int:
        """What podman's containers have in memory."""
        return sum(item.resident for item in self.usages if item.container)

    @property
    def container_directory(self) -> Path | None:
        """Where the images of podman's containers go."""
        return next((item.directory for item in self.containers(Verdict.CARRIED)), None)

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
        """Units with this verdict, containers left out."""
        return [item for item in self.having(verdict) if not item.container]

    def containers(self, verdict: Verdict) -> list[Container]:
        """Containers with this verdict."""
        return [item.container for item in self.having(verdict) if item.container]


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
    support.refuse(disks.unsupported(table, attached) + network.unsupported(network.observe()))
    where = region.current() if memory != "image" else None
    _assert_fit(kernel, running, table, where)
    if memory == "region" and where is None:
        raise BlockedError(
            "no carry region is set up", "run `rekernel setup` and reboot once, or --memory=image"
        )
    units = _judged(policy, kernel, running)
    nowhere = policy.without_units(item.unit.name for item in units)
    for name in nowhere:
        if name in policy.asked:
            raise UsageError(f"{name} does not run", "see `rekernel check` for what does")
    warnings = (
        *(f"policy names {name}, which does not run" for name in nowhere),
        *attached.given_up(mount.source for mount in table),
        *warnings_for(units),
    )
    return _with_memory(kernel, running, where, units, warnings, table)


def renew(confirmed: Confirmed, policy: Policy) -> tuple[Plan, tuple[str, ...]]:
    """The plan that was confirmed, with what its units are by now; and what is worth a note.

    What the host is like otherwise is looked at when it is described. Raises BlockedError if more
    would be lost than was confirmed: not for what passes, a service that reloads or a login that is
    being ended, say.
    """
    kernel = Kernel(confirmed.release, Path(confirmed.image), Path(confirmed.modules))
    where = region.current() if confirmed.backend == "region" else None
    table = mounts.observe()
    _assert_fit(kernel, confirmed.running, table, where)
    deadline = time.monotonic() + _PASSES_S
    while True:
        judged = _judged(policy, kernel, confirmed.running)
        found = compare(confirmed.units, judged, policy.asked)
        if not (found.worse or found.new) or time.monotonic() > deadline:
            break
        time.sleep(_PASSES_S / 5)
    found.refuse()
    made = _with_memory(kernel, confirmed.running, where, found.units, (), table)
    return made, found.notes


def _assert_fit(
    kernel: Kernel, running: str, table: Sequence[mounts.MountInfo], where: region.Layout | None
) -> None:
    lacks = fitness.shortcomings(kernel, running, drivers.essential(table), region=bool(where))
    if lacks:
        raise BlockedError(
            f"kernel {kernel.release} cannot take over: {', '.join(lacks)}",
            "`rekernel check` lists kernels that can; those for clouds have few drivers",
        )


def _judged(policy: Policy, kernel: Kernel, running: str) -> list[UnitVerdict]:
    # Not the one that does it.
    services = [unit for unit in running_units() if unit.name != attempt.UNIT]
    return wants.judge(judge(services, policy, parents()), kernel, running)


def _with_memory(
    kernel: Kernel,
    running: str,
    where: region.Layout | None,
    units: Sequence[UnitVerdict],
    warnings: tuple[str, ...],
    table: Sequence[mounts.MountInfo],
) -> Plan:
    carried = [item for item in units if item.verdict is Verdict.CARRIED]
    pids = [pid for item in carried if not item.container for pid in item.processes]
    pages = survey(pids, region.ram_ranges(where)) if where else None
    usages = usage.of_units(carried, pages)
    return Plan(
        kernel=kernel,
        running=running,
        backend="region" if where else "image",
        where=where,
        units=tuple(units),
        resident_bytes=sum(item.resident for item in usages if not item.container),
        warnings=warnings,
        usages=usages,
        room=room_for(units, usages, where, pages, table),
        pages=pages,
    )


def room_for(
    units: Sequence[UnitVerdict],
    usages: Sequence[Usage],
    where: region.Layout | None,
    pages: Survey | None,
    table: Sequence[mounts.MountInfo],
) -> Room:
    """Where all goes that an upgrade writes down, as of now. Raises OSError."""
    carried = [item for item in units if item.verdict is Verdict.CARRIED]
    own = [item.unit for item in carried if not item.container]
    containers = [item.container.directory for item in carried if item.container]
    return room.reckon(
        usages,
        room.tmpfs_sizes(room.contents(table, own)),
        # What can be moved into the region is moved before the freeze.
        pages.left_bytes if pages else 0,
        room.observe(where, containers[0] if containers else None),
        region=where is not None,
    )
