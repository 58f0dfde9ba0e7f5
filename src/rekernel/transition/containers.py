"""What an attempt does with containers: dumps in the same cut, and who starts again."""

from __future__ import annotations

import json
from pathlib import Path

from rekernel.attempt.undo import UndoList
from rekernel.carry.network.entry import Network
from rekernel.census.verdicts import Verdict
from rekernel.containers import checkpoint
from rekernel.containers.checkpoint import WANTED
from rekernel.containers.model import STOPPED
from rekernel.containers.podman import LEFT
from rekernel.criu import large_areas
from rekernel.plan.plan import Plan
from rekernel.records import replace
from rekernel.run import run
from rekernel.transition.dumps import DumpJob
from rekernel.transition.staging import SCRATCH

# Seconds that its engine may take to stop one; it kills what does not end in ten.
_STOP_S = 120


class Containers:
    """Containers in one attempt: dumped in the cut, or stopped and started again."""

    def __init__(self, plan: Plan) -> None:
        self._units = [
            item for item in plan.units if item.container and item.verdict is Verdict.CARRIED
        ]
        self._carried = plan.containers(Verdict.CARRIED)
        self._restarted = plan.containers(Verdict.RESTARTED)
        self._environment: dict[str, str] = {}

    @property
    def cgroups(self) -> list[str]:
        """Their control groups."""
        return [item.unit.cgroup for item in self._units]

    @property
    def pids(self) -> list[int]:
        """Their processes, as far as known when all was judged."""
        return sorted(pid for item in self._units for pid in item.processes)

    def prepare(self, undo: UndoList) -> None:
        """What can be done while they run. Raises OSError."""
        if not self._carried:
            return
        self._environment = checkpoint.configure(SCRATCH / "crun")
        left = [str(path) for item in self._carried for path in checkpoint.leftovers(item)]
        undo.push("remove", str(LEFT), *left)
        LEFT.parent.mkdir(parents=True, exist_ok=True)
        LEFT.write_text(json.dumps(left))
        for item, container in zip(self._units, self._carried, strict=True):
            undo.push("free-container", f"{container.pid} {item.unit.cgroup}")
            checkpoint.write_status(container)

    def stop(self, undo: UndoList) -> None:
        """Stop containers that cannot be carried. Raises CommandFailedError."""
        if self._restarted:
            undo.push("remove", str(STOPPED))
            STOPPED.parent.mkdir(parents=True, exist_ok=True)
            STOPPED.write_text(json.dumps([[item.engine, item.id] for item in self._restarted]))
        for container in self._restarted:
            undo.push("start-container", f"{container.engine} {container.id}")
            # Ended midway, an engine may not know any more how the container stands.
            run([container.engine, "stop", container.id], timeout=_STOP_S, whole=True)

    def jobs(self, work: Path) -> list[DumpJob]:
        """Their dumps; each gets a directory below ``work``."""
        found = []
        for item, container in zip(self._units, self._carried, strict=True):
            # No tree is called so: see CarriedTree.name.
            directory = work / f"libpod-{container.id[:12]}+{container.pid}"
            found.append(
                DumpJob(
                    name=container.name,
                    unit=item.unit.name,
                    root_pid=container.pid,
                    argv=tuple(checkpoint.argv(container, directory)),
                    images=checkpoint.images(container),
                    work=directory,
                    cgroups=(item.unit.cgroup,),
                    environment=self._environment,
                )
            )
        return found

    def seal(self) -> None:
        """What else is needed of them, while they stand still. Raises RekernelError."""
        large_areas.split([checkpoint.images(container) for container in self._carried])
        for container in self._carried:
            checkpoint.add_shared_memory(container)

    def network(self, network: Network) -> Network:
        """The network with rules by which nobody answers in their place after the commit."""
        rules = network.unlock_rules + checkpoint.lock_rules(self._carried)
        return replace(network, unlock_rules=rules)

    def files(self) -> dict[str, str]:
        """What tells the new side of them."""
        if not self._carried:
            return {}
        return {WANTED: checkpoint.wanted(self._carried)}
